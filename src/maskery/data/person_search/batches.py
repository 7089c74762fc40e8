"""Training batches for person search: two views of each picture, its caption, one of its person.

An example is a caption with its picture, as in RaSa, so an epoch reads every caption once.
Everything random is a function of (seed, epoch, example): the order, the views, the weak pairs. So
a batch does not depend on the number of processes, on threads or on resuming.

Shapes: C captions, B captions of a batch, G of all processes, H height, W width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from maskery.core.batch import TokenBatch
from maskery.core.errors import ConfigError
from maskery.core.random import Stream, uniforms
from maskery.core.task import StandIn
from maskery.data.corpus.examples import GOLDEN_GAMMA, mix
from maskery.data.images.config import ViewConfig
from maskery.data.pairs.batches import PicturedExamples, ViewedPairs
from maskery.data.pairs.captions import CaptionTokens
from maskery.data.pairs.pairs import Pairs
from maskery.data.pairs.pictures import Pictures
from maskery.data.rows import hash_rows


@dataclass(frozen=True, kw_only=True)
class ViewedPersons(ViewedPairs):
    """B captions with their pictures, as `ImageTextTask` reads them."""

    text2: TokenBatch  # The same captions, some replaced by another caption of the same person
    person_ids: torch.Tensor  # (B,) int64
    replaced: torch.Tensor  # (B,) int64: 1 where `text2` is another caption
    crowd_ids: torch.Tensor  # (G,) int64: the persons of the same micro-batch on all processes


class PersonSource(PicturedExamples):
    """The training batches of a run.

    An epoch has whole batches only, as released; what is left over is read in other epochs, whose
    order is another. `weak_pair_probability` is the share of captions whose `text2` is drawn from
    all of the person's.
    """

    def __init__(
        self,
        pairs: Pairs,
        captions: CaptionTokens,
        pictures: Pictures,
        view: ViewConfig,
        *,
        batch_pairs: int,
        micro_pairs: int | None = None,
        weak_pair_probability: float = 0.1,
        seed: int = 0,
    ) -> None:
        super().__init__(
            caption_ids(pairs.ids, captions),
            captions.owners,
            captions,
            pictures,
            view,
            # Only whole batches are read: with fewer captions than one has, all of them are one.
            batch_size=min(batch_pairs, len(captions.owners)),
            micro_size=micro_pairs or batch_pairs,
            seed=seed,
        )
        self.persons = pairs.persons[captions.owners]
        self.weak_pair_probability = weak_pair_probability
        # The captions of each person, person after person.
        self._by_person = np.argsort(self.persons, kind="stable")
        counts = np.bincount(self.persons)
        self._counts, self._firsts = counts, np.cumsum(counts) - counts
        boundaries = captions.boundaries
        self._content = hash_rows(captions.tokens.astype(np.int64), boundaries)

    def num_steps(self, epoch: int) -> int:
        """Return the number of steps of an epoch."""
        del epoch  # each has as many
        return len(self.ids) // self.batch_size

    def micro_batches(
        self, epoch: int, step: int, *, rank: int = 0, world_size: int = 1
    ) -> Sequence[ViewedPersons | StandIn[ViewedPersons]]:
        """Return one process's share of a step: every `world_size`-th caption of it.

        Where micro-batches are so small that some processes are left without one, they compute a
        caption of the step once more and count it for nothing; it is one more candidate, too.
        """
        members, parts = self.step_parts(epoch, step, world_size)
        if len(members) < world_size:
            raise ConfigError(
                f"a step has {len(members)} pairs and there are {world_size} processes: each needs "
                f"one at least; raise --batch-pairs"
            )
        batches: list[ViewedPersons | StandIn[ViewedPersons]] = []
        for turn in range(0, len(parts), world_size):
            mine, crowd = parts[turn + rank], np.concatenate(parts[turn : turn + world_size])
            batch = self.batch(members[mine if len(mine) else [0]], epoch, members[crowd])
            batches.append(batch if len(mine) else StandIn(batch))
        return batches

    def batch(
        self,
        members: npt.NDArray[np.int64],
        epoch: int,
        crowd: npt.NDArray[np.int64] | None = None,
    ) -> ViewedPersons:
        """Return the batch of some captions in an epoch, without pictures that cannot be read.

        `members`, (B,) int64, are its captions; `crowd`, (G,), those of all processes (default:
        these).
        """
        crowd_ids = torch.from_numpy(self.persons[members if crowd is None else crowd])
        members, images = self.readable(members, epoch)
        ids = self.ids[members]
        image1, image2 = self.views(images, ids, epoch)
        others = self._weak(members, epoch)
        return ViewedPersons(
            image1=image1,
            image2=image2,
            text1=self.captions.batch(members, ids),
            text2=self.captions.batch(others, ids),
            person_ids=torch.from_numpy(self.persons[members]),
            replaced=torch.from_numpy(
                (self._content[others] != self._content[members]).astype(np.int64)
            ),
            crowd_ids=crowd_ids,
        )

    def _weak(self, members: npt.NDArray[np.int64], epoch: int) -> npt.NDArray[np.int64]:
        """Return for each caption itself or, by chance, any of its person: (B,) int64."""
        ids, zeros = self.ids[members], np.zeros(len(members), np.int64)
        whether, which = (
            uniforms(self.seed, Stream.CAPTION, epoch, ids, zeros + place).astype(np.float64)
            for place in (0, 1)
        )
        persons = self.persons[members]
        place = self._firsts[persons] + (which * self._counts[persons]).astype(np.int64)
        drawn: npt.NDArray[np.int64] = self._by_person[place]
        return np.where(whether < self.weak_pair_probability, drawn, members)


def caption_ids(
    pair_ids: npt.NDArray[np.uint64], captions: CaptionTokens
) -> npt.NDArray[np.uint64]:
    """Return (C,) uint64: an id for each caption, from its pair's id and its place there."""
    owners = captions.owners
    place = np.arange(len(owners)) - np.searchsorted(owners, owners, side="left")
    spread = (place.astype(np.uint64) + np.uint64(1)) * np.uint64(GOLDEN_GAMMA)
    return mix(pair_ids[owners] + spread)
