"""Masked diffusion language modelling: predict masked tokens at every rate of masking.

The loss is the NELBO of a token, in nats (`masking/diffusion.py`). The model is told neither t nor
anything new (Ou et al., ICLR 2025), so a checkpoint remains a masked language model, and one starts
from a BERT (dLLM, arXiv 2602.22661).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Self

import torch

from maskery.core.batch import TokenBatch
from maskery.masking.diffusion import DiffusionMasker
from maskery.objectives.mlm import mlm_loss_sum
from maskery.tasks.text_mlm import PreparedText, TextMLM, TextParts

log = logging.getLogger(__name__)

NELBO = "nelbo"


@dataclass(frozen=True, kw_only=True)
class PreparedDiffusion(PreparedText):
    """A masked batch; it counts its maskable tokens, and may have none that is masked."""

    weights: torch.Tensor  # (M,) float32

    def to(self, device: torch.device) -> Self:
        """Copy to `device`."""
        return replace(super().to(device), weights=self.weights.to(device, non_blocking=True))


class Diffusion(TextMLM):
    """Mask at a rate drawn for each sequence, and weight what is predicted by its inverse."""

    def prepare(self, batch: TokenBatch, *, epoch: int, progress: float) -> PreparedDiffusion:
        """Mask a batch and lay it out."""
        masked = self.masker.mask(batch, epoch=epoch, progress=progress)
        maskable = ~self.masker.vocabulary.protected[batch.input_ids]
        prepared = PreparedDiffusion(
            inputs=self.lay_out(masked),
            targets=torch.from_numpy(masked.targets),
            counts={NELBO: int(maskable.sum())},
            num_tokens=batch.num_tokens,
            weights=torch.from_numpy(masked.weights),
        )
        return prepared.pin_memory() if self.pin_memory else prepared

    def loss_sums(self, prepared: PreparedText) -> Mapping[str, torch.Tensor]:
        """Return the weighted cross-entropy of the masked tokens, summed."""
        assert isinstance(prepared, PreparedDiffusion)
        logits = self.model(prepared.inputs)
        return {NELBO: mlm_loss_sum(logits, prepared.targets, prepared.weights)}


def diffusion(parts: TextParts) -> Diffusion:
    """Make the task of `--objective diffusion`."""
    log.info("diffusion: held-out loss is the NELBO of a token, which the verdict compares, too")
    bell = parts.settings.time_sampling == "bell"
    masker = DiffusionMasker(**vars(parts.masker), bell=bell)
    task = Diffusion(parts.model, masker, pin_memory=parts.pin_memory)
    task.loss_weights = {NELBO: 1.0}
    return task
