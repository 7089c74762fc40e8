"""What the tasks on captions with pictures share: nine steps, a twin, and the heads in use."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from maskery.core.task import part_of
from maskery.core.vocabulary import Vocabulary
from maskery.masking.masker import Masker
from maskery.models.image_text.model import ImageTextModel
from maskery.models.momentum import MomentumTwin
from maskery.tasks.caption_steps import CaptionSteps
from maskery.tasks.image_text_config import ImageTextMLMConfig


class CaptionTask:
    """The parts that `ImageTextMLM` and `PersonSearch` share; neither's step.

    Attributes:
        model: The trained model, or what the loop wrapped it in.
        twin: Its momentum twin.
        captions: Steps 2 to 9.
        loss_weights: By loss term, its weight in the total.
        temperature: The learnt one of the contrast.
    """

    # ALBEF's bounds of the learnt temperature; RaSa's release has none.
    min_temperature, max_temperature = 0.001, 0.5

    def __init__(
        self,
        model: ImageTextModel,
        config: ImageTextMLMConfig,
        *,
        vocabulary: Vocabulary,
        pad_token_id: int,
        masker: Masker,
        mrtd_masker: Masker,
    ):
        """Make the twin.

        Args:
            model: Heads that no term reads are frozen.
            config: Settings.
            vocabulary: Of the tokenizer.
            pad_token_id: Likewise.
            masker: Masks captions for masked language modelling.
            mrtd_masker: Masks them again for the twin to fill, with another seed.
        """
        self.captions = CaptionSteps(
            config=config,
            vocabulary=vocabulary,
            pad_token_id=pad_token_id,
            masker=masker,
            mrtd_masker=mrtd_masker,
        )
        # The released soft-label loss over the sequence reads what comes of padding.
        model.text_encoder.computes_padding = config.distill_over == "sequence"
        self.twin = MomentumTwin(model, config.momentum, train_mode=config.twin_train_mode)
        self.loss_weights: Mapping[str, float] = config.weights
        freeze_unused_heads(model, self.loss_weights)
        self.temperature = model.temp
        self.model: nn.Module = model

    @torch.no_grad()
    def before_step(self) -> None:
        """Move the twin and keep the temperature in bounds: once per optimiser step."""
        self.twin.update()
        self.temperature.clamp_(self.min_temperature, self.max_temperature)

    def extra_state(self) -> Mapping[str, torch.Tensor]:
        """The momentum twin, as `twin.*`."""
        return {f"twin.{name}": tensor for name, tensor in self.twin.state_dict().items()}

    def load_extra_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Restore what `extra_state` gave."""
        self.twin.load_state_dict(part_of(state, "twin."))


def freeze_unused_heads(model: ImageTextModel, terms: Mapping[str, float]) -> None:
    """Stop gradients of heads that no term reads, which data parallelism would wait for."""
    heads = {
        "itc": (model.vision_proj, model.text_proj),
        "itm": (model.itm_head,),
        "prd": (model.prd_head,),
        "mrtd": (model.mrtd_head,),
        "mlm": (model.text_encoder.cls,),
    }
    for term, modules in heads.items():
        for module in modules:
            module.requires_grad_(term in terms)
    model.temp.requires_grad_("itc" in terms)
