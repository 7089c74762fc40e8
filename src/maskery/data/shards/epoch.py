"""The steps of an epoch over shards, counted without reading a shard.

In every epoch the shards are put in a random order and taken in blocks of a few. The examples of a
block are shuffled together and cut into steps. How many steps a block has follows from how long its
documents are, whatever their order, so any step of any epoch is found at once.

Shapes: W windows, S steps, B blocks.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from maskery.core.errors import DataError
from maskery.data.batching import Layout, cut_by_sum, over_budget, random_order

# The positions of the draws; 0 and 4 belong to `data.batching`.
SHARD_ORDER, WINDOW_ORDER, STEP_ORDER, HELD_OUT_ORDER = 8, 12, 16, 20
# Window w of shard s is drawn for as s * 2**40 + w.
WINDOW_BITS = 40

Counts = npt.NDArray[np.int64]


def window_histogram(lengths: Counts, counts: Counts, *, room: int, special: int) -> Counts:
    """Count the windows of each length that documents become, as `cut_windows` cuts them.

    `counts` tells how many documents have each of `lengths`, which are without special tokens, as
    `room` is, the most tokens of a window. The lengths of the result, (room + special + 1,) int64,
    are with the `special` tokens.
    """
    lengths, counts = lengths[lengths > 0], counts[lengths > 0]
    pieces = -(-lengths // room)
    size, longer = lengths // pieces, lengths % pieces
    histogram = np.zeros(room + special + 1, np.int64)
    np.add.at(histogram, size + special, counts * (pieces - longer))
    uneven = longer > 0
    np.add.at(histogram, size[uneven] + special + 1, (counts * longer)[uneven])
    return histogram


def count_steps(histogram: Counts, *, batch_tokens: int, layout: Layout) -> int:
    """Count the steps that windows need in the worst order.

    Packed, in any order: every step but the last is followed by a window that it has no room for,
    so it holds more than `batch_tokens - longest` tokens, and at least as many windows as fit were
    all of them the longest. Padded, sorted by length: exact.
    """
    present = np.flatnonzero(histogram)
    if not len(present):
        return 0
    longest = int(present[-1])
    if longest > batch_tokens:
        raise over_budget(longest, batch_tokens)
    if layout == "padded":
        return len(padded_cuts(histogram, batch_tokens)) - 1
    tokens = int(present @ histogram[present])
    by_tokens = -(-tokens // (batch_tokens - longest + 1))
    by_windows = -(-int(histogram.sum()) // (batch_tokens // longest))
    return min(by_tokens, by_windows)


def padded_cuts(histogram: Counts, batch_tokens: int) -> Counts:
    """Cut windows sorted by length, each counted as long as the longest of its step: (S + 1,)."""
    cuts, start, done = [np.zeros(1, np.int64)], 0, 0
    for length in np.flatnonzero(histogram).tolist():
        fits, end = batch_tokens // length, done + int(histogram[length])
        if start + fits < end:
            # The open step ends where this length no longer fits, but takes none back.
            first = max(start + fits, done)
            edges = np.arange(first, end, fits, dtype=np.int64)
            cuts.append(edges)
            start = int(edges[-1])
        done = end
    cuts.append(np.array([done], np.int64))
    return np.concatenate(cuts)


def cut_exactly(lengths: Counts, num_steps: int, *, batch_tokens: int, layout: Layout) -> Counts:
    """Cut windows into a number of steps, of like size and none over the budget.

    `lengths` are (W,) in the order they are read, ascending in the padded layout; `num_steps` is
    from `count_steps` of these windows, or of more. Returns (num_steps + 1,) boundaries.
    """
    if len(lengths) < num_steps:
        raise DataError(
            f"a block of shards has {len(lengths)} examples left for {num_steps} steps: nearly all "
            "of it stands in --eval-data, too; name other held-out text"
        )
    if num_steps == 0:
        return np.zeros(1, np.int64)
    if layout == "padded":
        return split_fullest(padded_cuts(np.bincount(lengths), batch_tokens), num_steps)
    low, high = int(lengths.max(initial=1)) - 1, batch_tokens
    while high - low > 1:  # the smallest budget that needs no more steps
        middle = (low + high) // 2
        if len(cut_by_sum(lengths, middle)) - 1 <= num_steps:
            high = middle
        else:
            low = middle
    return split_fullest(cut_by_sum(lengths, high), num_steps)


def split_fullest(boundaries: Counts, num_steps: int) -> Counts:
    """Halve the steps of most windows until there are as many as asked for."""
    missing = num_steps - (len(boundaries) - 1)
    if missing <= 0:
        return boundaries
    heap = [(int(a - b), int(a), int(b)) for a, b in pairwise(boundaries)]
    heapq.heapify(heap)
    extra = []
    for _ in range(missing):
        _, first, end = heapq.heappop(heap)
        middle = (first + end) // 2
        extra.append(middle)
        heapq.heappush(heap, (first - middle, first, middle))
        heapq.heappush(heap, (middle - end, middle, end))
    return np.sort(np.concatenate((boundaries, extra)))


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """Blocks of an epoch: their shards, and their first steps."""

    blocks: list[list[int]]  # the shards of each, in the order they are read
    firsts: Counts  # (B + 1,): the first step of each block, and the number of steps

    @property
    def num_steps(self) -> int:
        """Number of steps, S."""
        return int(self.firsts[-1])

    def find(self, step: int) -> tuple[int, int]:
        """Return the block of a step, and the step's number within it."""
        block = int(np.searchsorted(self.firsts, step, side="right")) - 1
        return block, step - int(self.firsts[block])

    def block_steps(self, block: int) -> int:
        """Return the number of steps of a block."""
        return int(self.firsts[block + 1] - self.firsts[block])


def shard_blocks(num_shards: int, together: int, *, seed: int, epoch: int) -> list[list[int]]:
    """Put the shards in the random order of an epoch, in blocks of `together`."""
    numbers = np.arange(num_shards, dtype=np.uint64)
    order = random_order(numbers, position=SHARD_ORDER, seed=seed, epoch=epoch).tolist()
    return [order[first : first + together] for first in range(0, num_shards, together)]


def window_order(shards: list[int], num_windows: list[int], *, seed: int, epoch: int) -> Counts:
    """Return the windows of some shards, numbered end to end, in random order: (W,) int64."""
    names = [
        (np.uint64(shard) << np.uint64(WINDOW_BITS)) + np.arange(count, dtype=np.uint64)
        for shard, count in zip(shards, num_windows, strict=True)
    ]
    return random_order(np.concatenate(names), position=WINDOW_ORDER, seed=seed, epoch=epoch)


def step_order(first: int, count: int, *, seed: int, epoch: int) -> Counts:
    """Return steps in random order: (count,) int64; `first` tells an epoch's blocks apart."""
    names = np.uint64(first) + np.arange(count, dtype=np.uint64)
    return random_order(names, position=STEP_ORDER, seed=seed, epoch=epoch)
