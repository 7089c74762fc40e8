"""Batches of pairs: two random views of each picture and one of its captions, in a fixed order.

Everything random is a function of (seed, epoch, example): the order, the views, the caption. So a
batch does not depend on the number of processes, on threads or on resuming.

Shapes: N examples, B examples of a batch, I pictures, H height, W width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch

from maskery.core.batch import TokenBatch
from maskery.core.errors import DataError
from maskery.core.random import Int64Array, Stream, UInt64Array, uniforms
from maskery.data.batching import PlannedSource
from maskery.data.images.config import ViewConfig
from maskery.data.images.views import view_draws, view_stack
from maskery.data.pairs.captions import CaptionTokens
from maskery.data.pairs.pairs import Pairs, wrong_pairs
from maskery.data.pairs.pictures import Pictures

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, kw_only=True)
class ViewedPairs:
    """B pairs, as the image-text tasks read them."""

    image1: torch.Tensor  # (B, 3, H, W) float32, normalised: one random view of each picture
    image2: torch.Tensor  # (B, 3, H, W) float32: another
    text1: TokenBatch  # B captions


@dataclass(frozen=True, kw_only=True)
class JudgedPairs:
    """B held-out captions with their pictures and wrong ones."""

    images: torch.Tensor  # (I, 3, H, W) float32, normalised, without random changes
    right: torch.Tensor  # (B,) int64: the picture of each caption, an index into `images`
    wrong: torch.Tensor  # (B,) int64: a picture of something (someone) else
    text: TokenBatch  # B captions
    # (B,) uint64: the picture or person of each caption; what intervals resample.
    groups: UInt64Array


ViewedT = TypeVar("ViewedT")


class PicturedExamples(PlannedSource[ViewedT]):
    """Training examples with a picture each: their order, their pictures and views.

    `ids` (N,) are those of the examples, and `pairs` (N,) the pairs whose pictures they have. A
    step has `batch_size` examples over all processes, a micro-batch at most `micro_size`.
    """

    def __init__(
        self,
        ids: UInt64Array,
        pairs: Int64Array,
        captions: CaptionTokens,
        pictures: Pictures,
        view: ViewConfig,
        batch_size: int,
        micro_size: int | None,
        seed: int,
    ) -> None:
        # Pictures cost the same whatever their captions, so each example counts as one token.
        super().__init__(np.ones(len(ids), np.int64), batch_size, micro_size, "packed", seed)
        self.ids, self.pairs = ids, pairs
        self.captions, self.pictures, self.view = captions, pictures, view

    def readable(self, members: Int64Array, epoch: int) -> tuple[Int64Array, list[Image]]:
        """Return those examples whose picture can be read, or else the next in the order."""
        order = self.plan(epoch).order
        at = int(np.flatnonzero(order == members[-1])[0])
        # All together, then those that follow one by one.
        following = ([int(example)] for example in np.roll(order, -at - 1))
        for chosen in chain([members.tolist()], following):
            images = self.pictures.load(self.pairs[chosen].tolist())
            found = [(e, image) for e, image in zip(chosen, images, strict=True) if image]
            if found:
                return np.array([e for e, _ in found], np.int64), [image for _, image in found]
        raise DataError(f"no picture of the pairs can be read ({self.pictures.skipped})")

    def views(
        self, images: list[Image], ids: UInt64Array, epoch: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return two random views of each picture: (B, 3, H, W) float32, normalised."""
        first, second = (view_draws(self.seed, epoch, ids, view=number) for number in (0, 1))
        return view_stack(images, self.view, first), view_stack(images, self.view, second)


class PairSource(PicturedExamples[ViewedPairs]):
    """The batches of a run over the `chosen` pairs, without those that have no usable caption."""

    def __init__(
        self,
        pairs: Pairs,
        captions: CaptionTokens,
        pictures: Pictures,
        view: ViewConfig,
        chosen: Int64Array,
        *,
        batch_pairs: int,
        micro_pairs: int | None = None,
        seed: int = 0,
    ) -> None:
        chosen = chosen[np.isin(chosen, captions.owners)]
        ids, sizes = pairs.ids[chosen], (batch_pairs, micro_pairs)
        super().__init__(ids, chosen, captions, pictures, view, *sizes, seed)

    def batch(
        self, chosen: Int64Array, epoch: int = 0, crowd: Int64Array | None = None
    ) -> ViewedPairs:
        """Return the batch of some pairs that can be read, with one caption of each."""
        del crowd
        members, images = self.readable(chosen, epoch)
        ids = self.ids[members]
        image1, image2 = self.views(images, ids, epoch)
        owners, pairs = self.captions.owners, self.pairs[members]
        first = np.searchsorted(owners, pairs, side="left")
        count = np.searchsorted(owners, pairs, side="right") - first
        drawn = uniforms(self.seed, Stream.CAPTION, epoch, ids, np.zeros(len(ids), np.int64))
        captions = first + (drawn.astype(np.float64) * count).astype(np.int64)
        return ViewedPairs(image1=image1, image2=image2, text1=self.captions.batch(captions, ids))


class HeldOutPairs:
    """Every caption of the `chosen` pairs, with the picture it belongs to and a wrong one."""

    def __init__(
        self,
        pairs: Pairs,
        captions: CaptionTokens,
        pictures: Pictures,
        view: ViewConfig,
        groups: UInt64Array,
        chosen: Int64Array,
        *,
        batch_pairs: int = 64,
    ) -> None:
        self.ids, self.captions, self.pictures, self.view = pairs.ids, captions, pictures, view
        self.groups, self.batch_pairs = groups, batch_pairs
        self.chosen = chosen[np.isin(chosen, captions.owners)]
        wrong = wrong_pairs(groups, self.chosen)
        self.wrong = dict(zip(self.chosen.tolist(), wrong.tolist(), strict=True))

    def __iter__(self) -> Iterator[JudgedPairs]:
        """Yield batches in the order of the pairs."""
        found = False
        for first in range(0, len(self.chosen), self.batch_pairs):
            batch = self._batch(self.chosen[first : first + self.batch_pairs].tolist())
            if batch is not None:
                found = True
                yield batch
        if not found:
            raise DataError(f"no held-out picture can be read ({self.pictures.skipped})")

    def _batch(self, members: list[int]) -> JudgedPairs | None:
        """Return a batch, or None where no picture can be read."""
        wanted = list(dict.fromkeys([*members, *(self.wrong[i] for i in members)]))
        loaded = zip(wanted, self.pictures.load(wanted), strict=True)
        images = {index: image for index, image in loaded if image is not None}
        members = [i for i in members if i in images and self.wrong[i] in images]
        if not members:
            return None
        place = {index: row for row, index in enumerate(images)}
        rows = np.flatnonzero(np.isin(self.captions.owners, members))
        owners = self.captions.owners[rows]
        return JudgedPairs(
            images=view_stack(list(images.values()), self.view),
            right=torch.tensor([place[i] for i in owners.tolist()]),
            wrong=torch.tensor([place[self.wrong[i]] for i in owners.tolist()]),
            text=self.captions.batch(rows, self.ids[owners]),
            groups=self.groups[owners],
        )
