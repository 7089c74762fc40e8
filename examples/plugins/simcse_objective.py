"""SimCSE beside masked language modelling: sentence vectors that tell sentences apart.

Gao et al., "SimCSE" (EMNLP 2021), section 3, unsupervised: every sentence is encoded twice, with
two draws of dropout, and must find its other self among the sentences of its micro-batch. Needs a
model with dropout; without any, both vectors are the same and little is learnt.

    maskery train text CORPUS --objective examples/plugins/simcse_objective.py:simcse

Shapes: B sentences, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from maskery.core.batch import MaskedTokens, TokenBatch
from maskery.models.layout import EncoderInputs
from maskery.tasks.text_mlm import PreparedText, TextMLM

TEMPERATURE = 0.05  # the paper's, section 3
WEIGHT = 0.1  # of SimCSE; masked language modelling keeps the weight 1


@dataclass(frozen=True, kw_only=True)
class PreparedPairs(PreparedText):
    """A masked batch, and its sentences without masks; `sentences.rows` are their first tokens."""

    sentences: EncoderInputs


class SimCSE(TextMLM):
    """Masked language modelling, and a contrastive loss between two dropout draws."""

    def __init__(self, *parts: Any, **settings: Any) -> None:
        super().__init__(*parts, **settings)
        self.loss_weights = {"mlm": 1.0, "simcse": WEIGHT}

    def prepare(self, batch: TokenBatch, *, epoch: int, progress: float) -> PreparedPairs:
        """Mask a batch, and lay out its sentences as they are."""
        masked = super().prepare(batch, epoch=epoch, progress=progress)
        first_tokens = MaskedTokens.unmasked(batch, batch.boundaries[:-1])
        counts = {**masked.counts, "simcse": len(batch.lengths)}
        parts = {**vars(masked), "counts": counts}
        return PreparedPairs(**parts, sentences=self.lay_out(first_tokens))

    def loss_sums(self, prepared: PreparedText) -> Mapping[str, torch.Tensor]:
        """Return both terms, each summed over what it counts."""
        assert isinstance(prepared, PreparedPairs)
        one, other = (self.model(prepared.sentences, read=unit_rows) for _ in range(2))
        scores = one @ other.T / TEMPERATURE
        own = torch.arange(len(scores), device=scores.device)
        simcse = F.cross_entropy(scores, own, reduction="sum")
        return {**super().loss_sums(prepared), "simcse": simcse}


def unit_rows(_model: object, rows: torch.Tensor) -> torch.Tensor:
    """Return the sentences' vectors (B, D) with length 1."""
    return F.normalize(rows.float(), dim=1)


simcse = SimCSE.of
