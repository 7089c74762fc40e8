"""Training batches for person search: two views of each picture, its caption, one of its person.

An example is a caption with its picture, as in RaSa, so an epoch reads every caption once. What is
random follows from (seed, epoch, example), as in `maskery.data.pairs.batches`.

Shapes: C captions, B captions of a batch, G of all processes, H height, W width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from maskery.core.batch import Ints, TokenBatch
from maskery.core.errors import ConfigError
from maskery.core.random import Stream, uniforms
from maskery.core.task import StandIn
from maskery.data.corpus.examples import GOLDEN_GAMMA, mix
from maskery.data.pairs.batches import PicturedExamples, ReadPairs, ViewedPairs
from maskery.data.rows import hash_rows


@dataclass(frozen=True, kw_only=True)
class ViewedPersons(ViewedPairs):
    """B captions with their pictures, as `ImageTextTask` reads them."""

    text2: TokenBatch  # The same captions, some replaced by another caption of the same person
    person_ids: torch.Tensor  # (B,) int64
    replaced: torch.Tensor  # (B,) int64: 1 where `text2` is another caption
    crowd_ids: torch.Tensor  # (G,) int64: the persons of the same micro-batch on all processes


class PersonSource(PicturedExamples[ViewedPersons]):
    """The training batches of a run."""

    def __init__(
        self,
        read: ReadPairs,
        *,
        batch_pairs: int,
        micro_pairs: int | None = None,
        weak_pair_probability: float = 0.1,  # of a `text2` that is drawn from all of the person's
        seed: int = 0,
    ) -> None:
        pairs, captions, *_ = read
        owners = captions.owners
        # Only whole batches are read, as released: with fewer captions, all of them are one.
        sizes = min(batch_pairs, len(owners)), micro_pairs or batch_pairs
        # An id for each caption, from its pair's id and its place there.
        place = np.arange(len(owners)) - np.searchsorted(owners, owners, side="left")
        spread = (place.astype(np.uint64) + np.uint64(1)) * np.uint64(GOLDEN_GAMMA)
        super().__init__(read, mix(pairs.ids[owners] + spread), owners, *sizes, seed)
        self.persons = pairs.persons[owners]
        self.weak_pair_probability = weak_pair_probability
        # The captions of each person, person after person.
        self._by_person = np.argsort(self.persons, kind="stable")
        counts = np.bincount(self.persons)
        self._counts, self._firsts = counts, np.cumsum(counts) - counts
        self._content = hash_rows(captions.tokens.astype(np.int64), captions.boundaries)

    def num_steps(self, epoch: int) -> int:
        """Return the number of steps of an epoch."""
        del epoch  # each has as many
        return len(self.ids) // self.step_size

    def micro_batches(
        self, epoch: int, step: int, *, rank: int = 0, world_size: int = 1
    ) -> Sequence[ViewedPersons | StandIn[ViewedPersons]]:
        """Return one process's share of a step; see `PicturedExamples.micro_batches`."""
        if self.step_size < world_size:
            problem = f"a step has {self.step_size} pairs and there are {world_size} processes"
            raise ConfigError(f"{problem}: each needs one at least; raise --batch-pairs")
        return super().micro_batches(epoch, step, rank=rank, world_size=world_size)

    def batch(self, chosen: Ints, epoch: int = 0, crowd: Ints | None = None) -> ViewedPersons:
        """Return the batch of some captions in an epoch, and the persons of the crowd."""
        members, images = self.readable(chosen, epoch)
        ids = self.ids[members]
        # Each caption itself or, by chance, any of its person.
        zeros = np.zeros(len(members), np.int64)
        draws = (uniforms(self.seed, Stream.CAPTION, epoch, ids, zeros + n) for n in (0, 1))
        whether, which = (drawn.astype(np.float64) for drawn in draws)
        persons = self.persons[members]
        place = self._firsts[persons] + (which * self._counts[persons]).astype(np.int64)
        others = np.where(whether < self.weak_pair_probability, self._by_person[place], members)
        replaced = self._content[others] != self._content[members]
        return ViewedPersons(
            **self.views(images, ids, epoch),
            text1=self.captions.batch(members, ids),
            text2=self.captions.batch(others, ids),
            person_ids=torch.from_numpy(persons),
            replaced=torch.from_numpy(replaced.astype(np.int64)),
            crowd_ids=torch.from_numpy(self.persons[chosen if crowd is None else crowd]),
        )
