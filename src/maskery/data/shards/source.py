"""The batches of a run over shards: a few shards at a time, in memory that does not grow.

In every epoch the shards are put in a random order and taken in blocks of a few. The examples of a
block are shuffled together and cut into steps. How many steps a block has follows from how long its
documents are, whatever their order, so any step of any epoch is found without reading a shard.

Shapes: W windows, S steps, B blocks.
"""

import heapq
import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from maskery.core.batch import Ids, Ints, TokenBatch
from maskery.core.errors import DataError
from maskery.core.task import StandIn
from maskery.data.batching import (
    DEVIATIONS,
    Batching,
    Bounds,
    Layout,
    Plan,
    TextSource,
    cut_by_sum,
    cut_windows,
    random_order,
    require_budget,
)
from maskery.data.corpus.files import MANIFEST
from maskery.data.shards.manifest import TOKENIZER, LengthCounts, Manifest, ShardEntry, read_shards
from maskery.data.shards.places import Place
from maskery.data.store import Documents

# The positions of the draws; 0 and 4 belong to `data.batching`.
SHARD_ORDER, WINDOW_ORDER, STEP_ORDER, HELD_OUT_ORDER = 8, 12, 16, 20
WINDOW_BITS = 40  # Window w of shard s is drawn for as s * 2**40 + w


class TokenShards:
    """The shards of a place: its manifest and the lengths of its documents, and no shard yet."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.manifest = Manifest.from_json(place.manifest(), f"'{place.name}/{MANIFEST}'")
        path = place.fetch(self.manifest.lengths)
        self.document_lengths = LengthCounts.open(path, self.manifest)

    def open(self, entries: Sequence[ShardEntry]) -> Documents:
        """Fetch, check and read some shards."""
        documents = read_shards(map(self.place.fetch, entries), vocab_size=self.manifest.vocab_size)
        if documents.num_documents != sum(entry.documents for entry in entries):
            problem = f"the shards of '{self.place.name}' have not as many documents as {MANIFEST}"
            raise DataError(f"{problem} says; repeat the maskery tokenize command that made them")
        return documents

    def held_out(self, max_tokens: int) -> Documents:
        """Read held-out shards up to a number of tokens, chosen at random if there are more."""
        entries = self.manifest.held_out
        if not entries:
            examples = f"the {self.manifest.documents:,} examples of '{self.place.name}'"
            fix = "name held-out text with --eval-data, or make the shards with a larger "
            raise DataError(f"nothing was held out of {examples}; {fix}--held-out-share")
        # The same ones in every run, whatever its seed.
        order = random_order(np.arange(len(entries)), position=HELD_OUT_ORDER, seed=0, epoch=0)
        tokens = np.cumsum([entries[number].tokens for number in order])
        # One is read whole, however many tokens it has.
        count = max(1, int(np.searchsorted(tokens, max_tokens, side="right")))
        return self.open([entries[number] for number in order[:count]])

    def tokenizer_folder(self) -> Path:
        """Return a local folder with the tokenizer that the shards were made with."""
        paths = [self.place.fetch(e, f"{TOKENIZER}/") for e in self.manifest.tokenizer_files]
        if not paths:
            raise DataError(f"'{self.place.name}' holds no tokenizer; name a --model with its own")
        return paths[0].parent


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """Blocks of an epoch: their shards, and their first steps."""

    blocks: list[list[int]]  # the shards of each, in the order they are read
    firsts: Ints  # (B + 1,): the first step of each block, and the number of steps
    tokens: int  # in all windows, special ones included

    @property
    def num_steps(self) -> int:
        """Number of steps, S."""
        return int(self.firsts[-1])

    def find(self, step: int) -> tuple[int, int]:
        """Return the block of a step, and the step's number within it."""
        block = int(np.searchsorted(self.firsts, step, side="right")) - 1
        return block, step - int(self.firsts[block])


class ShardSource:
    """The batches of a run over shards; implements `core.task.BatchSource`.

    The order is a pure function of (seed, epoch, the shards, `shuffle_shards`, lengths, budget). A
    step is made from the shards of its block alone: resuming reads nothing that went before.
    """

    def __init__(
        self,
        shards: TokenShards,
        batching: Batching,
        *,
        shuffle_shards: int = 4,  # shards whose examples are shuffled together
        cache_shards: int = 16,  # copies kept besides those in use, for shards from an address
        exclude: Ids | None = None,  # (n,) documents that are left out
    ) -> None:
        self.shards, self.batching, self.exclude = shards, batching, exclude
        self.shuffle_shards, self.cache_shards = shuffle_shards, cache_shards
        _ = batching.room  # a wrong length fails now, before anything is fetched
        self._epoch: tuple[int, Epoch] | None = None
        # The block in use and the next one, by (epoch, block).
        self._blocks: dict[tuple[int, int], Future[TextSource]] = {}
        # One thread: blocks are wanted in their order, one at a time.
        self._thread = ThreadPoolExecutor(1, "shards")

    def limit_micro_batches(self, tokens: int) -> None:
        """Set the most tokens of a micro-batch; blocks that are loaded stay as they are."""
        self.batching = replace(self.batching, micro_tokens=tokens)

    def epoch(self, number: int) -> Epoch:
        """Return the blocks and steps of an epoch; the latest is kept."""
        if self._epoch is None or self._epoch[0] != number:
            num_shards, settings = len(self.shards.manifest.shards), self.batching
            budget, layout, seed = settings.batch_tokens, settings.layout, settings.seed
            blocks = shard_blocks(num_shards, self.shuffle_shards, seed=seed, epoch=number)
            counts, tokens = [0], 0
            for block in blocks:
                histogram = self._histogram(block)
                counts.append(count_steps(histogram, batch_tokens=budget, layout=layout))
                tokens += int(np.arange(len(histogram)) @ histogram)
            firsts = np.cumsum(counts, dtype=np.int64)
            self._epoch = number, Epoch(blocks=blocks, firsts=firsts, tokens=tokens)
        return self._epoch[1]

    def _histogram(self, shards: Iterable[int]) -> Ints:
        """Count the windows of some shards by length, special tokens included."""
        rows = [self.shards.document_lengths.of(shard) for shard in shards]
        columns = (np.concatenate(column) for column in zip(*rows, strict=True))
        room, special = self.batching.room, self.batching.template.num_special
        return window_histogram(*columns, room=room, special=special)

    def bounds(self, epochs: int, num_processes: int = 1) -> Bounds:
        """Return limits of micro-batches; that of sequences nearly always holds. Reads no shard."""
        del epochs  # each has the same windows
        histogram = self._histogram(range(len(self.shards.manifest.shards)))
        lengths = np.arange(len(histogram))
        longest = int(lengths[histogram > 0].max(initial=1))
        mean = float(np.average(lengths, weights=histogram))
        spread = float(np.average((lengths - mean) ** 2, weights=histogram)) ** 0.5
        tokens = step = self.batching.batch_tokens
        if num_processes > 1:  # the longest goes to the emptiest part, as in `TextSource.bounds`
            tokens = min(tokens, -(-tokens // num_processes) + longest)
        tokens = min(tokens, max(self.batching.micro_tokens or tokens, longest))
        # Of a whole step, however it is shared out: as many windows of random lengths as fill it.
        count = step / mean
        above = DEVIATIONS * (spread / mean) * count**0.5
        return Bounds(num_tokens=tokens, num_sequences=math.ceil(count + above), longest=longest)

    def num_steps(self, epoch: int) -> int:
        """Return the number of steps of an epoch; reads no shard."""
        return self.epoch(epoch).num_steps

    def micro_batches(
        self, epoch: int, step: int, *, rank: int = 0, world_size: int = 1
    ) -> Sequence[TokenBatch | StandIn[TokenBatch]]:
        """Return one process's share of a step; reads the shards of its block if need be."""
        block, index = self.epoch(epoch).find(step)
        source = self._block(epoch, block)
        return source.micro_batches(epoch, index, rank=rank, world_size=world_size)

    def close(self) -> None:
        """End the thread that fetches."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _block(self, epoch: int, block: int) -> TextSource:
        """Return a block that is loaded, being loaded or loaded now; begins to load the next."""
        known, here, following = self.epoch(epoch), (epoch, block), (epoch, block + 1)
        # Others are let go before more come.
        self._blocks = {k: future for k, future in self._blocks.items() if k in (here, following)}
        if here not in self._blocks:
            self._blocks[here] = self._thread.submit(self._load, *here, known)
        source = self._blocks[here].result()
        if following not in self._blocks and block + 1 < len(known.blocks):
            self._blocks[following] = self._thread.submit(self._load, *following, known)
            self.shards.place.trim(2 * self.shuffle_shards + self.cache_shards)
        return source

    def _load(self, epoch: int, block: int, known: Epoch) -> TextSource:
        """Fetch the shards of a block and plan its steps."""
        numbers, settings = known.blocks[block], self.batching
        seed, layout, budget = settings.seed, settings.layout, settings.batch_tokens
        entries = [self.shards.manifest.shards[number] for number in numbers]
        joined = self.shards.open(entries)
        documents = np.arange(joined.num_documents)
        if self.exclude is not None:
            documents = documents[~np.isin(joined.ids, self.exclude)]
        source = TextSource(joined, documents, settings)
        ends = np.cumsum([entry.documents for entry in entries])
        owners = np.searchsorted(ends, source.windows.documents, side="right")
        num_windows = np.bincount(owners, minlength=len(numbers)).tolist()
        order = window_order(numbers, num_windows, seed=seed, epoch=epoch)
        if layout == "padded":
            order = order[np.argsort(source.lengths[order], kind="stable")]
        first = int(known.firsts[block])
        steps = int(known.firsts[block + 1]) - first
        boundaries = cut_exactly(source.lengths[order], steps, batch_tokens=budget, layout=layout)
        plan = Plan(order=order, boundaries=boundaries)
        if layout == "padded":  # steps of like length are neighbours until then
            plan = plan.in_order(step_order(first, steps, seed=seed, epoch=epoch))
        source.kept_plan = epoch, plan
        return source


def shard_blocks(num_shards: int, together: int, *, seed: int, epoch: int) -> list[list[int]]:
    """Put the shards in the random order of an epoch, in blocks of `together`."""
    numbers = np.arange(num_shards)
    order = random_order(numbers, position=SHARD_ORDER, seed=seed, epoch=epoch).tolist()
    return [order[first : first + together] for first in range(0, num_shards, together)]


def window_order(shards: list[int], num_windows: list[int], *, seed: int, epoch: int) -> Ints:
    """Return the windows of some shards, numbered end to end, in random order: (W,) int64."""
    names = [
        (np.uint64(shard) << np.uint64(WINDOW_BITS)) + np.arange(count, dtype=np.uint64)
        for shard, count in zip(shards, num_windows, strict=True)
    ]
    return random_order(np.concatenate(names), position=WINDOW_ORDER, seed=seed, epoch=epoch)


def step_order(first: int, count: int, *, seed: int, epoch: int) -> Ints:
    """Return steps in random order: (count,) int64; `first` tells an epoch's blocks apart."""
    names = np.uint64(first) + np.arange(count, dtype=np.uint64)
    return random_order(names, position=STEP_ORDER, seed=seed, epoch=epoch)


def window_histogram(lengths: Ints, counts: Ints, *, room: int, special: int) -> Ints:
    """Count the windows of each length that documents become, as `cut_windows` cuts them.

    `counts` tells how many documents have each of `lengths`, which are without special tokens, as
    `room` is. The lengths of the result, (room + special + 1,), are with the `special` tokens.
    """
    windows = cut_windows(lengths, np.arange(len(lengths)), room)
    histogram = np.zeros(room + special + 1, np.int64)
    np.add.at(histogram, windows.lengths + special, counts[windows.documents])
    return histogram


def count_steps(histogram: Ints, *, batch_tokens: int, layout: Layout) -> int:
    """Count the steps that windows need in the worst order.

    Packed, in any order: every step but the last is followed by a window that it has no room for,
    so it holds more than `batch_tokens - longest` tokens, and at least as many windows as fit were
    all of them the longest. Padded, sorted by length: exact.
    """
    present = np.flatnonzero(histogram)
    if not len(present):
        return 0
    longest = int(present[-1])
    require_budget(batch_tokens, longest)
    if layout == "padded":
        return len(padded_cuts(histogram, batch_tokens)) - 1
    tokens = int(present @ histogram[present])
    by_tokens = -(-tokens // (batch_tokens - longest + 1))
    by_windows = -(-int(histogram.sum()) // (batch_tokens // longest))
    return min(by_tokens, by_windows)


def padded_cuts(histogram: Ints, batch_tokens: int) -> Ints:
    """Cut windows sorted by length, each counted as long as the longest of its step: (S + 1,)."""
    cuts, start, done = [np.zeros(1, np.int64)], 0, 0
    for length in np.flatnonzero(histogram).tolist():
        fits, end = batch_tokens // length, done + int(histogram[length])
        if start + fits < end:
            # The open step ends where this length no longer fits, but takes none back.
            edges = np.arange(max(start + fits, done), end, fits, dtype=np.int64)
            cuts.append(edges)
            start = int(edges[-1])
        done = end
    cuts.append(np.array([done], np.int64))
    return np.concatenate(cuts)


def cut_exactly(lengths: Ints, num_steps: int, *, batch_tokens: int, layout: Layout) -> Ints:
    """Cut windows into a number of steps, of like size and none over the budget.

    `lengths` are (W,) in the order they are read, ascending in the padded layout; `num_steps` is
    from `count_steps` of these windows, or of more. Returns (num_steps + 1,) boundaries.
    """
    if len(lengths) < num_steps:
        problem = f"a block of shards has {len(lengths)} examples left for {num_steps} steps"
        why = "nearly all of it stands in --eval-data, too"
        raise DataError(f"{problem}: {why}; name other held-out text")
    if num_steps == 0:
        return np.zeros(1, np.int64)
    if layout == "padded":
        return split_fullest(padded_cuts(np.bincount(lengths), batch_tokens), num_steps)

    def fits(budget: int) -> bool:
        return len(cut_by_sum(lengths, budget)) - 1 <= num_steps

    longest = int(lengths.max())
    smallest = longest + bisect_left(range(longest, batch_tokens), True, key=fits)
    return split_fullest(cut_by_sum(lengths, smallest), num_steps)


def split_fullest(boundaries: Ints, num_steps: int) -> Ints:
    """Halve the steps of most windows until there are as many as asked for."""
    heap = [(a - b, a, b) for a, b in pairwise(boundaries.tolist())]
    heapq.heapify(heap)
    while len(heap) < num_steps:
        _, first, end = heapq.heappop(heap)
        middle = (first + end) // 2
        for a, b in ((first, middle), (middle, end)):
            heapq.heappush(heap, (a - b, a, b))
    return np.array([*sorted(first for _, first, _ in heap), boundaries[-1]], np.int64)
