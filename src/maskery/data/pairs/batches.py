"""Batches of pairs: two random views of each picture and one of its captions, in a fixed order.

Everything random is a function of (seed, epoch, example): the order, the views, the caption. So a
batch does not depend on the number of processes, on threads or on resuming.

Shapes: N examples, B examples of a batch, I pictures, H height, W width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from maskery.core.batch import TokenBatch
from maskery.core.errors import DataError
from maskery.core.random import Int64Array, Stream, UInt64Array, uniforms
from maskery.core.task import StandIn
from maskery.data.batching import Plan, plan_epoch, split_step
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


class PicturedExamples:
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
        *,
        batch_size: int,
        micro_size: int | None,
        seed: int,
    ) -> None:
        self.ids, self.pairs = ids, pairs
        self.captions, self.pictures, self.view = captions, pictures, view
        self.batch_size, self.micro_size = batch_size, micro_size or batch_size
        self.seed = seed
        self._plan: tuple[int, Plan] | None = None

    def step_parts(
        self, epoch: int, step: int, world_size: int
    ) -> tuple[Int64Array, list[Int64Array]]:
        """Return the examples of a step, and their indices cut into micro-batches of all ranks."""
        members = self.plan(epoch).step(step)
        ones = np.ones(len(members), np.int64)
        return members, split_step(ones, micro_tokens=self.micro_size, parts=world_size)

    def plan(self, epoch: int) -> Plan:
        """Return the steps of an epoch; the latest is kept."""
        if self._plan is None or self._plan[0] != epoch:
            ones = np.ones(len(self.ids), np.int64)  # tokens of the budget that each counts as
            plan = plan_epoch(ones, seed=self.seed, epoch=epoch, batch_tokens=self.batch_size)
            self._plan = (epoch, plan)
        return self._plan[1]

    def readable(self, members: Int64Array, epoch: int) -> tuple[Int64Array, list[Image]]:
        """Return those examples whose picture can be read, or else the next in the order."""
        loaded = self.pictures.load(self.pairs[members].tolist())
        if any(image is not None for image in loaded):
            kept = np.array([image is not None for image in loaded])
            return members[kept], [image for image in loaded if image is not None]
        order = self.plan(epoch).order
        last = members[-1] if len(members) else order[-1]
        at = int(np.flatnonzero(order == last)[0])
        for example in np.roll(order, -at - 1).tolist():
            image = self.pictures.load([int(self.pairs[example])])[0]
            if image is not None:
                return np.array([example], np.int64), [image]
        raise DataError(f"no picture of the pairs can be read ({self.pictures.skipped})")

    def views(
        self, images: list[Image], ids: UInt64Array, epoch: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return two random views of each picture: (B, 3, H, W) float32, normalised."""
        first, second = (view_draws(self.seed, epoch, ids, view=number) for number in (0, 1))
        return view_stack(images, self.view, first), view_stack(images, self.view, second)


class PairSource(PicturedExamples):
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
        super().__init__(
            pairs.ids[chosen],
            chosen,
            captions,
            pictures,
            view,
            batch_size=batch_pairs,
            micro_size=micro_pairs,
            seed=seed,
        )

    def num_steps(self, epoch: int) -> int:
        """Return the number of steps of an epoch."""
        del epoch  # each has as many
        return -(-len(self.ids) // self.batch_size)

    def micro_batches(
        self, epoch: int, step: int, *, rank: int = 0, world_size: int = 1
    ) -> Sequence[ViewedPairs | StandIn[ViewedPairs]]:
        """Return one process's share of a step.

        Raises DataError if no picture can be read, or one cannot and none is to be skipped.
        """
        members, parts = self.step_parts(epoch, step, world_size)
        return [
            self.batch(members[part], epoch)
            if len(part)
            else StandIn(self.batch(members[:1], epoch))
            for part in parts[rank::world_size]
        ]

    def batch(self, members: Int64Array, epoch: int) -> ViewedPairs:
        """Return the batch of some examples in an epoch, without pictures that cannot be read."""
        members, images = self.readable(members, epoch)
        ids = self.ids[members]
        image1, image2 = self.views(images, ids, epoch)
        # One caption of each pair is drawn.
        owners, pairs = self.captions.owners, self.pairs[members]
        first = np.searchsorted(owners, pairs, side="left")
        count = np.searchsorted(owners, pairs, side="right") - first
        drawn = uniforms(self.seed, Stream.CAPTION, epoch, ids, np.zeros(len(ids), np.int64))
        chosen = first + (drawn.astype(np.float64) * count).astype(np.int64)
        return ViewedPairs(image1=image1, image2=image2, text1=self.captions.batch(chosen, ids))


class HeldOutPairs:
    """Every caption of the `chosen` pairs, with the picture it belongs to and a wrong one.

    `batch_pairs` of them are read at once; nothing else depends on it.
    """

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
        images = dict(zip(wanted, self.pictures.load(wanted), strict=True))
        sound = [i for i in wanted if images[i] is not None]
        members = [i for i in members if i in sound and self.wrong[i] in sound]
        if not members:
            return None
        place = {index: row for row, index in enumerate(sound)}
        owners = self.captions.owners
        rows = np.flatnonzero(np.isin(owners, members))
        shown = [image for image in images.values() if image is not None]
        return JudgedPairs(
            images=view_stack(shown, self.view),
            right=torch.tensor([place[i] for i in owners[rows].tolist()]),
            wrong=torch.tensor([place[self.wrong[i]] for i in owners[rows].tolist()]),
            text=self.captions.batch(rows, self.ids[owners[rows]]),
            groups=self.groups[owners[rows]],
        )
