"""What the sources of text batches share: a plan for each epoch, cut into micro-batches.

Shapes: W sequences.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from maskery.core.batch import TokenBatch
from maskery.core.task import StandIn
from maskery.data.plan import Layout, Plan, plan_epoch, split_step


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """What no micro-batch of a run exceeds.

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
        """The batch of some sequences, in the order given."""

    def plan(self, epoch: int) -> Plan:
        """The steps of an epoch; the latest is kept."""
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
        """How many steps an epoch has."""
        return self.plan(epoch).num_steps

    def micro_batches(
        self, epoch: int, step: int, *, rank: int = 0, world_size: int = 1
    ) -> Sequence[TokenBatch | StandIn[TokenBatch]]:
        """One process's share of a step."""
        chosen = self.plan(epoch).step(step)
        parts = split_step(self.lengths[chosen], micro_tokens=self.micro_tokens, parts=world_size)
        return [
            self.batch(chosen[part]) if len(part) else StandIn(self.batch(chosen[:1]))
            for part in parts[rank::world_size]
        ]

    def bounds(self, epochs: int, num_processes: int = 1) -> Bounds:
        """What no micro-batch of the first epochs exceeds, on any of the processes."""
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
        """The batch of some sequences, shortest first, so that equal lengths are neighbours."""
        return self.assemble(chosen[np.argsort(self.lengths[chosen], kind="stable")])
