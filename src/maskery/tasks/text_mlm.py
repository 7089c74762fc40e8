"""Masked language modelling of text.

Shapes: T tokens, M masked tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Self

import torch

from maskery.core.batch import TokenBatch
from maskery.masking.masker import Masker
from maskery.models.layout import EncoderInputs
from maskery.models.masked_lm import MaskedLanguageModel
from maskery.objectives.mlm import mlm_loss_sum


@dataclass(frozen=True, kw_only=True)
class PreparedText:
    """A masked batch, laid out for the encoder.

    Attributes:
        inputs: The corrupted tokens.
        targets: (M,) int64.
        num_tokens: T.
    """

    inputs: EncoderInputs
    targets: torch.Tensor
    num_tokens: int

    @property
    def counts(self) -> Mapping[str, int]:
        """Masked tokens."""
        return {"mlm": len(self.targets)}

    def to(self, device: torch.device) -> Self:
        """The same with its tensors on `device`."""
        targets = self.targets.to(device, non_blocking=True)
        return replace(self, inputs=self.inputs.to(device), targets=targets)


class TextMLM:
    """Mask, encode, predict the masked tokens (BERT, section 3.1).

    Args:
        model: Returns the logits of masked tokens.
        masker: Draws the masks.
    """

    def __init__(self, model: MaskedLanguageModel, masker: Masker) -> None:
        self.model: torch.nn.Module = model
        self.masker = masker
        self.loss_weights: Mapping[str, float] = {"mlm": 1.0}
        self._lay_out = model.lay_out

    def prepare(self, batch: TokenBatch, *, epoch: int, progress: float) -> PreparedText:
        """Mask a batch and lay it out."""
        masked = self.masker.mask(batch, epoch=epoch, progress=progress)
        return PreparedText(
            inputs=self._lay_out(masked),
            targets=torch.from_numpy(masked.targets),
            num_tokens=batch.num_tokens,
        )

    def loss_sums(self, prepared: PreparedText) -> Mapping[str, torch.Tensor]:
        """The cross-entropy of the masked tokens, summed."""
        return {"mlm": mlm_loss_sum(self.model(prepared.inputs), prepared.targets)}

    def before_step(self) -> None:
        """Nothing moves between steps."""

    def extra_state(self) -> Mapping[str, torch.Tensor]:
        """Nothing beyond the model."""
        return {}

    def load_extra_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Nothing beyond the model."""
        del state
