"""Batches of text: the examples of each step, a pure function of (seed, epoch, lengths, budget).

A step holds at most `batch_tokens` tokens over all processes and micro-batches together, so the
order of the data does not depend on how many there are. `TextSource` makes a plan for each epoch
and cuts its steps into micro-batches. Documents are cut into windows in special tokens, not padded.

Shapes: N documents, W windows (sequences), S steps, B sequences of a batch, T tokens.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from heapq import heapreplace
from itertools import chain, pairwise
from typing import Any, Generic, Literal, Self, TypeVar

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerBase

from maskery.core.batch import Bools, Ids, Ints, TokenBatch
from maskery.core.errors import ConfigError, ModelError
from maskery.core.random import Stream, random_words
from maskery.core.task import StandIn
from maskery.data.store import Documents

BatchT = TypeVar("BatchT")
Layout = Literal["packed", "padded"]
# Padded batches are cut from pools of this many budgets, sorted by length: large enough that
# neighbours are of like length, small enough that an epoch is still well mixed.
POOL_BUDGETS = 64
# The positions of the draws; 8 to 20 belong to `data.shards`.
EXAMPLE_ORDER, STEP_ORDER = 0, 4
# Room above the mean of a count: one batch in a thousand million has more, if it is about normal.
DEVIATIONS = 6.0


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The steps of an epoch: step s takes `order[boundaries[s]:boundaries[s + 1]]`."""

    order: Ints  # (W,), example indices
    boundaries: Ints  # (S + 1,)

    @property
    def num_steps(self) -> int:
        """Number of steps, S."""
        return len(self.boundaries) - 1

    def step(self, index: int) -> Ints:
        """Return the example indices of one step."""
        return self.order[self.boundaries[index] : self.boundaries[index + 1]]

    def in_order(self, steps: Ints) -> "Plan":
        """Return the plan with its steps in another order, a permutation (S,) int64."""
        order = np.concatenate([self.order[:0], *map(self.step, steps.tolist())])
        boundaries = np.append(0, np.cumsum(np.diff(self.boundaries)[steps]))
        return Plan(order=order, boundaries=boundaries)


def plan_epoch(
    lengths: Ints, *, seed: int, epoch: int, batch_tokens: int, layout: Layout = "packed"
) -> Plan:
    """Shuffle the examples, (W,) lengths with special tokens, and cut them into steps."""
    require_budget(batch_tokens, int(lengths.max(initial=0)))
    order = random_order(np.arange(len(lengths)), position=EXAMPLE_ORDER, seed=seed, epoch=epoch)
    if layout == "packed":
        return Plan(order=order, boundaries=cut_by_sum(lengths[order], batch_tokens))
    # Examples of like length share a step, of which padding counts as tokens; ties stay shuffled.
    pool = (np.cumsum(lengths[order]) - 1) // (POOL_BUDGETS * batch_tokens)
    order = order[np.lexsort((lengths[order], pool))]
    plan = Plan(order=order, boundaries=cut_by_padded_size(lengths[order], batch_tokens))
    # Else the steps of a pool would come in order of length.
    names = np.arange(plan.num_steps)
    return plan.in_order(random_order(names, position=STEP_ORDER, seed=seed, epoch=epoch))


def random_order(names: Ids | Ints, *, position: int, seed: int, epoch: int) -> Ints:
    """Return the order of some things by a number drawn for the name of each: (N,) int64.

    `position`, a multiple of four, tells the uses of this apart.
    """
    ids, positions = names.view(np.uint64), np.full(len(names), position, np.int64)
    return np.argsort(random_words(seed, Stream.ORDER, epoch, ids, positions), kind="stable")


def require_budget(batch_tokens: int, longest: int) -> None:
    """Refuse a budget that the longest example exceeds."""
    if longest > batch_tokens:
        problem = f"is {batch_tokens}, less than the longest example ({longest} tokens)"
        raise ConfigError(f"--batch-tokens {problem}; raise it, or lower --max-length")


def cut_by_sum(lengths: Ints, budget: int) -> Ints:
    """Cut before what exceeds the budget, or exceeds it by itself: (S + 1,) boundaries."""
    ends, cuts = np.append(0, np.cumsum(lengths)), [0]
    while cuts[-1] < len(lengths):
        fitting = int(np.searchsorted(ends, ends[cuts[-1]] + budget, side="right")) - 1
        # At least one more: an example over the budget must not stop the loop.
        cuts.append(max(fitting, cuts[-1] + 1))
    return np.array(cuts, np.int64)


def cut_by_padded_size(lengths: Ints, budget: int, most: float = math.inf) -> Ints:
    """Cut as `cut_by_sum` does, each example of a step as long as its longest; `most` in a step."""
    cuts, longest, count = [0], 0, 0
    for index, length in enumerate(lengths.tolist()):
        longest, count = max(longest, length), count + 1
        if longest * count > budget or count > most:
            cuts.append(index)
            longest, count = length, 1
    if len(lengths):
        cuts.append(len(lengths))
    return np.array(cuts, np.int64)


def split_step(lengths: Ints, *, micro_tokens: int, parts: int) -> list[Ints]:
    """Cut a step into micro-batches: at least `parts`, a multiple of it, none over the budget.

    Returns indices into `lengths`, each ascending; empty where there are fewer examples than parts.
    """
    # An example that exceeds the budget by itself is the budget.
    budget = max(micro_tokens, int(lengths.max(initial=0)))
    count = max(1, -(-int(lengths.sum()) // budget))
    order = np.argsort(-lengths, kind="stable").tolist()
    while True:
        count = -(-count // parts) * parts
        if count == 1:  # nearly always: no loop, which would hold up the step beside it
            return [np.arange(len(lengths))]
        parts_by_size = [(0, part) for part in range(count)]
        owners = np.zeros(len(lengths), np.int64)
        # Longest first into the emptiest, so that the parts are of like size.
        for index, length in zip(order, lengths[order].tolist(), strict=True):
            size, owners[index] = parts_by_size[0]
            heapreplace(parts_by_size, (size + length, owners[index]))
        if max(parts_by_size)[0] <= budget:
            return [np.flatnonzero(owners == part) for part in range(count)]
        count += 1


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """Upper limits of the micro-batches of a run; `longest` is the tokens of a sequence."""

    num_tokens: int
    num_sequences: int
    longest: int


@dataclass(frozen=True, kw_only=True)
class Windows:
    """Stretches of documents: each (W,), in tokens, special ones not counted."""

    documents: Ints
    starts: Ints  # first tokens within their documents
    lengths: Ints


def cut_windows(lengths: Ints, chosen: Ints, max_tokens: int) -> Windows:
    """Cut the chosen of (N,) documents into as few windows as they need, of like length."""
    # Equal windows give every token context; full windows with a remainder would leave stubs.
    chosen = chosen[lengths[chosen] > 0]
    total = lengths[chosen]
    num_windows = -(-total // max_tokens)
    documents = np.repeat(chosen, num_windows)
    index = np.arange(len(documents)) - np.repeat(np.cumsum(num_windows) - num_windows, num_windows)
    size, longer = (np.repeat(part, num_windows) for part in np.divmod(total, num_windows))
    starts = index * size + np.minimum(index, longer)
    sizes = size + (index < longer)  # the first ones take the remainder, a token each
    return Windows(documents=documents, starts=starts, lengths=sizes)


@dataclass(frozen=True, kw_only=True)
class Template:
    """The ids that a tokenizer puts around a sequence: for BERT, `[CLS]` before, `[SEP]` after."""

    prefix: tuple[int, ...]
    suffix: tuple[int, ...]

    @property
    def num_special(self) -> int:
        """Number of special tokens of a sequence."""
        return len(self.prefix) + len(self.suffix)

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> Self:
        """Read it off what the tokenizer does to a one-word text."""
        # "a" may be no letter of its script: then any of the tokens that it has.
        others = set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids)
        for probe in chain(["a"], (tokenizer.decode([index]) for index in sorted(others))):
            if bare := tokenizer(probe, add_special_tokens=False)["input_ids"]:
                break
        full = tokenizer(probe, add_special_tokens=True)["input_ids"]
        # Where the bare text lies within the full one, template tokens are what is around it.
        for start in range(len(full) - len(bare) + 1 if bare else 0):
            end = start + len(bare)
            if full[start:end] == bare:
                return cls(prefix=tuple(full[:start]), suffix=tuple(full[end:]))
        problem = f"changes a text when it adds special tokens ({bare} became {full})"
        fix = "use another tokenizer"
        raise ModelError(f"the tokenizer of '{tokenizer.name_or_path}' {problem}; {fix}")


def assemble(
    tokens: npt.NDArray[np.integer[Any]],
    word_starts: Bools,
    firsts: Ints,  # (B,) of the stretches in `tokens`
    lengths: Ints,  # (B,)
    example_ids: Ids,  # (B,) of their documents
    starts: Ints,  # (B,) within these
    template: Template,
) -> TokenBatch:
    """Lay stretches of a token array, memory-mapped or not, end to end in special tokens."""
    before, after = len(template.prefix), len(template.suffix)
    bounds = np.concatenate(([0], np.cumsum(lengths + before + after)))
    inside = np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    source = inside + np.repeat(firsts, lengths)
    target = inside + np.repeat(bounds[:-1] + before, lengths)
    ids = np.empty(int(bounds[-1]), np.int64)
    words = np.ones(len(ids), np.bool_)  # special tokens are words of their own
    ids[target] = tokens[source]
    words[target] = word_starts[source]
    words[(bounds[:-1] + before)[lengths > 0]] = True
    prefixes = bounds[:-1, None] + np.arange(before)
    suffixes = bounds[1:, None] + np.arange(-after, 0)
    ids[np.hstack((prefixes, suffixes))] = template.prefix + template.suffix
    return TokenBatch(
        input_ids=ids, boundaries=bounds, example_ids=example_ids, starts=starts, word_starts=words
    )


@dataclass(frozen=True, kw_only=True)
class Batching:
    """Settings of the batches of a run over texts."""

    template: Template
    max_length: int  # the most tokens of a sequence, special ones included
    batch_tokens: int  # the most tokens of a step
    micro_tokens: int | None = None  # the most tokens of a micro-batch; default: of a step
    layout: Layout = "packed"
    seed: int = 0  # of the order

    @property
    def room(self) -> int:
        """The most tokens of a window, special ones not counted."""
        room = self.max_length - self.template.num_special
        if room < 1:
            problem = f"a window would hold {room} tokens besides the special ones"
            raise ConfigError(f"{problem}; raise --max-length")
        return room


class PlannedSource(ABC, Generic[BatchT]):
    """Examples in the order of a plan for each epoch; implements `core.task.BatchSource`."""

    def __init__(
        self, lengths: Ints, step_size: int, micro_size: int | None, layout: Layout, seed: int
    ) -> None:
        # In tokens: of each example (W,), and the most of a step and of a micro-batch.
        self.lengths, self.layout, self.seed = lengths, layout, seed
        self.step_size, self.micro_size = step_size, micro_size or step_size
        self.kept_plan: tuple[int, Plan] | None = None  # the latest, and its epoch

    @abstractmethod
    def batch(self, chosen: Ints, epoch: int = 0, crowd: Ints | None = None) -> BatchT:
        """Return the batch of some examples, by their indices.

        `crowd` are the examples of the same micro-batch on all processes; by default `chosen`.
        """

    def plan(self, epoch: int) -> Plan:
        """Return the steps of an epoch; the latest is kept."""
        if self.kept_plan is None or self.kept_plan[0] != epoch:
            chosen = self.examples(epoch)
            lengths = self.lengths if chosen is None else self.lengths[chosen]
            named = {"seed": self.seed, "epoch": epoch, "batch_tokens": self.step_size}
            plan = plan_epoch(lengths, **named, layout=self.layout)
            if chosen is not None:
                plan = Plan(order=chosen[plan.order], boundaries=plan.boundaries)
            self.kept_plan = epoch, plan
        return self.kept_plan[1]

    def examples(self, epoch: int) -> Ints | None:
        """Return the examples of an epoch; None for all of them, once each."""
        del epoch
        return None  # no copies: a corpus has a hundred million

    def limit_micro_batches(self, tokens: int) -> None:
        """Set the most tokens of a micro-batch."""
        self.micro_size = tokens

    def num_tokens(self, epoch: int = 0) -> int:
        """Return the tokens of an epoch."""
        return int(self.lengths[self.plan(epoch).order].sum())

    def num_steps(self, epoch: int) -> int:
        """Return the number of steps of an epoch."""
        return self.plan(epoch).num_steps

    def micro_batches(
        self, epoch: int, step: int, *, rank: int = 0, world_size: int = 1
    ) -> Sequence[BatchT | StandIn[BatchT]]:
        """Return one process's share of a step."""
        chosen = self.plan(epoch).step(step)
        parts = split_step(self.lengths[chosen], micro_tokens=self.micro_size, parts=world_size)
        batches: list[BatchT | StandIn[BatchT]] = []
        for turn in range(0, len(parts), world_size):
            mine, crowd = parts[turn + rank], np.concatenate(parts[turn : turn + world_size])
            # Where none is left for this process, it computes one, and counts it for nothing.
            batch = self.batch(chosen[mine if len(mine) else [0]], epoch, chosen[crowd])
            batches.append(batch if len(mine) else StandIn(batch))
        return batches


class TextSource(PlannedSource[TokenBatch]):
    """The batches of a run over some `documents` of a store, cut into windows in special tokens."""

    def __init__(self, store: Documents, documents: Ints, batching: Batching) -> None:
        self.store, self.batching = store, batching
        self.windows = cut_windows(store.lengths(), documents, batching.room)
        lengths = self.windows.lengths + batching.template.num_special
        sizes = batching.batch_tokens, batching.micro_tokens
        super().__init__(lengths, *sizes, batching.layout, batching.seed)

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
        tokens = min(tokens, max(self.micro_size, longest))
        return Bounds(num_tokens=tokens, num_sequences=sequences, longest=longest)

    def batch(self, chosen: Ints, epoch: int = 0, crowd: Ints | None = None) -> TokenBatch:
        """Return the batch of some windows, shortest first: equal lengths are neighbours."""
        del epoch, crowd  # each window is the same in all of them
        chosen = chosen[np.argsort(self.lengths[chosen], kind="stable")]
        documents, starts = self.windows.documents[chosen], self.windows.starts[chosen]
        firsts = np.asarray(self.store.boundaries[documents]) + starts
        stretches = self.store.tokens, self.store.word_starts, firsts, self.windows.lengths[chosen]
        ids = np.asarray(self.store.ids[documents])
        return assemble(*stretches, ids, starts, self.batching.template)

    def in_order(self) -> Iterator[TokenBatch]:
        """Yield every window once, by length, in batches of the budget: for evaluation."""
        order = np.argsort(self.lengths, kind="stable")
        # A window longer than the budget fills it: it is read by itself.
        cost = np.minimum(self.lengths[order], self.step_size)
        cut = cut_by_sum if self.layout == "packed" else cut_by_padded_size
        for first, end in pairwise(cut(cost, self.step_size).tolist()):
            yield self.batch(order[first:end])
