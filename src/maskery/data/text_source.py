"""Flat text batches from a token store: special tokens put in, nothing padded.

Shapes: W windows, B sequences, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerBase

from maskery.core.batch import TokenBatch
from maskery.core.errors import ModelError
from maskery.data.plan import Layout, cut_by_padded_size, cut_by_sum
from maskery.data.planned import PlannedSource
from maskery.data.windows import Windows, cut_windows


class Indexed(Protocol):
    """An array that is read by index arrays, mapped or not."""

    def __getitem__(self, index: Any, /) -> Any:
        """The elements at some indices."""


class Documents(Protocol):
    """Where windows are cut from: a token store, or several shards; see `TokenStore`."""

    @property
    def tokens(self) -> Indexed:
        """All documents end to end."""

    @property
    def word_starts(self) -> Indexed:
        """True at the first token of each word."""

    @property
    def boundaries(self) -> npt.NDArray[np.int64]:
        """Where documents begin, and the end of the last."""

    @property
    def ids(self) -> npt.NDArray[np.uint64]:
        """Stable document ids."""

    def lengths(self) -> npt.NDArray[np.int64]:
        """The tokens of each document."""


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
        probe = "a"
        bare = tokenizer(probe, add_special_tokens=False)["input_ids"]
        if not bare:  # not a letter of its script: take the tokens it has
            ordinary = sorted(set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids))
            texts = (tokenizer.decode([index]) for index in ordinary)
            encoded = (
                (text, tokenizer(text, add_special_tokens=False).input_ids) for text in texts
            )
            probe, bare = next(((text, ids) for text, ids in encoded if ids), (probe, bare))
        full = tokenizer(probe, add_special_tokens=True)["input_ids"]
        for start in range(len(full) - len(bare) + 1 if bare else 0):
            if full[start : start + len(bare)] == bare:
                end = start + len(bare)
                return cls(prefix=tuple(full[:start]), suffix=tuple(full[end:]))
        raise ModelError(
            f"the tokenizer of '{tokenizer.name_or_path}' changes a text when it adds special "
            f"tokens ({bare} became {full}); use another tokenizer"
        )


def assemble(
    tokens: Indexed,
    word_starts: Indexed,
    firsts: npt.NDArray[np.int64],
    lengths: npt.NDArray[np.int64],
    example_ids: npt.NDArray[np.uint64],
    starts: npt.NDArray[np.int64],
    template: Template,
) -> TokenBatch:
    """Lay stretches of a token array end to end, each in its special tokens.

    Args:
        tokens: Any array of ids, memory-mapped or not, and several as one.
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
    words[(boundaries[:-1] + before)[lengths > 0]] = True
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


class TextSource(PlannedSource):
    """The batches of a run over some documents of a store.

    Args:
        store: The tokenised corpus, or a part of it.
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
        store: Documents,
        documents: npt.NDArray[np.int64],
        template: Template,
        *,
        max_length: int,
        batch_tokens: int,
        micro_tokens: int | None = None,
        layout: Layout = "packed",
        seed: int = 0,
    ) -> None:
        self.store, self.template, self.max_length = store, template, max_length
        self.windows: Windows = cut_windows(
            store.lengths(), documents, max_length - template.num_special
        )
        super().__init__(
            self.windows.lengths + template.num_special,
            batch_tokens=batch_tokens,
            micro_tokens=micro_tokens,
            layout=layout,
            seed=seed,
        )

    def assemble(self, chosen: npt.NDArray[np.int64]) -> TokenBatch:
        """The batch of some windows, in the order given."""
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
        # A window longer than the budget fills it: it is read by itself.
        cost = np.minimum(self.lengths[order], self.batch_tokens)
        cut = cut_by_sum if self.layout == "packed" else cut_by_padded_size
        for first, end in pairwise(cut(cost, self.batch_tokens).tolist()):
            yield self.batch(order[first:end])
