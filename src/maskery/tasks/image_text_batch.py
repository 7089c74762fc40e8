"""Batches of image-caption pairs, before and after a step's random decisions.

Shapes: B pairs, H x W pixels, L the longest caption of the batch in tokens, M masked tokens,
N tokens to sample, P tokens with a replaced-token label.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
import torch

from maskery.core.batch import MaskedTokens, TokenBatch
from maskery.core.random import Stream, uniforms
from maskery.core.task import moved


@dataclass(frozen=True, kw_only=True)
class PaddedText:
    """B captions side by side."""

    input_ids: torch.Tensor  # (B, L) int64
    attention_mask: torch.Tensor  # (B, L) bool, False at padding


@dataclass(frozen=True, kw_only=True)
class MaskedText:
    """B captions, masked."""

    input_ids: torch.Tensor  # (B, L) int64, corrupted
    positions: torch.Tensor  # (M,) int64, the masked tokens as indices into B * L, ascending
    targets: torch.Tensor  # (M,) int64, the original ids there


@dataclass(frozen=True, kw_only=True)
class MRTDPlan:
    """Places and randomness of replaced token detection."""

    masked_ids: torch.Tensor  # (B, L) int64, what the twin reads
    sampled_at: torch.Tensor  # (N,) int64, where it replaces tokens, as indices into B * L
    uniforms: torch.Tensor  # (N,) float32, the randomness of the draws
    labelled_at: torch.Tensor  # (P,) int64, where the model says whether a token was replaced
    sampled: torch.Tensor | None = None  # (N,) int64, the draws, where a step is replayed


@dataclass(frozen=True, kw_only=True)
class PreparedPairs:
    """A batch of pairs with every decision taken that does not need the model."""

    image1: torch.Tensor  # (B, 3, H, W), for the trained model
    image2: torch.Tensor  # (B, 3, H, W), for the momentum twin
    text1: PaddedText  # The captions whose words are masked and replaced
    # The captions that contrast, matching and relations read; without persons the same.
    text2: PaddedText
    ids: torch.Tensor  # (B,) int64; pairs of one id, with persons the person's, are positives
    mlm: MaskedText  # `text1`, masked for masked language modelling
    mrtd: MRTDPlan | None  # None where replaced token detection is off or has not started
    alpha: float  # The weight of the soft labels at this point of the run
    num_tokens: int  # Real tokens in `text1`
    terms: frozenset[str]  # The loss terms that are on
    # With persons: (B,) int64, 1 where `text2` is another picture's caption.
    replaced: torch.Tensor | None = None
    # With persons: (2, B) float32, the randomness of the image and text negatives.
    negative_uniforms: torch.Tensor | None = None
    # How many negatives can be drawn: twice the pairs that have anyone else beside them in the
    # batch, of all processes.
    num_negatives: int = 0
    # Where a step is replayed: (B,) int64, the image drawn for each text and the text drawn for
    # each image, as indices into the batch of all processes.
    image_negatives: torch.Tensor | None = None
    text_negatives: torch.Tensor | None = None

    @property
    def counts(self) -> Mapping[str, int]:
        """Of each term that is on: pairs, masked tokens, or tokens judged replaced or not."""
        pairs = len(self.ids)
        counts = {
            "itc": pairs,
            "mlm": len(self.mlm.positions),
            "mrtd": 0 if self.mrtd is None else len(self.mrtd.labelled_at),
            "itm": pairs + self.num_negatives,
            "prd": pairs,
        }
        # Terms of the user's own stand for one sum over the pairs (`own_sums`).
        own = dict.fromkeys(sorted(self.terms - counts.keys()), pairs)
        return {name: count for name, count in counts.items() if name in self.terms} | own

    def to(self, device: torch.device) -> Self:
        """Return a copy with its tensors on `device`."""
        return moved(self, device)


def padded_places(batch: TokenBatch, length: int) -> npt.NDArray[np.int64]:
    """Return where each of the T tokens stands among B * `length`: (T,) int64."""
    rows = np.repeat(np.arange(len(batch.lengths)), batch.lengths)
    within = np.arange(batch.num_tokens) - batch.boundaries[:-1][rows]
    return rows * length + within


def _pad(
    batch: TokenBatch, input_ids: npt.NDArray[np.int64], length: int, pad_token_id: int
) -> torch.Tensor:
    """Lay (T,) ids of a batch side by side: (B, `length`) int64."""
    padded = np.full(len(batch.lengths) * length, pad_token_id, np.int64)
    padded[padded_places(batch, length)] = input_ids
    return torch.from_numpy(padded.reshape(-1, length))


def pad_text(batch: TokenBatch, length: int, pad_token_id: int) -> PaddedText:
    """Lay the captions of a batch side by side."""
    return PaddedText(
        input_ids=_pad(batch, batch.input_ids, length, pad_token_id),
        attention_mask=torch.from_numpy(np.arange(length) < batch.lengths[:, None]),
    )


def pad_masked(masked: MaskedTokens, length: int, pad_token_id: int) -> MaskedText:
    """Lay a masked batch side by side."""
    places = padded_places(masked.batch, length)
    return MaskedText(
        input_ids=_pad(masked.batch, masked.input_ids, length, pad_token_id),
        positions=torch.from_numpy(places[masked.positions]),
        targets=torch.from_numpy(masked.targets),
    )


def negative_uniforms(batch: TokenBatch, *, seed: int, epoch: int) -> torch.Tensor:
    """Draw the randomness of each pair's image and text negative: (2, B) float32."""
    ids, ones = batch.example_ids, np.ones(len(batch.example_ids), np.int64)
    drawn = [uniforms(seed, Stream.NEGATIVE, epoch, ids, which * ones) for which in (0, 1)]
    return torch.from_numpy(np.stack(drawn))
