"""Masked language modelling that leaves the encoder's vectors where they were.

A sentence encoder that learns to fill words drifts: neighbours of one topic part. So the vector of
each text, pooled as the model pools it but from the tokens that are *not* masked alone, is held to
that of the frozen start, which reads the same masked text. At the first step the distance is zero,
and nothing is asked that the start could not do; what is learned for filling words has the states
of the masked tokens to live in. `benchmarks/RESULTS.md` has what else was tried (the state of each
token, the unmasked text, contrast, squared errors, similarities) and the trade of each.

Shapes: T tokens, B sequences, M masked tokens, K = T - M kept ones, D width, V vocabulary.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F

from maskery.core.batch import TokenBatch
from maskery.core.errors import ConfigError
from maskery.masking.masker import Masker
from maskery.models.layout import EncoderInputs
from maskery.models.masked_lm import MaskedLanguageModel
from maskery.models.pooling import Pooling
from maskery.objectives.mlm import mlm_loss_sum
from maskery.tasks.text_mlm import PreparedText, TextMLM, TextParts

KEEP = "keep"


@dataclass(frozen=True, kw_only=True)
class PreparedKeep(PreparedText):
    """A masked batch with all its tokens as rows."""

    masked: torch.Tensor  # (M,) int64, which of the T tokens are masked
    kept: torch.Tensor  # (K,) int64, the others
    kept_lengths: torch.Tensor  # (B,) int64, how many of them each sequence has, none with 0


class KeepEmbedding(TextMLM):
    """Predict the masked tokens, and hold the vectors of texts to the frozen start's.

    `weight` is that of the mean distance, 1 - cosine, beside the loss of a masked token in nats;
    `frozen_share` the share of the run, from its start, in which the encoder is frozen.
    """

    def __init__(
        self,
        model: MaskedLanguageModel,
        masker: Masker,
        weight: float,
        *,
        pooling: Pooling | None = None,
        frozen_share: float = 0.0,
        few_shapes: bool = False,
        pin_memory: bool = False,
    ) -> None:
        super().__init__(model, masker, few_shapes=few_shapes, pin_memory=pin_memory)
        self.pooling = pooling or Pooling()
        self.frozen_share = frozen_share
        self.loss_weights = {**self.loss_weights, KEEP: weight}
        self._start = copy.deepcopy(model.base).eval().requires_grad_(False)

    @classmethod
    def of(cls, parts: TextParts) -> Self:
        """Make the task from the parts of a run."""
        if parts.compile_backend is not None:
            fix = "leave out one of them (--keep-embedding off)"
            raise ConfigError(f"--compile and --keep-embedding do not go together yet; {fix}")
        pooling = Pooling.of(parts.sentence_encoder) if parts.sentence_encoder else None
        settings = {n: getattr(parts, n) for n in ("frozen_share", "few_shapes", "pin_memory")}
        weight = parts.settings.keep_weight
        return cls(parts.model, parts.masker, weight, pooling=pooling, **settings)

    def prepare(self, batch: TokenBatch, *, epoch: int, progress: float) -> PreparedText:
        """Mask a batch, and lay it out with all tokens as rows."""
        if progress < self.frozen_share:  # nothing can drift yet
            return super().prepare(batch, epoch=epoch, progress=progress)
        masked = self.masker.mask(batch, epoch=epoch, progress=progress)
        kept = np.delete(np.arange(batch.num_tokens), masked.positions)
        lengths = np.diff(np.searchsorted(kept, batch.boundaries))
        lengths = lengths[lengths > 0]
        inputs, targets = self._laid_out(masked)
        # All tokens are rows: of a padded batch, those that its mask marks.
        real = inputs.arguments.get("attention_mask", torch.ones_like(inputs.input_ids))
        rows = real.flatten().nonzero().flatten()
        prepared = PreparedKeep(
            inputs=replace(inputs, rows=rows),
            targets=targets,
            counts={"mlm": len(masked.targets), KEEP: len(lengths)},
            num_tokens=batch.num_tokens,
            masked=torch.searchsorted(rows, inputs.rows),
            kept=torch.from_numpy(kept),
            kept_lengths=torch.from_numpy(lengths),
        )
        return prepared.pin_memory() if self.pin_memory else prepared

    def loss_sums(self, prepared: PreparedText) -> Mapping[str, torch.Tensor]:
        """Return the cross-entropy of masked tokens and the distance of texts, each summed."""
        if not isinstance(prepared, PreparedKeep):
            return super().loss_sums(prepared)
        self.num_predicted += prepared.counts["mlm"]

        def read(model: MaskedLanguageModel, rows: torch.Tensor) -> tuple[Any, torch.Tensor]:
            return model.logits(rows[prepared.masked]), rows[prepared.kept]

        logits, rows = self.model(prepared.inputs, read=read)
        own_and_start = (rows, self._start_rows(prepared.inputs)[prepared.kept])
        vectors, start = (self.pooling.pool(one, prepared.kept_lengths) for one in own_and_start)
        distance = 1.0 - F.cosine_similarity(vectors, start)
        return {"mlm": mlm_loss_sum(logits, prepared.targets), KEEP: distance.sum()}

    @torch.no_grad()
    def _start_rows(self, inputs: EncoderInputs) -> torch.Tensor:
        """Return the frozen start's hidden states of all tokens, (T, D) float32."""
        start: Any = self._start.to(inputs.rows.device)
        output = start(**{start.main_input_name: inputs.input_ids}, **inputs.arguments)
        hidden: torch.Tensor = output[0].flatten(0, 1)
        return hidden[inputs.rows].float()
