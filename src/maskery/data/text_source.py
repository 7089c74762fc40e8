"""Flat text batches from a token store: special tokens put in, nothing padded.

Shapes: W windows, B sequences, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerBase

from maskery.core.batch import TokenBatch
from maskery.core.errors import ModelError
from maskery.data.plan import Layout, Plan, plan_epoch, split_step
from maskery.data.store import TokenStore
from maskery.data.windows import Windows, cut_windows


@dataclass(frozen=True, kw_only=True)
class Template:
    """The special tokens that a tokenizer puts around a sequence.

    Attributes:
        prefix: For BERT, the id of `[CLS]`.
        suffix: For BERT, the id of `[SEP]`.
    """

    prefix: tuple[int, ...]
    suffix: tuple[int, ...]

    @property
    def num_special(self) -> int:
        """Special tokens of a sequence."""
        return len(self.prefix) + len(self.suffix)

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> Template:
        """Read it off what the tokenizer does to a one-word text."""
        bare = tokenizer("a", add_special_tokens=False)["input_ids"]
        full = tokenizer("a", add_special_tokens=True)["input_ids"]
        for start in range(len(full) - len(bare) + 1):
            if full[start : start + len(bare)] == bare:
                end = start + len(bare)
                return cls(prefix=tuple(full[:start]), suffix=tuple(full[end:]))
        raise ModelError(
            f"the tokenizer of '{tokenizer.name_or_path}' changes a text when it adds special "
            f"tokens ({bare} became {full}); use another tokenizer"
        )


def assemble(
    tokens: npt.NDArray[np.integer],
    word_starts: npt.NDArray[np.bool_],
    firsts: npt.NDArray[np.int64],
    lengths: npt.NDArray[np.int64],
    example_ids: npt.NDArray[np.uint64],
    starts: npt.NDArray[np.int64],
    template: Template,
) -> TokenBatch:
    """Lay stretches of a token array end to end, each in its special tokens.

    Args:
        tokens: Any array of ids, memory-mapped or not.
        word_starts: Of the same length.
        firsts: (B,) where each stretch starts in `tokens`.
        lengths: (B,) its tokens.
        example_ids: (B,) its document's id.
        starts: (B,) where it starts in its document.
        template: The special tokens.
    """
    before, after = len(template.prefix), len(template.suffix)
    boundaries = np.concatenate(([0], np.cumsum(lengths + before + after)))
    inside = np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    source = inside + np.repeat(firsts, lengths)
    target = inside + np.repeat(boundaries[:-1] + before, lengths)
    ids = np.empty(int(boundaries[-1]), np.int64)
    words = np.ones(len(ids), np.bool_)
    ids[target] = tokens[source]
    words[target] = word_starts[source]
    words[boundaries[:-1] + before] = True
    for offset, token in enumerate(template.prefix):
        ids[boundaries[:-1] + offset] = token
    for offset, token in enumerate(template.suffix):
        ids[boundaries[1:] - after + offset] = token
        words[boundaries[1:] - after + offset] = True
    return TokenBatch(
        input_ids=ids,
        boundaries=boundaries,
        example_ids=example_ids,
        starts=starts,
        word_starts=words,
    )


class TextSource:
    """The batches of a run over some documents of a store.

    Args:
        store: The tokenised corpus.
        documents: Which of its documents are read.
        template: Special tokens of a sequence.
        max_length: The most tokens of a sequence, special ones included.
        batch_tokens: The most tokens of a step.
        micro_tokens: The most tokens of a micro-batch.
        layout: Packed or padded.
        seed: Of the order.
    """

    def __init__(
        self,
        store: TokenStore,
        documents: npt.NDArray[np.int64],
        template: Template,
        *,
        max_length: int,
        batch_tokens: int,
        micro_tokens: int | None = None,
        layout: Layout = "packed",
        seed: int = 0,
    ) -> None:
        self.store, self.template = store, template
        self.batch_tokens, self.micro_tokens = batch_tokens, micro_tokens or batch_tokens
        self.layout: Layout = layout
        self.seed = seed
        self.windows: Windows = cut_windows(
            store.lengths(), documents, max_length - template.num_special
        )
        self.lengths = self.windows.lengths + template.num_special
        self._plan: tuple[int, Plan] | None = None

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
    ) -> Sequence[TokenBatch]:
        """One process's share of a step."""
        chosen = self.plan(epoch).step(step)
        parts = split_step(self.lengths[chosen], micro_tokens=self.micro_tokens, parts=world_size)
        return [self.batch(chosen[part]) for part in parts[rank::world_size]]

    def batch(self, chosen: npt.NDArray[np.int64]) -> TokenBatch:
        """The batch of some windows, shortest first, so that equal lengths are neighbours."""
        chosen = chosen[np.argsort(self.lengths[chosen], kind="stable")]
        documents, starts = self.windows.documents[chosen], self.windows.starts[chosen]
        return assemble(
            self.store.tokens,
            self.store.word_starts,
            np.asarray(self.store.boundaries[documents]) + starts,
            self.windows.lengths[chosen],
            np.asarray(self.store.ids[documents]),
            starts,
            self.template,
        )

    def in_order(self) -> Iterator[TokenBatch]:
        """Every window once, by length, in batches of the budget: for evaluation."""
        order = np.argsort(self.lengths, kind="stable")
        cost = self.lengths[order]
        first = 0
        while first < len(order):
            if self.layout == "packed":
                fits = np.cumsum(cost[first:]) <= self.batch_tokens
            else:  # ascending lengths: the last is the longest
                fits = cost[first:] * np.arange(1, len(order) - first + 1) <= self.batch_tokens
            count = max(1, int(np.argmin(fits)) if not fits.all() else len(fits))
            yield self.batch(order[first : first + count])
            first += count
