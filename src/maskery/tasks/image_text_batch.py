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

    masked_ids: torch.Tensor  # (B, L) int64, what the generator reads
    sampled_at: torch.Tensor  # (N,) int64, where it replaces tokens, as indices into B * L
    uniforms: torch.Tensor  # (N,) float32, the randomness of the draws
    # (P,) int64, where the trained model says whether a token was replaced.
    labelled_at: torch.Tensor
    # (N,) int64, the draws themselves, where a step is replayed.
    sampled: torch.Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class PreparedPairs:
    """A batch of pairs with every decision taken that does not need the model."""

    # (B, 3, H, W), for the trained model; None to learn from text alone.
    image1: torch.Tensor | None
    image2: torch.Tensor | None  # (B, 3, H, W), for the momentum twin; None with `image1`
    text1: PaddedText
    pair_ids: torch.Tensor  # (B,) int64; pairs of one id are positives of each other
    mlm: MaskedText  # The captions masked for masked language modelling
    mrtd: MRTDPlan | None  # What replaced token detection needs; None while it has not started
    alpha: float  # The weight of the soft labels at this point of the run
    num_tokens: int  # Real tokens in `text1`
    terms: frozenset[str]  # The loss terms that are on; the others count for nothing

    @property
    def counts(self) -> Mapping[str, int]:
        """Of each term that is on: pairs, masked tokens, or tokens judged replaced or not."""
        counts = self._all_counts()
        own = dict.fromkeys(sorted(self.terms - counts.keys()), len(self.pair_ids))
        return {name: count for name, count in counts.items() if name in self.terms} | own

    def _all_counts(self) -> dict[str, int]:
        return {
            "itc": len(self.pair_ids),
            "mlm": len(self.mlm.positions),
            "mrtd": 0 if self.mrtd is None else len(self.mrtd.labelled_at),
        }

    def to(self, device: torch.device) -> Self:
        """Return a copy with its tensors on `device`."""
        return moved(self, device)


@dataclass(frozen=True, kw_only=True)
class PreparedPersons(PreparedPairs):
    """Pairs of known persons with every decision taken that does not need the model."""

    image1: torch.Tensor  # (B, 3, H, W), for the trained model
    image2: torch.Tensor  # (B, 3, H, W), for the momentum twin
    text2: PaddedText  # The captions that contrastive learning, matching and relations read
    person_ids: torch.Tensor  # (B,) int64
    replaced: torch.Tensor  # (B,) int64, 1 where `text2` is another picture's caption
    # (2, B) float32, the randomness of the image and text negatives.
    negative_uniforms: torch.Tensor
    # How many negatives can be drawn: twice the pairs that have anyone else beside them in the
    # batch, of all processes.
    num_negatives: int
    # (B,) int64, the image drawn for each text, where a step is replayed; an index into the batch
    # of all processes.
    image_negatives: torch.Tensor | None = None
    # (B,) int64, the text drawn for each image, likewise.
    text_negatives: torch.Tensor | None = None

    def _all_counts(self) -> dict[str, int]:
        pairs = len(self.person_ids)
        judged = {"itc": pairs, "itm": pairs + self.num_negatives, "prd": pairs}
        return super()._all_counts() | judged


def padded_places(batch: TokenBatch, length: int) -> npt.NDArray[np.int64]:
    """(T,) int64: where each token of the batch stands in B * `length`."""
    rows = np.repeat(np.arange(len(batch.lengths)), batch.lengths)
    within = np.arange(batch.num_tokens) - batch.boundaries[:-1][rows]
    return rows * length + within


def pad(
    batch: TokenBatch,
    input_ids: npt.NDArray[np.int64],
    length: int,
    pad_token_id: int,
) -> torch.Tensor:
    """Lay (T,) ids of a batch side by side: (B, `length`) int64."""
    padded = np.full(len(batch.lengths) * length, pad_token_id, np.int64)
    padded[padded_places(batch, length)] = input_ids
    return torch.from_numpy(padded.reshape(-1, length))


def pad_text(batch: TokenBatch, length: int, pad_token_id: int) -> PaddedText:
    """The captions of a batch side by side."""
    real = np.arange(length) < batch.lengths[:, None]
    return PaddedText(
        input_ids=pad(batch, batch.input_ids, length, pad_token_id),
        attention_mask=torch.from_numpy(real),
    )


def pad_masked(masked: MaskedTokens, length: int, pad_token_id: int) -> MaskedText:
    """A masked batch side by side."""
    places = padded_places(masked.batch, length)
    return MaskedText(
        input_ids=pad(masked.batch, masked.input_ids, length, pad_token_id),
        positions=torch.from_numpy(places[masked.positions]),
        targets=torch.from_numpy(masked.targets),
    )


def negative_uniforms(batch: TokenBatch, *, seed: int, epoch: int) -> torch.Tensor:
    """(2, B) float32: for each pair the randomness of its image and of its text negative."""
    ids, ones = batch.example_ids, np.ones(len(batch.example_ids), np.int64)
    drawn = [uniforms(seed, Stream.NEGATIVE, epoch, ids, which * ones) for which in (0, 1)]
    return torch.from_numpy(np.stack(drawn))
