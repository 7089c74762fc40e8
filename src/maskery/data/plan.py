"""Which examples make up each step: a pure function of (seed, epoch, lengths, budget).

A step holds at most `batch_tokens` tokens over all processes and micro-batches together, so the
order of the data does not depend on how many there are. `PlannedSource` is the base of the sources
of text batches: a plan for each epoch, cut into micro-batches.

Shapes: W sequences, S steps.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from maskery.core.batch import TokenBatch
from maskery.core.errors import ConfigError
from maskery.core.random import Stream, random_words
from maskery.core.task import StandIn

Layout = Literal["packed", "padded"]
# Padded batches are cut from pools of this many budgets, sorted by length: large enough that
# neighbours are of like length, small enough that an epoch is still well mixed.
POOL_BUDGETS = 64


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The steps of an epoch.

    Attributes:
        order: (W,) int64: example indices, step after step.
        boundaries: (S + 1,) int64: step s takes `order[boundaries[s]:boundaries[s + 1]]`.
    """

    order: npt.NDArray[np.int64]
    boundaries: npt.NDArray[np.int64]

    @property
    def num_steps(self) -> int:
        """Number of steps, S."""
        return len(self.boundaries) - 1

    def step(self, index: int) -> npt.NDArray[np.int64]:
        """Return the example indices of one step."""
        return self.order[self.boundaries[index] : self.boundaries[index + 1]]

    def in_order(self, steps: npt.NDArray[np.int64]) -> Plan:
        """Return the plan with its steps in another order.

        Args:
            steps: (S,) int64: a permutation.
        """
        pieces = [self.step(int(step)) for step in steps]
        sizes = np.diff(self.boundaries)[steps]
        return Plan(
            order=np.concatenate(pieces) if pieces else self.order,
            boundaries=np.concatenate((np.zeros(1, np.int64), np.cumsum(sizes))),
        )


def plan_epoch(
    lengths: npt.NDArray[np.int64],
    *,
    seed: int,
    epoch: int,
    batch_tokens: int,
    layout: Layout = "packed",
) -> Plan:
    """Shuffle the examples and cut them into steps.

    Args:
        lengths: (W,) int64: the tokens of each example, special tokens included.
        seed: From 0 to 2**64 - 1.
        epoch: From 0.
        batch_tokens: The most tokens of a step; in the padded layout, padding counts.
        layout: In the padded layout, examples of like length share a step.

    Raises:
        ConfigError: An example alone exceeds the budget.
    """
    if len(lengths) and int(lengths.max()) > batch_tokens:
        raise ConfigError(
            f"--batch-tokens is {batch_tokens}, less than the longest example "
            f"({int(lengths.max())} tokens); raise it, or lower --max-length"
        )
    index = np.arange(len(lengths), dtype=np.int64)
    keys = random_words(seed, Stream.ORDER, epoch, index.astype(np.uint64), np.zeros_like(index))
    order = np.argsort(keys, kind="stable")
    if layout == "packed":
        return Plan(order=order, boundaries=cut_by_sum(lengths[order], batch_tokens))
    order = sort_in_pools(order, lengths, batch_tokens)
    boundaries = cut_by_padded_size(lengths[order], batch_tokens)
    return shuffle_steps(Plan(order=order, boundaries=boundaries), seed, epoch)


def cut_by_sum(lengths: npt.NDArray[np.int64], budget: int) -> npt.NDArray[np.int64]:
    """Cut where the next example would exceed the budget: (S + 1,) boundaries."""
    ends = np.cumsum(lengths)
    cuts = [0]
    while cuts[-1] < len(lengths):
        done = int(ends[cuts[-1] - 1]) if cuts[-1] else 0
        cuts.append(int(np.searchsorted(ends, done + budget, side="right")))
    return np.array(cuts, np.int64)


def cut_by_padded_size(lengths: npt.NDArray[np.int64], budget: int) -> npt.NDArray[np.int64]:
    """Cut as `cut_by_sum` does, each example of a step counted as long as its longest."""
    cuts, longest, count = [0], 0, 0
    for index, length in enumerate(lengths.tolist()):
        longest = max(longest, length)
        count += 1
        if longest * count > budget:
            cuts.append(index)
            longest, count = length, 1
    if len(lengths):
        cuts.append(len(lengths))
    return np.array(cuts, np.int64)


def sort_in_pools(
    order: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64], batch_tokens: int
) -> npt.NDArray[np.int64]:
    """Sort stretches of a shuffled order by length; ties keep their shuffled order."""
    pool = (np.cumsum(lengths[order]) - 1) // (POOL_BUDGETS * batch_tokens)
    return order[np.lexsort((lengths[order], pool))]


def shuffle_steps(plan: Plan, seed: int, epoch: int) -> Plan:
    """Put the steps of a plan in a random order."""
    steps = np.arange(plan.num_steps, dtype=np.int64)
    keys = random_words(seed, Stream.ORDER, epoch, steps.astype(np.uint64), np.full_like(steps, 4))
    return plan.in_order(np.argsort(keys, kind="stable"))


def split_step(
    lengths: npt.NDArray[np.int64], *, micro_tokens: int, parts: int
) -> list[npt.NDArray[np.int64]]:
    """Cut a step into micro-batches: at least `parts`, a multiple of it, none over the budget.

    Where one example exceeds the budget by itself, its length is the budget. Longest first into the
    emptiest, so that the parts are of like size.

    Args:
        lengths: (n,) int64: the tokens of the step's examples.
        micro_tokens: The most tokens of a micro-batch.
        parts: Number of processes.

    Returns:
        Indices into `lengths`, each ascending; empty where there are fewer examples than parts.
    """
    budget = max(micro_tokens, int(lengths.max(initial=0)))
    count = max(1, -(-int(lengths.sum()) // budget))
    while True:
        count = -(-count // parts) * parts
        sizes = np.zeros(count, np.int64)
        members: list[list[int]] = [[] for _ in range(count)]
        for index in np.argsort(-lengths, kind="stable").tolist():
            emptiest = int(np.argmin(sizes))
            sizes[emptiest] += lengths[index]
            members[emptiest].append(index)
        if int(sizes.max()) <= budget:
            return [np.array(sorted(m), np.int64) for m in members]
        count += 1


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """Upper limits of the micro-batches of a run.

    Attributes:
        num_tokens: Tokens.
        num_sequences: Sequences.
        longest: Tokens of a sequence.
    """

    num_tokens: int
    num_sequences: int
    longest: int


class PlannedSource(ABC):
    """Batches of sequences whose lengths are known; implements `core.task.BatchSource`.

    Args:
        lengths: (W,) int64: the tokens of each sequence, special ones included.
        batch_tokens: The most tokens of a step.
        micro_tokens: The most tokens of a micro-batch. Default: `batch_tokens`.
        layout: Packed or padded.
        seed: Of the order.
    """

    def __init__(
        self,
        lengths: npt.NDArray[np.int64],
        *,
        batch_tokens: int,
        micro_tokens: int | None,
        layout: Layout,
        seed: int,
    ) -> None:
        self.lengths = lengths
        self.batch_tokens, self.micro_tokens = batch_tokens, micro_tokens or batch_tokens
        self.layout: Layout = layout
        self.seed = seed
        self._plan: tuple[int, Plan] | None = None

    @abstractmethod
    def assemble(self, chosen: npt.NDArray[np.int64]) -> TokenBatch:
        """Return the batch of some sequences, in the order given."""

    def plan(self, epoch: int) -> Plan:
        """Return the steps of an epoch; the latest is kept."""
        if self._plan is None or self._plan[0] != epoch:
            plan = plan_epoch(
                self.lengths,
                seed=self.seed,
                epoch=epoch,
                batch_tokens=self.batch_tokens,
                layout=self.layout,
            )
            self._plan = (epoch, plan)
        return self._plan[1]

    def num_steps(self, epoch: int) -> int:
        """Return the number of steps of an epoch."""
        return self.plan(epoch).num_steps

    def micro_batches(
        self, epoch: int, step: int, *, rank: int = 0, world_size: int = 1
    ) -> Sequence[TokenBatch | StandIn[TokenBatch]]:
        """Return one process's share of a step."""
        chosen = self.plan(epoch).step(step)
        parts = split_step(self.lengths[chosen], micro_tokens=self.micro_tokens, parts=world_size)
        return [
            self.batch(chosen[part]) if len(part) else StandIn(self.batch(chosen[:1]))
            for part in parts[rank::world_size]
        ]

    def bounds(self, epochs: int, num_processes: int = 1) -> Bounds:
        """Return limits that hold for the first epochs on every process."""
        tokens = sequences = 0
        for epoch in range(epochs):
            plan = self.plan(epoch)
            ends = np.concatenate(([0], np.cumsum(self.lengths[plan.order])))[plan.boundaries]
            tokens = max(tokens, int(np.diff(ends).max(initial=0)))
            sequences = max(sequences, int(np.diff(plan.boundaries).max(initial=0)))
        longest = int(self.lengths.max(initial=1))
        if num_processes > 1:
            # The longest goes to the emptiest part, so none is above the mean by more than one.
            tokens = min(tokens, -(-tokens // num_processes) + longest)
        return Bounds(
            num_tokens=min(tokens, max(self.micro_tokens, longest)),
            num_sequences=sequences,
            longest=longest,
        )

    def batch(self, chosen: npt.NDArray[np.int64]) -> TokenBatch:
        """Return the batch of some sequences, shortest first: equal lengths are neighbours."""
        return self.assemble(chosen[np.argsort(self.lengths[chosen], kind="stable")])
