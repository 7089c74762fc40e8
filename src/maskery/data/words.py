"""Where words start, from the tokenizer's own knowledge."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from tokenizers import Encoding, Tokenizer

# The lead bytes of the CJK ideographs U+4000 to U+9FFF in UTF-8.
CJK_LEAD_BYTES = range(0xE4, 0xEA)
WORD_MARKERS = ("▁", "Ġ")


def byte_level_alphabet() -> dict[str, int]:
    """Byte-level BPE's printable stand-in for each byte (GPT-2's table)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(256) if byte not in printable)
    return table | {chr(256 + n): byte for n, byte in enumerate(others)}


def starts_word_table(backend: Tokenizer) -> npt.NDArray[np.bool_]:
    """(V,) bool: tokens that start a word whatever stands before them.

    Word ids alone take a Chinese sentence for one word in Metaspace and byte-level tokenizers,
    which split at spaces only; and they take any text for one word where nothing is split before
    the model. So an ideograph starts a word, as in Chinese BERT, and so does a space marker.
    """
    vocabulary = backend.get_vocab(with_added_tokens=True)
    table = np.zeros(max(vocabulary.values(), default=-1) + 1, np.bool_)
    byte_level = "ByteLevel" in str(backend.pre_tokenizer) + str(backend.decoder)
    alphabet = byte_level_alphabet() if byte_level else {}
    for token, index in vocabulary.items():
        text = token.lstrip("".join(WORD_MARKERS))
        if byte_level:
            ideograph = bool(text) and alphabet.get(text[0], 0) in CJK_LEAD_BYTES
        else:
            ideograph = bool(text) and "\u3400" <= text[0] <= "\u9fff"
        table[index] = token.startswith(WORD_MARKERS) or ideograph
    return table


def word_starts(
    encoding: Encoding, ids: npt.NDArray[np.int64], always: npt.NDArray[np.bool_]
) -> npt.NDArray[np.bool_]:
    """(t,) bool: the first token of each word of one encoded text.

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
