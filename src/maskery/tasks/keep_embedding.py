"""Masked language modelling that leaves the encoder's vectors where they were.

A sentence encoder that learns to fill words drifts: neighbours of one topic part. So the hidden
states of the tokens that are *not* masked are held to those of the frozen start, which reads the
text unmasked. The vector of a text is pooled from such tokens alone, since nothing is masked when
it is used; what is learned for filling words has the states of the masked tokens to live in.
`benchmarks/RESULTS.md` has what else was tried (pooled vectors, contrast, squared errors) and the
trade of each.

Shapes: T tokens, M masked tokens, K = T - M kept ones, D width, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F

from maskery.core.batch import MaskedTokens, TokenBatch
from maskery.core.errors import ConfigError
from maskery.masking.masker import Masker
from maskery.models.layout import EncoderInputs
from maskery.models.masked_lm import MaskedLanguageModel
from maskery.objectives.mlm import mlm_loss_sum
from maskery.tasks.text_mlm import PreparedText, TextMLM, TextParts

KEEP = "keep"


@dataclass(frozen=True, kw_only=True)
class PreparedKeep(PreparedText):
    """A masked batch beside the same text unmasked."""

    masked: torch.Tensor  # (M,) int64, which of the T tokens are masked
    kept: torch.Tensor  # (K,) int64, the others
    start: EncoderInputs  # The unmasked text, with the kept tokens as its rows

    def to(self, device: torch.device) -> Self:
        """Copy to `device`."""
        return replace(
            super().to(device),
            masked=self.masked.to(device),
            kept=self.kept.to(device),
            start=self.start.to(device),
        )


class KeepEmbedding(TextMLM):
    """Predict the masked tokens, and hold the others' hidden states to the frozen start's.

    Args:
        model: The encoder with its head, as the run starts from it: a copy is kept.
        masker: Draws the masks.
        weight: Of the mean distance, 1 - cosine, beside the loss of a masked token in nats.
        frozen_share: The share of the run, from its start, in which the encoder is frozen.
        pin_memory: Prepare batches in page-locked memory, for a GPU.
    """

    def __init__(
        self,
        model: MaskedLanguageModel,
        masker: Masker,
        weight: float,
        *,
        frozen_share: float = 0.0,
        pin_memory: bool = False,
    ) -> None:
        super().__init__(model, masker, pin_memory=pin_memory)
        self.frozen_share = frozen_share
        self.loss_weights = {**self.loss_weights, KEEP: weight}
        self._start = copy.deepcopy(model.base).eval().requires_grad_(False)

    def prepare(self, batch: TokenBatch, *, epoch: int, progress: float) -> PreparedText:
        """Mask a batch; lay it out with all tokens as rows, and unmasked with the kept ones."""
        if progress < self.frozen_share:  # nothing can drift yet
            return super().prepare(batch, epoch=epoch, progress=progress)
        masked = self.masker.mask(batch, epoch=epoch, progress=progress)
        tokens = np.arange(batch.num_tokens)
        kept = np.setdiff1d(tokens, masked.positions, assume_unique=True)
        prepared = PreparedKeep(
            inputs=self.lay_out(replace(masked, positions=tokens, targets=batch.input_ids)),
            targets=torch.from_numpy(masked.targets),
            counts={"mlm": len(masked.targets), KEEP: len(kept)},
            num_tokens=batch.num_tokens,
            masked=torch.from_numpy(masked.positions),
            kept=torch.from_numpy(kept),
            start=self.lay_out(_unmasked(batch, kept)),
        )
        return prepared.pin_memory() if self.pin_memory else prepared

    def loss_sums(self, prepared: PreparedText) -> Mapping[str, torch.Tensor]:
        """Return the cross-entropy of the masked tokens and the distance of the others, summed."""
        if not isinstance(prepared, PreparedKeep):
            return super().loss_sums(prepared)
        self.num_predicted += prepared.counts["mlm"]

        def read(model: MaskedLanguageModel, rows: torch.Tensor) -> tuple[Any, torch.Tensor]:
            return model.logits(rows[prepared.masked]), rows[prepared.kept]

        logits, rows = self.model(prepared.inputs, read=read)
        distance = 1.0 - F.cosine_similarity(rows.float(), self._start_rows(prepared.start))
        return {"mlm": mlm_loss_sum(logits, prepared.targets), KEEP: distance.sum()}

    @torch.no_grad()
    def _start_rows(self, inputs: EncoderInputs) -> torch.Tensor:
        """Return the frozen start's hidden states of the kept tokens, (K, D) float32."""
        start: Any = self._start.to(inputs.rows.device)
        output = start(**{start.main_input_name: inputs.input_ids}, **inputs.arguments)
        hidden: torch.Tensor = output[0].flatten(0, 1)
        return hidden[inputs.rows].float()


def _unmasked(batch: TokenBatch, rows: np.ndarray[Any, np.dtype[np.int64]]) -> MaskedTokens:
    """Return a batch as it is, with some tokens as the rows that are asked for."""
    return MaskedTokens(
        batch=batch, input_ids=batch.input_ids, positions=rows, targets=batch.input_ids[rows]
    )


def keep_embedding(parts: TextParts, weight: float) -> KeepEmbedding:
    """Make the task from the parts of a run.

    Raises:
        ConfigError: Steps are to be compiled.
    """
    if parts.compile_backend is not None:
        raise ConfigError(
            "--compile and --keep-embedding do not go together yet; leave out one of them "
            "(--keep-embedding off)"
        )
    return KeepEmbedding(
        parts.model,
        parts.masker,
        weight,
        frozen_share=parts.frozen_share,
        pin_memory=parts.pin_memory,
    )
