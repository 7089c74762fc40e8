"""Mixtures: epochs that have so many tokens of each corpus.

An epoch reads the corpus that is scarce for its share once, and of each other one the next part of
its stream, which is the corpus in a new random order, again and again. So a corpus with twice the
tokens that an epoch takes is read in two epochs.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from maskery.core.batch import Ints, TokenBatch
from maskery.core.errors import ConfigError, meant
from maskery.core.task import StandIn
from maskery.data.batching import Batching, Bounds, TextSource, random_order
from maskery.data.shards.source import ShardSource, TokenShards
from maskery.data.store import Documents

# Tells these draws from the others of `random_order`.
STREAM_ORDER = 24
# Shares such as 0.33 0.33 0.34 are written with few digits.
ROUNDED = 0.001


def shares_of(mix: Sequence[str], corpora: Sequence[str]) -> list[float]:
    """Return the share of each corpus, from NAME=SHARE.

    A name is a corpus as it is given, or the name of its file or folder, with or without its
    ending. A ConfigError says what is no share, named twice or not at all, or does not sum to 1.
    """
    found: dict[str, float] = {}
    for entry in mix:
        name, _, text = entry.rpartition("=")
        named = [one for one in corpora if name in (one, Path(one).name, Path(one).stem)]
        if len(named) != 1:
            known = [Path(one).name for one in corpora]
            close = ", each corpus once and as it is given" if named else meant(name, known)
            many = "several" if named else "none"
            problem = f"'{name}' names {many} of the corpora ({', '.join(known)})"
            raise ConfigError(f"--mix {entry}: {problem}; write NAME=SHARE{close}")
        try:
            share = float(text)
        except ValueError:
            share = 0.0
        if not 0 < share <= 1 or named[0] in found:
            rule = "its share must be a number above 0 and at most 1"
            what = "it is there twice" if named[0] in found else rule
            raise ConfigError(f"--mix {entry}: {what}")
        found[named[0]] = share
    missing = [one for one in corpora if one not in found]
    if missing or abs(sum(found.values()) - 1) > ROUNDED:
        rest = f"{missing[0]} has no share" if missing else f"they sum to {sum(found.values()):g}"
        raise ConfigError(f"--mix: {rest}; give each corpus its share, 1 in all")
    return [found[one] for one in corpora]


class Shares:
    """Says what an epoch has of each corpus or set."""

    sizes: Sequence[int]  # tokens of each
    taken: Sequence[int]  # those of an epoch

    def describe(self, names: Sequence[str]) -> str:
        """Return what of each corpus an epoch has, in words."""
        parts = zip(names, self.taken, self.sizes, strict=True)
        told = (f"{tokens:,} ({tokens / size:.0%}) of {name}" for name, tokens, size in parts)
        return f"tokens of an epoch: {', '.join(told)}"


class MixedSource(TextSource, Shares):
    """The batches of a run over the documents of several corpora, in shares of tokens."""

    def __init__(
        self,
        store: Documents,  # all documents, (N,)
        documents: Ints,  # (n,), those that are trained on; of each corpus at least one
        batching: Batching,
        owners: Ints,  # (N,), the corpus of each document, from 0
        shares: Sequence[float],  # of each corpus; they sum to 1
    ) -> None:
        super().__init__(store, documents, batching)
        of_window = owners[self.windows.documents]
        self.members = [np.flatnonzero(of_window == number) for number in range(len(shares))]
        self.sizes = [int(self.lengths[members].sum()) for members in self.members]
        if 0 in self.sizes:
            number = self.sizes.index(0) + 1
            why = "it is held out, or stands in another corpus; name more of it"
            raise ConfigError(f"--mix: nothing of corpus {number} is left to train on: {why}")
        whole = min(size / share for size, share in zip(self.sizes, shares, strict=True))
        self.taken = [round(share * whole) for share in shares]

    def examples(self, epoch: int) -> Ints:
        """Return the windows that begin in an epoch's part of the stream of each corpus."""
        found = [np.zeros(0, np.int64)]
        for members, size, taken in zip(self.members, self.sizes, self.taken, strict=True):
            first, last = epoch * taken, (epoch + 1) * taken
            for turn in range(first // size, -(-last // size)):
                drawn = random_order(members, position=STREAM_ORDER, seed=self.seed, epoch=turn)
                order = members[drawn]
                starts = turn * size + np.cumsum(self.lengths[order]) - self.lengths[order]
                found.append(order[(starts >= first) & (starts < last)])
        return np.concatenate(found)


class MixedShards(Shares):
    """The batches of a run over several sets of shards; implements `core.task.BatchSource`.

    Each set has a part of the token budget, and steps of its own in that part. The set whose steps
    are the smallest for its share has one in every step of the run; each other one has as many as
    give it its share. What comes when is a pure function of (seed, step). A budget without room for
    a sequence of each set is a ConfigError.
    """

    def __init__(
        self,
        sets: Sequence[TokenShards],
        shares: Sequence[float],  # of each set; they sum to 1
        batching: Batching,  # of all of them together
        **settings: Any,  # of each `ShardSource`
    ) -> None:
        # Room for one sequence each, the rest by shares: every part can hold the longest.
        rest = batching.batch_tokens - len(sets) * batching.max_length
        if rest < 0:
            room = f"{len(sets)} x {batching.max_length} tokens; raise it, or lower --max-length"
            need = f"a step of {len(sets)} corpora needs room for a sequence of each, {room}"
            raise ConfigError(f"--batch-tokens is {batching.batch_tokens}: {need}")
        budgets = [batching.max_length + int(share * rest) for share in shares]
        self.batching = batching
        batchings = [replace(batching, batch_tokens=budget) for budget in budgets]
        paired = zip(sets, batchings, strict=True)
        self.parts = [ShardSource(one, own, **settings) for one, own in paired]
        self.sizes = [part.epoch(0).tokens for part in self.parts]
        counts = [part.num_steps(0) for part in self.parts]
        if 0 in counts:
            name = sets[counts.index(0)].place.name
            raise ConfigError(f"--mix: '{name}' has nothing to train on; leave it out")
        # Tokens of a run's step if a set took part in every one.
        each = zip(self.sizes, counts, shares, strict=True)
        possible = [size / count / share for size, count, share in each]
        # Steps of each set in a step of the run: 1 at most.
        self.rates = [min(possible) / tokens for tokens in possible]
        self.steps = min(int(count / rate) for count, rate in zip(counts, self.rates, strict=True))
        # The number of steps of a set before each of its epochs.
        self._begins = [[0, count] for count in counts]
        self.taken = [round(share * self.steps * min(possible)) for share in shares]

    def limit_micro_batches(self, tokens: int) -> None:
        """Set the most tokens of a micro-batch."""
        for part in self.parts:
            part.limit_micro_batches(tokens)

    def num_steps(self, epoch: int) -> int:
        """Return the number of steps of an epoch, the same for all."""
        del epoch
        return self.steps

    def bounds(self, epochs: int, num_processes: int = 1) -> Bounds:
        """Return limits of micro-batches, each of which is of one set."""
        each = [vars(part.bounds(epochs, num_processes)) for part in self.parts]
        return Bounds(**{name: max(one[name] for one in each) for name in each[0]})

    def micro_batches(
        self, epoch: int, step: int, *, rank: int = 0, world_size: int = 1
    ) -> Sequence[TokenBatch | StandIn[TokenBatch]]:
        """Return one process's share of a step; reads the shards of its blocks if need be."""
        number, found = epoch * self.steps + step, list[TokenBatch | StandIn[TokenBatch]]()
        for index, (part, rate) in enumerate(zip(self.parts, self.rates, strict=True)):
            own = int(number * rate)
            if int((number + 1) * rate) > own:
                place = self._place(index, own)
                found += part.micro_batches(*place, rank=rank, world_size=world_size)
        return found

    def close(self) -> None:
        """End the threads that fetch."""
        for part in self.parts:
            part.close()

    def _place(self, index: int, step: int) -> tuple[int, int]:
        """Return the epoch that holds a step of a set, counted from its first, and which it is."""
        part, begins = self.parts[index], self._begins[index]
        while begins[-1] <= step:
            begins.append(begins[-1] + part.num_steps(len(begins) - 1))
        epoch = int(np.searchsorted(begins, step, side="right")) - 1
        return epoch, step - begins[epoch]
