"""Masked diffusion language modelling: predict masked tokens at every rate of masking.

The loss is the NELBO of a token, in nats (`masking/diffusion.py`). The model is told neither t nor
anything new (Ou et al., ICLR 2025), so a checkpoint remains a masked language model, and one starts
from a BERT (dLLM, arXiv 2602.22661).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace

import torch

from maskery.core.batch import TokenBatch
from maskery.masking.diffusion import DiffusionMasker
from maskery.objectives.mlm import mlm_loss_sum
from maskery.tasks.text_mlm import PreparedText, TextMLM, TextParts

log = logging.getLogger(__name__)

NELBO = "nelbo"


class Diffusion(TextMLM):
    """Mask at a rate drawn for each sequence, and weight what is predicted by its inverse."""

    def prepare(self, batch: TokenBatch, *, epoch: int, progress: float) -> PreparedText:
        """Mask a batch, lay it out, and count its maskable tokens; none may be masked."""
        prepared = super().prepare(batch, epoch=epoch, progress=progress)
        maskable = ~self.masker.vocabulary.protected[batch.input_ids]
        return replace(prepared, counts={NELBO: int(maskable.sum())})

    def loss_sums(self, prepared: PreparedText) -> Mapping[str, torch.Tensor]:
        """Return the weighted cross-entropy of the masked tokens, summed."""
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
