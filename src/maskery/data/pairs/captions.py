"""The captions of image-caption pairs as tokens, in memory.

Shapes: N pairs, C captions, T tokens of all captions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerBase

from maskery.core.batch import TokenBatch, Vocabulary
from maskery.core.errors import DataError
from maskery.core.random import Int64Array
from maskery.data.batching import Template, assemble
from maskery.data.images.loading import Skipped
from maskery.data.pairs.pairs import Pairs
from maskery.data.pairs.records import brief
from maskery.data.tokenise import encoder

# Tokenizers work on lists in parallel; larger ones gain nothing.
CAPTIONS_AT_ONCE = 4096


@dataclass(frozen=True, kw_only=True)
class CaptionTokens:
    """Every usable caption, tokenised once."""

    tokens: npt.NDArray[np.int32]  # (T,) int32, without special tokens
    word_starts: npt.NDArray[np.bool_]  # (T,) bool
    # (C + 1,) int64; caption c is `tokens[boundaries[c]:boundaries[c + 1]]`.
    boundaries: Int64Array
    owners: Int64Array  # (C,) int64, ascending: the pair of each caption
    places: Int64Array  # (C,) int64: its number among its pair's captions
    # (C,) int64: the caption's first token among its pair's, special tokens counted. A pair's
    # captions are windows of one document, so that each has masks of its own.
    starts: Int64Array
    template: Template  # the special tokens of a sequence
    skipped: Skipped  # captions that were left out because nothing in them can be masked
    num_cut: int  # captions that were cut at the longest length

    def token_counts(self, vocab_size: int) -> Int64Array:
        """Count each token of the captions: (V,) int64."""
        return np.bincount(self.tokens, minlength=vocab_size).astype(np.int64)

    def batch(self, captions: Int64Array, example_ids: npt.NDArray[np.uint64]) -> TokenBatch:
        """Return some captions end to end, each under the id of its pair."""
        firsts = self.boundaries[captions]
        return assemble(
            self.tokens,
            self.word_starts,
            firsts,
            self.boundaries[captions + 1] - firsts,
            example_ids,
            self.starts[captions],
            self.template,
        )


def tokenise_captions(
    pairs: Pairs, tokenizer: PreTrainedTokenizerBase, skipped: Skipped, *, max_length: int
) -> CaptionTokens:
    """Tokenise the captions of all pairs, cut to `max_length` tokens, special ones included.

    `skipped` is told of captions in which no token can be masked.
    """
    template = Template.of(tokenizer)
    protected = Vocabulary.of(tokenizer).protected
    longest = max_length - template.num_special
    parts: list[tuple[Int64Array, npt.NDArray[np.bool_]]] = []
    owners: list[int] = []
    places: list[int] = []
    num_cut = 0
    for (index, place, caption), ids, words in _encoded(pairs, tokenizer):
        # A piece of a caption still describes the picture; the count is told at the end.
        num_cut += len(ids) > longest
        ids, words = ids[:longest], words[:longest]
        if not len(ids) or bool(protected[ids].all()):
            skipped.report(
                DataError(
                    f"the caption {brief(caption)} of image {pairs[index].image.name} holds no "
                    f"token that could be masked; correct it or choose another tokenizer"
                )
            )
            continue
        parts.append((ids, words))
        owners.append(index)
        places.append(place)
    if not parts:
        raise DataError(f"no caption is left to learn from ({skipped}); bring others")
    boundaries = np.concatenate(([0], np.cumsum([len(ids) for ids, _ in parts]))).astype(np.int64)
    lengths = np.diff(boundaries) + template.num_special
    before = np.cumsum(lengths) - lengths
    return CaptionTokens(
        tokens=np.concatenate([ids for ids, _ in parts]).astype(np.int32),
        word_starts=np.concatenate([words for _, words in parts]),
        boundaries=boundaries,
        owners=np.array(owners, np.int64),
        places=np.array(places, np.int64),
        # Counted from the first caption of the same pair.
        starts=before - before[np.searchsorted(owners, owners, side="left")],
        template=template,
        skipped=skipped,
        num_cut=num_cut,
    )


def _encoded(
    pairs: Pairs, tokenizer: PreTrainedTokenizerBase
) -> Iterator[tuple[tuple[int, int, str], Int64Array, npt.NDArray[np.bool_]]]:
    """Yield (pair, number of the caption, caption) with ids and word starts, in order."""
    encode = encoder(tokenizer)
    captions = (
        (n, place, c) for n, pair in enumerate(pairs) for place, c in enumerate(pair.captions)
    )
    while chunk := list(islice(captions, CAPTIONS_AT_ONCE)):
        ids, words, lengths = encode([caption for *_, caption in chunk])
        ends = np.cumsum(lengths)
        for caption, first, end in zip(chunk, ends - lengths, ends, strict=True):
            yield caption, ids[first:end], words[first:end]


class Caption(NamedTuple):
    """One caption under the id of its pair, as a corpus has examples."""

    text: str
    id: int


class CaptionCorpus:
    """The captions of pairs as a corpus, to train a tokenizer on; its bytes are not counted."""

    num_bytes: int | None = None
    bytes_read: int = 0

    def __init__(self, pairs: Pairs) -> None:
        self._pairs = pairs

    def __iter__(self) -> Iterator[Caption]:
        return (Caption(text, pair.id) for pair in self._pairs for text in pair.captions)

    def fingerprint(self) -> str:
        """Return a hash of the pairs' ids."""
        return fingerprint(self._pairs)


def fingerprint(pairs: Pairs) -> str:
    """Return a hash of the pairs' ids, which follow from image names and captions."""
    return blake2b(pairs.ids.tobytes(), digest_size=16).hexdigest()
