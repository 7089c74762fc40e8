"""Flat text batches from tokenised documents: cut into windows, in special tokens, not padded.

Shapes: N documents, W windows, B sequences, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerBase

from maskery.core.batch import TokenBatch
from maskery.core.errors import ConfigError, ModelError
from maskery.data.plan import Layout, PlannedSource, cut_by_padded_size, cut_by_sum
from maskery.data.store import Documents


@dataclass(frozen=True, kw_only=True)
class Windows:
    """Stretches of documents.

    Attributes:
        documents: (W,) int64: which document each window is of.
        starts: (W,) int64: where it starts in its document, in tokens.
        lengths: (W,) int64: its tokens, special tokens not counted.
    """

    documents: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.documents)


def cut_windows(
    lengths: npt.NDArray[np.int64], chosen: npt.NDArray[np.int64], max_tokens: int
) -> Windows:
    """Cut documents into as few windows as they need, of equal length to within one token.

    Equal windows give every token context; full windows with a remainder would leave stubs.

    Args:
        lengths: (N,) int64: the tokens of each document.
        chosen: The documents to cut, as indices into `lengths`.
        max_tokens: The most tokens a window may have, special tokens not counted.

    Raises:
        ConfigError: `max_tokens` is below 1.
    """
    if max_tokens < 1:
        raise ConfigError(
            f"a window would hold {max_tokens} tokens besides the special ones; raise --max-length"
        )
    chosen = chosen[lengths[chosen] > 0]
    total = lengths[chosen]
    num_windows = -(-total // max_tokens)
    documents = np.repeat(chosen, num_windows)
    first = np.cumsum(num_windows) - num_windows
    index = np.arange(len(documents)) - np.repeat(first, num_windows)
    size, longer = (
        np.repeat(total // num_windows, num_windows),
        np.repeat(total % num_windows, num_windows),
    )
    return Windows(
        documents=documents,
        starts=index * size + np.minimum(index, longer),
        lengths=size + (index < longer),
    )


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
        """Number of special tokens of a sequence."""
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
    tokens: Any,
    word_starts: Any,
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
        """Return the batch of some windows, in the order given."""
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
        """Yield every window once, by length, in batches of the budget: for evaluation."""
        order = np.argsort(self.lengths, kind="stable")
        # A window longer than the budget fills it: it is read by itself.
        cost = np.minimum(self.lengths[order], self.batch_tokens)
        cut = cut_by_sum if self.layout == "packed" else cut_by_padded_size
        for first, end in pairwise(cut(cost, self.batch_tokens).tolist()):
            yield self.batch(order[first:end])
