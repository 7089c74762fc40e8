"""Cut a text into the words and tokens that a model reads, with their places in characters.

Shapes: L tokens of a text, special tokens included.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from maskery.core.batch import Vocabulary
from maskery.data.batching import Template
from maskery.data.tokenise import (
    BYTE_LEVEL_SPACE,
    METASPACE,
    is_byte_level,
    plain_backend,
    starts_word_table,
    word_starts,
)


@dataclass(frozen=True, kw_only=True)
class Word:
    """One word, or punctuation mark, of a text."""

    text: str  # Its characters; of a tokenizer that keeps no offsets, its tokens
    start: int  # Its first character in the text; -1 if the tokenizer keeps no offsets
    end: int  # One past its last character
    first: int  # Its first token
    last: int  # One past its last token


@dataclass(frozen=True, kw_only=True)
class EncodedText:
    """A text as a model reads it."""

    ids: npt.NDArray[np.int64]  # (L,) int64
    # Its words. Special tokens that stand in the text, such as `[MASK]`, belong to none; a word
    # that the tokenizer does not know is a word.
    words: tuple[Word, ...]


class TextReader:
    """Cut texts into words and tokens."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.mask_token = str(tokenizer.mask_token)
        # A word that the tokenizer does not know is a word of the text all the same.
        self.special = Vocabulary.of(tokenizer).protected.copy()
        if tokenizer.unk_token_id is not None:
            self.special[tokenizer.unk_token_id] = False
        self._template = Template.of(tokenizer)
        self._backend = plain_backend(tokenizer, keep=self.mask_token)
        self.space = space_marker(self._backend)
        self._vocabulary = tokenizer.get_vocab()  # made anew at each call, in milliseconds
        self._always = None
        if self._backend is not None:
            vocabulary = self._backend.get_vocab()
            self._always = starts_word_table(vocabulary, is_byte_level(self._backend))

    def read(self, text: str) -> EncodedText:
        """Cut one text."""
        ids, starts, offsets = self.tokens(text)
        prefix, suffix = self._template.prefix, self._template.suffix
        places = np.flatnonzero(starts)
        ends = np.append(places, len(ids))[1:]
        words = []
        for first, last in zip(places.tolist(), ends.tolist(), strict=True):
            if self.special[ids[first:last]].any():
                continue
            start, end = offsets[first][0], offsets[last - 1][1]
            # Some tokenizers count the space before a word to it.
            while 0 <= start < end and text[start].isspace():
                start += 1
            words.append(
                Word(
                    text=text[start:end] if start >= 0 else "".join(self.pieces(ids[first:last])),
                    start=start,
                    end=end,
                    first=first + len(prefix),
                    last=last + len(prefix),
                )
            )
        whole = np.concatenate((prefix, ids, suffix)).astype(np.int64)
        return EncodedText(ids=whole, words=tuple(words))

    def pieces(self, ids: Iterable[int]) -> tuple[str, ...]:
        """Return tokens as the vocabulary spells them."""
        return tuple(map(str, self.tokenizer.convert_ids_to_tokens([int(token) for token in ids])))

    def tokens(
        self, text: str
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_], list[tuple[int, int]]]:
        """Return ids, word starts and character offsets, without the template's tokens."""
        if self._backend is None or self._always is None:
            # Tokenizers in Python know neither words nor offsets.
            ids = np.array(self.tokenizer(text, add_special_tokens=False)["input_ids"], np.int64)
            return ids, np.ones(len(ids), np.bool_), [(-1, -1)] * len(ids)
        encoding = self._backend.encode(text, add_special_tokens=False)
        ids = np.array(encoding.ids, np.int64)
        starts = (
            word_starts(encoding, ids, self._always, text) if len(ids) else np.zeros(0, np.bool_)
        )
        # A special token that stands in the text is no part of a word.
        special = self.special[ids]
        starts = starts | special
        starts[1:] |= special[:-1]
        ids, kept = self._without_stray_spaces(text, ids, encoding.offsets)
        offsets = [offset for offset, keep in zip(encoding.offsets, kept, strict=True) if keep]
        return ids[kept], starts[kept], offsets

    def _without_stray_spaces(
        self, text: str, ids: npt.NDArray[np.int64], offsets: list[tuple[int, int]]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        """Remove spaces beside masks that no text has: returns ids (L,) and which stay (L,).

        A word would have taken the space before it, and a tokenizer that puts a space before every
        text takes what follows a mask for another text.
        """
        ids, kept = ids.copy(), np.ones(len(ids), np.bool_)
        space = self._vocabulary.get(self.space, -1)
        for place in np.flatnonzero(ids == self.tokenizer.mask_token_id).tolist():
            if place and ids[place - 1] == space:
                kept[place - 1] = False
            end = offsets[place][1]
            # The mask's own end, since a mask may take the space after it.
            spaced = any(map(str.isspace, text[end - 1 : end + 1]))
            if place + 1 < len(ids) and not spaced:
                kept[place + 1] = ids[place + 1] != space
                ids[place + 1] = self.bare(int(ids[place + 1]))
        return ids, kept

    def bare(self, token: int) -> int:
        """Return the token without the space before it, or itself if there is no such token."""
        spelt = str(self.tokenizer.convert_ids_to_tokens(token))
        bare = self._vocabulary.get(spelt.removeprefix(self.space), token)
        return int(bare)


def space_marker(backend: Tokenizer | None) -> str:
    """Return how a vocabulary writes the space before a word: "Ġ", "▁", or "" where it has none."""
    if backend is None:
        return ""
    if is_byte_level(backend):
        return BYTE_LEVEL_SPACE
    parts = f"{backend.normalizer}{backend.pre_tokenizer}{backend.decoder}"
    return METASPACE if METASPACE in parts else ""
