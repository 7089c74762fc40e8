"""What keeps a run from being spoilt: steps that are not finite are skipped, spikes are flagged."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Iterable

import torch

# A line's loss is a spike this many deviations above the median of the lines before it.
DEVIATIONS = 6.0
HISTORY, LEAST_HISTORY = 32, 8
# The median absolute deviation of a normal distribution is this share of its standard deviation.
MAD_OF_NORMAL = 0.6745
# Below this share of the loss nothing is called a spike, however quiet the lines before were.
LEAST_RISE = 0.1


class BadSteps:
    """How many of the last steps in a row were skipped.

    Attributes:
        limit: How many are too many.
    """

    def __init__(self, limit: int, in_a_row: int = 0) -> None:
        self.limit = limit
        self._in_a_row: torch.Tensor | float = float(in_a_row)

    def add(self, norm: torch.Tensor) -> None:
        """Take a step in, without waiting for its norm."""
        self._in_a_row = (self._in_a_row + 1.0) * (~torch.isfinite(norm)).float()

    @property
    def in_a_row(self) -> int:
        """The count; a GPU is waited for."""
        return int(self._in_a_row)

    @property
    def too_many(self) -> bool:
        """Whether the limit is reached; a GPU is waited for."""
        return self.in_a_row >= self.limit

    @property
    def free_to_ask(self) -> bool:
        """Whether asking waits for no device."""
        return not isinstance(self._in_a_row, torch.Tensor) or self._in_a_row.device.type == "cpu"


class SpikeWatch:
    """Compares each line's loss with the lines before it.

    Args:
        losses: Of the lines before, oldest first.
    """

    def __init__(self, losses: Iterable[float] = ()) -> None:
        self._losses = deque(losses, maxlen=HISTORY)

    def usual(self, loss: float) -> float | None:
        """The median of the lines before where `loss` is a spike above it, else None."""
        before = list(self._losses)
        self._losses.append(loss)
        if len(before) < LEAST_HISTORY:
            return None
        median = statistics.median(before)
        spread = statistics.median(abs(value - median) for value in before) / MAD_OF_NORMAL
        above = max(DEVIATIONS * spread, LEAST_RISE * abs(median))
        return median if loss > median + above else None
