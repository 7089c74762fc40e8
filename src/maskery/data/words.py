"""The first tokens of words, from the tokenizer's own knowledge."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from tokenizers import Encoding, Tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# The lead bytes of the CJK ideographs U+4000 to U+9FFF in UTF-8.
CJK_LEAD_BYTES = range(0xE4, 0xEA)
# How a space before a word is written by Metaspace and by byte-level tokenizers.
METASPACE, BYTE_LEVEL_SPACE = "▁", "Ġ"
# The class of a character that goes with any other.
ANY = -1


def byte_level_alphabet() -> dict[str, int]:
    """Return byte-level BPE's printable stand-in for each byte (GPT-2's table)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(256) if byte not in printable)
    return table | {chr(256 + n): byte for n, byte in enumerate(others)}


def is_byte_level(backend: Tokenizer) -> bool:
    """Return True if the tokenizer's pieces are bytes in GPT-2's printable stand-ins."""
    return "ByteLevel" in str(backend.pre_tokenizer) + str(backend.decoder)


def starts_word_table(backend: Tokenizer) -> npt.NDArray[np.bool_]:
    """Mark the tokens that start a word whatever stands before them: (V,) bool.

    Word ids alone take a Chinese sentence for one word in Metaspace and byte-level tokenizers,
    which split at spaces only; and they take any text for one word where nothing is split before
    the model. So an ideograph starts a word, as in Chinese BERT, and so does a space marker.
    """
    vocabulary = backend.get_vocab(with_added_tokens=True)
    table = np.zeros(max(vocabulary.values(), default=-1) + 1, np.bool_)
    byte_level = is_byte_level(backend)
    alphabet = byte_level_alphabet() if byte_level else {}
    # Elsewhere Ġ is a letter (of Maltese).
    marker = BYTE_LEVEL_SPACE if byte_level else METASPACE
    for token, index in vocabulary.items():
        text = token.lstrip(marker)
        if byte_level:
            ideograph = bool(text) and alphabet.get(text[0], 0) in CJK_LEAD_BYTES
        else:
            ideograph = bool(text) and "\u3400" <= text[0] <= "\u9fff"
        table[index] = token.startswith(marker) or ideograph
    return table


def word_starts(
    encoding: Encoding, ids: npt.NDArray[np.int64], always: npt.NDArray[np.bool_]
) -> npt.NDArray[np.bool_]:
    """Mark the first token of each word of one encoded text: (t,) bool.

    Args:
        encoding: What the tokenizer returned, without special tokens.
        ids: (t,) its token ids.
        always: From `starts_word_table`.
    """
    words = np.array([-1 if word is None else word for word in encoding.word_ids], np.int64)
    starts = np.ones(len(ids), np.bool_)
    starts[1:] = (words[1:] != words[:-1]) | always[ids[1:]]
    # A lone marker ("▁" before a piece of its own) is the start; what follows continues it.
    return starts


class PieceWords:
    """Finds the words of token ids from the tokenizer's pieces, where the text is gone.

    WordPiece marks pieces that go on (`##ing`), Metaspace and byte-level tokenizers pieces that
    begin (`▁the`, `Ġthe`), others the end (`the</w>`). Byte-level tokenizers also cut between
    letters, digits and other characters, as GPT-2 does. Where nothing is marked, each token is a
    word.

    Args:
        tokenizer: Of the rows.
        special_ids: Tokens that are words of their own.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, special_ids: Sequence[int]) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        vocabulary = tokenizer.get_vocab()
        size = max(vocabulary.values(), default=-1) + 1
        self._begins = np.zeros(size, np.bool_)
        self._ends = np.zeros(size, np.bool_)
        # By class of character; the same on both sides cuts nowhere.
        self._first, self._last = np.zeros(size, np.int8), np.zeros(size, np.int8)
        # A tokenizer in Python has no backend; those with pieces write them as BERT does.
        model = None if backend is None else backend.model
        prefix = getattr(model, "continuing_subword_prefix", "##" if backend is None else "")
        suffix = getattr(model, "end_of_word_suffix", "")
        byte_level = backend is not None and is_byte_level(backend)
        marker = BYTE_LEVEL_SPACE if byte_level else METASPACE
        if prefix and any(token.startswith(prefix) for token in vocabulary):
            for token, index in vocabulary.items():
                self._begins[index] = not token.startswith(prefix)
        elif suffix:
            for token, index in vocabulary.items():
                self._ends[index] = token.endswith(suffix)
        elif backend is not None and any(token.startswith(marker) for token in vocabulary):
            table = starts_word_table(backend)
            self._begins[: len(table)] = table[:size]
            for token, index in vocabulary.items() if byte_level else ():
                text = token.removeprefix(marker)
                # A lone marker is the start of a word that whatever follows goes on with.
                self._last[index] = _kind(text[-1]) if text else ANY
                self._first[index] = _kind(text[0]) if text else ANY
        else:
            self._begins[:] = True
        own = [index for index in special_ids if index < size]
        self._begins[own] = self._ends[own] = True

    def __call__(self, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Return the first token of each word: (T,) bool.

        Args:
            ids: (T,) int64; the first of a row is to be taken for a start as well.
        """
        starts = self._begins[ids]
        before, after = self._last[ids[:-1]], self._first[ids[1:]]
        starts[1:] |= self._ends[ids[:-1]] | ((before != after) & (before != ANY))
        starts[:1] = True
        return starts


def _kind(character: str) -> int:
    """Return the class of a byte-level character: 0 letter, 1 digit, 2 other, 3 white space."""
    if 0x100 <= ord(character) <= 0x120:  # the stand-ins of bytes up to the space
        return 3
    if not character.isascii() or character.isalpha():
        return 0  # bytes of other scripts are letters, for most
    return 1 if character.isdigit() else 2
