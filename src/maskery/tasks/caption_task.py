"""What the tasks on captions with pictures share: nine steps, a twin, and the heads in use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from maskery.core.registry import split_weight
from maskery.core.task import part_of
from maskery.core.vocabulary import Vocabulary
from maskery.masking.masker import Masker
from maskery.models.image_text.model import ImageTextModel
from maskery.models.momentum import MomentumTwin
from maskery.objectives.terms import TERMS, Term, load_terms, trained_terms
from maskery.tasks.caption_steps import CaptionSteps
from maskery.tasks.image_text_config import ImageTextMLMConfig
from maskery.tasks.loss_terms import attach_terms, freeze_unused_heads, without_terms


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
        terms: Sequence[Any] = (),
    ):
        """Make the twin.

        Args:
            model: Heads that no term reads are frozen.
            config: Settings.
            vocabulary: Of the tokenizer.
            pad_token_id: Likewise.
            masker: Masks captions for masked language modelling.
            mrtd_masker: Masks them again for the twin to fill, with another seed.
            terms: Loss terms of the user's own beside those that `config` names: functions, modules
                or `LossTerm`s.

        Raises:
            PluginError: A term of the user's own breaks its contract.
        """
        self.own_terms = load_terms(config.term, terms, model)
        self.captions = CaptionSteps(
            config=config,
            vocabulary=vocabulary,
            pad_token_id=pad_token_id,
            masker=masker,
            mrtd_masker=mrtd_masker,
            own=frozenset(term.name for term in self.own_terms),
        )
        attach_terms(model, self.own_terms)
        # The released soft-label loss over the sequence reads what comes of padding.
        model.text_encoder.computes_padding = config.distill_over == "sequence"
        self.twin = MomentumTwin(model, config.momentum, train_mode=config.twin_train_mode)
        self.loss_weights: Mapping[str, float] = {
            **config.weights,
            **{term.name: term.weight for term in self.own_terms},
        }
        freeze_unused_heads(model, self.terms)
        self.temperature = model.temp
        self.model: nn.Module = model

    @property
    def terms(self) -> list[Term]:
        """The terms that are on, the user's own last."""
        return [TERMS[name] for name in self.loss_weights if name in TERMS] + [*self.own_terms]

    def described_objects(self) -> list[str]:
        """Return the terms that were given as objects, for the identity of a run."""
        named = {str(split_weight(choice)[0]) for choice in self.captions.config.term}
        return [f"{t.name}={t.weight:g}" for t in self.own_terms if t.choice not in named]

    @property
    def trained(self) -> tuple[str, ...]:
        """The built-in terms whose heads are trained: what a model of this task is good for."""
        return trained_terms(self.terms)

    @torch.no_grad()
    def before_step(self) -> None:
        """Move the twin and keep the temperature in bounds: once per optimiser step."""
        self.twin.update()
        self.temperature.clamp_(self.min_temperature, self.max_temperature)

    def extra_state(self) -> Mapping[str, torch.Tensor]:
        """The momentum twin, as `twin.*`, without the user's terms, which it does not read."""
        twin = without_terms(self.twin.state_dict())
        return {f"twin.{name}": tensor for name, tensor in twin.items()}

    def load_extra_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Restore what `extra_state` gave."""
        own = self.twin.state_dict()
        unread = {name: own[name] for name in own.keys() - without_terms(own).keys()}
        self.twin.load_state_dict(part_of(state, "twin.") | unread)
