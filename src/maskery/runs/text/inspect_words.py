"""The words of a corpus that a tokenizer breaks most, and those that it does not know.

Shapes: T tokens, n words of k pieces.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerBase

from maskery.data.store import TokenStore
from maskery.evaluation.text.words_of_text import TextReader

# Enough to know which words are frequent; reading on would only take longer.
MOST_TOKENS = 20_000_000
FEWEST_PIECES, MOST_PIECES = 3, 16
# Texts that are read again to name unknown words.
UNKNOWN_TEXTS = 500


@dataclass(frozen=True, kw_only=True)
class BrokenWord:
    """A word of several pieces.

    Attributes:
        word: As the tokenizer writes it.
        pieces: How many.
        count: How often it stands in the corpus.
        saved: Tokens that one token for it would save.
    """

    word: str
    pieces: int
    count: int
    saved: int


def broken_words(
    store: TokenStore, tokenizer: PreTrainedTokenizerBase, *, listed: int
) -> tuple[BrokenWord, ...]:
    """The words for which one token would save most, most first.

    Args:
        store: The tokenised corpus; its first twenty million tokens are looked at.
        tokenizer: Of the store.
        listed: How many.
    """
    ids = np.asarray(store.tokens[:MOST_TOKENS]).astype(np.int64)
    starts = np.flatnonzero(np.asarray(store.word_starts[:MOST_TOKENS]))
    sizes = np.diff(np.append(starts, len(ids)))
    found: list[BrokenWord] = []
    for pieces in range(FEWEST_PIECES, MOST_PIECES + 1):
        firsts = starts[sizes == pieces]
        if not len(firsts):
            continue
        rows = ids[firsts[:, None] + np.arange(pieces)]
        unique, counts = np.unique(rows, axis=0, return_counts=True)
        best = np.argsort(-counts, kind="stable")[: 4 * listed]
        found += [_broken(unique[index], int(counts[index]), tokenizer) for index in best.tolist()]
    # Signs in a row (rules, ellipses) are no words.
    words = [word for word in found if any(map(str.isalpha, word.word))]
    return tuple(sorted(words, key=lambda w: (-w.saved, w.word))[:listed])


def _broken(
    ids: npt.NDArray[np.int64], count: int, tokenizer: PreTrainedTokenizerBase
) -> BrokenWord:
    word = tokenizer.decode(ids.tolist()).strip()
    return BrokenWord(word=word, pieces=len(ids), count=count, saved=(len(ids) - 1) * count)


def share_of_broken_words(store: TokenStore) -> float:
    """The share of words that are of three pieces or more."""
    starts = np.flatnonzero(np.asarray(store.word_starts[:MOST_TOKENS]))
    sizes = np.diff(np.append(starts, min(store.num_tokens, MOST_TOKENS)))
    return float((sizes >= FEWEST_PIECES).mean()) if len(sizes) else 0.0


def unknown_words(
    store: TokenStore, examples: Iterable[Any], tokenizer: PreTrainedTokenizerBase, *, listed: int
) -> tuple[int, tuple[tuple[str, int], ...]]:
    """How many unknown tokens there are, and which words they most often stand for.

    Args:
        store: The tokenised corpus.
        examples: The same corpus, to be read again; only where something is unknown.
        tokenizer: Of the store.
        listed: Words to name.
    """
    if tokenizer.unk_token_id is None:
        return 0, ()
    total = int(store.token_counts(int(tokenizer.unk_token_id) + 1)[tokenizer.unk_token_id])
    if not total:
        return 0, ()
    reader, unknown = TextReader(tokenizer), int(tokenizer.unk_token_id)
    counts: Counter[str] = Counter()
    texts = 0
    for example in examples:
        encoded = reader.read(example.text)
        if not (encoded.ids == unknown).any():
            continue
        counts.update(
            word.text
            for word in encoded.words
            if (encoded.ids[word.first : word.last] == unknown).any()
        )
        texts += 1
        if texts == UNKNOWN_TEXTS:
            break
    return total, tuple(counts.most_common(listed))
