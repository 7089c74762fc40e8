"""Masked language modelling of text.

Shapes: T tokens, M rows for masked tokens, V vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Self

import torch

from maskery.core.batch import StaticShapes, TokenBatch
from maskery.masking.masker import Masker
from maskery.models.compiling import Compiled
from maskery.models.layout import EncoderInputs
from maskery.models.masked_lm import MaskedLanguageModel
from maskery.objectives.mlm import mlm_loss_sum

log = logging.getLogger(__name__)

LEFT_OUT = "mlm_left_out"


@dataclass(frozen=True, kw_only=True)
class PreparedText:
    """A masked batch, laid out for the encoder.

    As the batch comes, T and M are what it has: every row is a masked token. In static shapes they
    are those of the run: padding follows the tokens, and unused rows have the target
    `IGNORE_INDEX`.

    Attributes:
        inputs: The corrupted tokens.
        targets: (M,) int64.
        counts: Masked tokens to be predicted; in static shapes also how many had no row.
        num_tokens: Real tokens.
    """

    inputs: EncoderInputs
    targets: torch.Tensor
    counts: Mapping[str, int]
    num_tokens: int

    def to(self, device: torch.device) -> Self:
        """The same with its tensors on `device`."""
        targets = self.targets.to(device, non_blocking=True)
        return replace(self, inputs=self.inputs.to(device), targets=targets)

    def pin_memory(self) -> Self:
        """The same in page-locked memory, from where a GPU copies while it computes."""
        return replace(self, inputs=self.inputs.pin_memory(), targets=self.targets.pin_memory())


class TextMLM:
    """Mask, encode, predict the masked tokens (BERT, section 3.1).

    Args:
        model: Returns the logits of masked tokens.
        masker: Draws the masks.
        shapes: Fill every batch up to these, for steps that are compiled.
        compile_backend: Of `torch.compile`; None for a step that is not compiled.
        pin_memory: Whether batches are prepared in page-locked memory, for a GPU.

    Attributes:
        num_predicted: Masked tokens that the loss has run over.
        num_left_out: Masked tokens left out of it, because a batch had more than `shapes` has rows.
    """

    def __init__(
        self,
        model: MaskedLanguageModel,
        masker: Masker,
        *,
        shapes: StaticShapes | None = None,
        compile_backend: str | None = None,
        pin_memory: bool = False,
    ) -> None:
        self.model: torch.nn.Module = model
        self.masker = masker
        self.shapes = shapes
        self.pin_memory = pin_memory
        self.loss_weights: Mapping[str, float] = {"mlm": 1.0}
        self.num_predicted = self.num_left_out = 0
        self._lay_out, self._lay_out_static = model.lay_out, model.lay_out_static
        self._loss = (
            masked_loss_sum
            if compile_backend is None
            else Compiled(masked_loss_sum, backend=compile_backend)
        )

    def prepare(self, batch: TokenBatch, *, epoch: int, progress: float) -> PreparedText:
        """Mask a batch and lay it out."""
        masked = self.masker.mask(batch, epoch=epoch, progress=progress)
        if self.shapes is None:
            prepared = PreparedText(
                inputs=self._lay_out(masked),
                targets=torch.from_numpy(masked.targets),
                counts={"mlm": len(masked.targets)},
                num_tokens=batch.num_tokens,
            )
        else:
            static = self._lay_out_static(masked, self.shapes)
            left_out = static.num_left_out
            prepared = PreparedText(
                inputs=static.inputs,
                targets=static.targets,
                counts={"mlm": len(masked.targets) - left_out, LEFT_OUT: left_out},
                num_tokens=batch.num_tokens,
            )
        return prepared.pin_memory() if self.pin_memory else prepared

    def loss_sums(self, prepared: PreparedText) -> Mapping[str, torch.Tensor]:
        """The cross-entropy of the masked tokens, summed."""
        self.num_predicted += prepared.counts["mlm"]
        left_out = prepared.counts.get(LEFT_OUT, 0)
        if left_out and not self.num_left_out:
            log.warning(
                "a batch has %d more masked tokens than its step has rows for; they are left out "
                "of the loss, and counted",
                left_out,
            )
        self.num_left_out += left_out
        return {"mlm": self._loss(self.model, prepared.inputs, prepared.targets)}

    def before_step(self) -> None:
        """Nothing moves between steps."""

    def extra_state(self) -> Mapping[str, torch.Tensor]:
        """Nothing beyond the model."""
        return {}

    def load_extra_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Nothing beyond the model."""
        del state


def masked_loss_sum(
    model: torch.nn.Module, inputs: EncoderInputs, targets: torch.Tensor
) -> torch.Tensor:
    """Encode and predict: what is compiled as one."""
    return mlm_loss_sum(model(inputs), targets)
