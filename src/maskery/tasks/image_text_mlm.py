"""Image-text masked language modelling: a caption's hidden words, found with the picture's help.

RaSa's sensitivity-aware learning (Bai et al., IJCAI 2023, section 3.3) on ALBEF (Li et al.,
NeurIPS 2021): masked language modelling with a momentum twin's soft labels, and momentum-based
replaced token detection (MRTD).

Shapes: B pairs, L caption length, D text width.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import nn

from maskery.core.vocabulary import Vocabulary
from maskery.masking.masker import Masker
from maskery.models.image_text.model import ImageTextModel
from maskery.models.momentum import MomentumTwin
from maskery.tasks.caption_steps import (
    CaptionSteps,
    Lesson,
    Step,
    encode_captions,
    freeze_unused_heads,
    part_of,
    project,
    replayable,
)
from maskery.tasks.image_text_batch import PairBatch, PreparedPairs
from maskery.tasks.image_text_config import ImageTextMLMConfig


class ImageTextMLM:
    """The task: MLM with soft labels and MRTD on image-caption pairs.

    The nine steps of the method, by their numbers:

    1. the model and its momentum twin: `model`, `twin`
    2. mask the captions: `prepare`
    3. read them with their attention mask: `generator_inputs`, `learner_inputs`
    4. the twin's soft labels: `lesson`
    5. the MLM loss against words and soft labels: `mlm_sum`
    6. the twin's probabilities for the second masked caption: `lesson`
    7. sample replacements from them: `replace`, `mrtd_mask_modeling`
    8. the model reads the caption with replacements: `learner_inputs`, `fuse`
    9. the MRTD loss: `mrtd_sum`

    Steps 2 to 9 are `CaptionSteps`'. The twin reads both masked captions in one pass (4 and 6), and
    so does the model (5 and 8); every image is encoded, and its keys and values projected, once.

    Attributes:
        model: The trained model, or what the loop wrapped it in.
        twin: Its momentum twin.
        captions: Steps 2 to 9.
        loss_weights: By loss term, its weight in the total.
    """

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
        self.captions = CaptionSteps(
            config=config,
            vocabulary=vocabulary,
            pad_token_id=pad_token_id,
            masker=masker,
            mrtd_masker=mrtd_masker,
        )
        self.twin = MomentumTwin(model, config.momentum, train_mode=config.twin_train_mode)
        self.loss_weights = config.weights
        freeze_unused_heads(model, self.loss_weights)
        self.model: nn.Module = model

    def prepare(self, batch: PairBatch, *, epoch: int, progress: float) -> PreparedPairs:
        """Mask the captions and draw what replacements will be sampled with."""
        length = int(batch.text1.lengths.max())
        return self.captions.prepare(batch, length, epoch=epoch, progress=progress)

    def before_step(self) -> None:
        """Move the twin: once per optimiser step, before its first forward pass."""
        self.twin.update()

    def loss_sums(self, prepared: PreparedPairs) -> Mapping[str, torch.Tensor]:
        """Each loss term as a sum over `prepared.counts`."""
        return self.step(prepared).loss_sums

    def step(self, prepared: PreparedPairs) -> Step[PreparedPairs]:
        """The twin teaches, the model learns."""
        with torch.no_grad():
            lesson = self._teach(self.twin.model, prepared)
        compute = partial(self._learn, prepared=prepared, lesson=lesson)
        loss_sums: Mapping[str, torch.Tensor] = self.model(compute=compute)
        return Step(loss_sums=loss_sums, lesson=lesson, prepared=replayable(prepared, lesson))

    def _teach(self, twin: ImageTextModel, prepared: PreparedPairs) -> Lesson:
        """Steps 3, 4, 6 and 7."""
        images = project(twin, prepared.image2)
        blocks = encode_captions(twin, self.captions.generator_inputs(prepared))
        fused = self.captions.fuse(twin, blocks, images)
        return self.captions.lesson(twin, fused, prepared)

    def _learn(
        self, model: ImageTextModel, *, prepared: PreparedPairs, lesson: Lesson
    ) -> dict[str, torch.Tensor]:
        """Steps 3, 5, 8 and 9."""
        images = project(model, prepared.image1)
        blocks = encode_captions(model, self.captions.learner_inputs(prepared, lesson))
        fused = self.captions.fuse(model, blocks, images)
        return self.captions.sums(model, fused, prepared, lesson)

    def extra_state(self) -> Mapping[str, torch.Tensor]:
        """The momentum twin, as `twin.*`."""
        return {f"twin.{name}": tensor for name, tensor in self.twin.state_dict().items()}

    def load_extra_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Restore what `extra_state` gave."""
        self.twin.load_state_dict(part_of(state, "twin."))
