"""Batches of pairs: two views of each picture and one of its captions.

Everything random is a function of (seed, epoch, pair): the order, the views, the caption. So a
batch does not depend on the number of processes, on threads or on resuming.

Shapes: B pairs or captions, I pictures, H height, W width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from maskery.core.batch import TokenBatch
from maskery.core.errors import DataError
from maskery.core.random import Stream, uniforms
from maskery.core.task import StandIn
from maskery.data.images.config import ViewConfig
from maskery.data.images.views import normalise, view_pixels
from maskery.data.pairs.captions import CaptionTokens
from maskery.data.pairs.pairs import Pairs
from maskery.data.pairs.pictured import PicturedExamples
from maskery.data.pairs.pictures import Pictures
from maskery.data.pairs.split import wrong_pairs
from maskery.data.plan import split_step


@dataclass(frozen=True, kw_only=True)
class ViewedPairs:
    """B pairs, as the image-text tasks read them.

    Attributes:
        image1: (B, 3, H, W) float32, normalised: one random view of each picture.
        image2: (B, 3, H, W) float32: another.
        text1: B captions.
    """

    image1: torch.Tensor
    image2: torch.Tensor
    text1: TokenBatch


@dataclass(frozen=True, kw_only=True)
class JudgedPairs:
    """B held-out captions with their pictures and wrong ones.

    Attributes:
        images: (I, 3, H, W) float32, normalised, without random changes.
        right: (B,) int64: the picture of each caption, an index into `images`.
        wrong: (B,) int64: a picture of something (someone) else.
        text: B captions.
        groups: (B,) uint64: the picture or person of each caption; what intervals resample.
    """

    images: torch.Tensor
    right: torch.Tensor
    wrong: torch.Tensor
    text: TokenBatch
    groups: npt.NDArray[np.uint64]


class PairSource:
    """The batches of a run over some of the pairs.

    Args:
        pairs: All pairs.
        captions: Their captions.
        pictures: Their pictures.
        view: With size and normalisation set.
        chosen: Which pairs are read; those without a usable caption are left out.
        batch_pairs: The pairs of a step, over all processes.
        micro_pairs: The most pairs of a micro-batch.
        seed: Of order, views and captions.
    """

    def __init__(
        self,
        pairs: Pairs,
        captions: CaptionTokens,
        pictures: Pictures,
        view: ViewConfig,
        chosen: npt.NDArray[np.int64],
        *,
        batch_pairs: int,
        micro_pairs: int | None = None,
        seed: int = 0,
    ) -> None:
        self.captions, self.pictures = captions, pictures
        self.chosen = chosen[np.isin(chosen, captions.owners)]
        self.examples = PicturedExamples(
            pairs.ids[self.chosen], self.chosen, pictures, view, batch_size=batch_pairs, seed=seed
        )
        self.micro_pairs = micro_pairs or batch_pairs

    def num_steps(self, epoch: int) -> int:
        """How many steps an epoch has."""
        del epoch  # each has as many
        return -(-len(self.chosen) // self.examples.batch_size)

    def micro_batches(
        self, epoch: int, step: int, *, rank: int = 0, world_size: int = 1
    ) -> Sequence[ViewedPairs | StandIn[ViewedPairs]]:
        """One process's share of a step.

        Raises:
            DataError: No picture can be read, or one cannot and none is to be skipped.
        """
        members = self.examples.plan(epoch).step(step)
        ones = np.ones(len(members), np.int64)
        parts = split_step(ones, micro_tokens=self.micro_pairs, parts=world_size)
        return [
            self.batch(members[part], epoch)
            if len(part)
            else StandIn(self.batch(members[:1], epoch))
            for part in parts[rank::world_size]
        ]

    def batch(self, members: npt.NDArray[np.int64], epoch: int) -> ViewedPairs:
        """The batch of some of `chosen` in an epoch; pictures that cannot be read are left out."""
        members, images = self.examples.readable(members, epoch)
        ids = self.examples.ids[members]
        image1, image2 = self.examples.views(images, ids, epoch)
        chosen = self._choose(self.chosen[members], ids, epoch)
        return ViewedPairs(image1=image1, image2=image2, text1=self.captions.batch(chosen, ids))

    def _choose(
        self, pairs: npt.NDArray[np.int64], ids: npt.NDArray[np.uint64], epoch: int
    ) -> npt.NDArray[np.int64]:
        """One caption of each pair: (B,) int64."""
        owners = self.captions.owners
        first = np.searchsorted(owners, pairs, side="left")
        count = np.searchsorted(owners, pairs, side="right") - first
        zeros = np.zeros(len(ids), np.int64)
        drawn = uniforms(self.examples.seed, Stream.CAPTION, epoch, ids, zeros)
        return first + (drawn.astype(np.float64) * count).astype(np.int64)


class HeldOutPairs:
    """Every caption of some pairs, with the picture it belongs to and a wrong one.

    Args:
        pairs: All pairs.
        captions: Their captions.
        pictures: Their pictures.
        view: With size and normalisation set.
        groups: From `group_ids`.
        chosen: Which pairs are read.
        batch_pairs: Pairs read at once; nothing else depends on it.
    """

    def __init__(
        self,
        pairs: Pairs,
        captions: CaptionTokens,
        pictures: Pictures,
        view: ViewConfig,
        groups: npt.NDArray[np.uint64],
        chosen: npt.NDArray[np.int64],
        *,
        batch_pairs: int = 64,
    ) -> None:
        self.ids, self.captions, self.pictures, self.view = pairs.ids, captions, pictures, view
        self.groups = groups
        self.chosen = chosen[np.isin(chosen, captions.owners)]
        self.wrong = dict(
            zip(self.chosen.tolist(), wrong_pairs(groups, self.chosen).tolist(), strict=True)
        )
        self.batch_pairs = batch_pairs

    def __iter__(self) -> Iterator[JudgedPairs]:
        """Batches in the order of the pairs.

        Raises:
            DataError: No picture can be read, or one cannot and none is to be skipped.
        """
        found = False
        for first in range(0, len(self.chosen), self.batch_pairs):
            batch = self._batch(self.chosen[first : first + self.batch_pairs].tolist())
            if batch is not None:
                found = True
                yield batch
        if not found:
            raise DataError(f"no held-out picture can be read ({self.pictures.skipped})")

    def _batch(self, members: list[int]) -> JudgedPairs | None:
        """None where no picture can be read."""
        wanted = list(dict.fromkeys([*members, *(self.wrong[i] for i in members)]))
        images = dict(zip(wanted, self.pictures.load(wanted), strict=True))
        sound = [i for i in wanted if images[i] is not None]
        members = [i for i in members if i in sound and self.wrong[i] in sound]
        if not members:
            return None
        place = {index: row for row, index in enumerate(sound)}
        owners = self.captions.owners
        rows = np.flatnonzero(np.isin(owners, members))
        pixels = [view_pixels(image, self.view) for i in sound if (image := images[i]) is not None]
        return JudgedPairs(
            images=normalise(np.stack(pixels), self.view),
            right=torch.tensor([place[i] for i in owners[rows].tolist()]),
            wrong=torch.tensor([place[self.wrong[i]] for i in owners[rows].tolist()]),
            text=self.captions.batch(rows, self.ids[owners[rows]]),
            groups=self.groups[owners[rows]],
        )
