"""Words of scripts that write no spaces between them, such as Thai, Burmese and Chinese.

ICU's dictionaries cut them (`pip install 'maskery[words]'`); without them each piece of the
tokenizer is a word of its own.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from importlib.metadata import PackageNotFoundError, version

import numpy as np
import numpy.typing as npt

log = logging.getLogger(__name__)

# First and last code points, ascending.
UNSPACED = (
    *((0x0E01, 0x0E7F), (0x0E81, 0x0EFF)),  # Thai, Lao
    *((0x0F00, 0x0FFF), (0x1000, 0x109F)),  # Tibetan, Burmese
    *((0x1780, 0x17FF), (0x1950, 0x19DF)),  # Khmer, Tai Le, New Tai Lue
    *((0x1A20, 0x1AAF), (0x1B00, 0x1B7F)),  # Tai Tham, Balinese
    *((0x3005, 0x3007), (0x3031, 0x3035)),  # marks of repetition, and zero
    *((0x3041, 0x30FF), (0x31F0, 0x31FF)),  # kana
    *((0x3400, 0x4DBF), (0x4E00, 0x9FFF)),  # ideographs
    *((0xA980, 0xA9FF), (0xAA60, 0xAADF)),  # Javanese, Burmese, Tai Viet
    *((0xF900, 0xFAFF), (0xFF66, 0xFF9F)),  # ideographs, half-width kana
    (0x20000, 0x3FFFF),
)
_BOUNDS = np.array([edge for first, last in UNSPACED for edge in (first, last + 1)], np.uint32)


@cache
def segmenter() -> Callable[[str], list[str]] | None:
    """Return ICU's function from text to its words; None, with a line that says so, without it."""
    try:
        from icu4py.breakers import WordBreaker
    except ImportError:
        log.warning(
            "the text holds scripts without spaces, in which each token counts as a word; for "
            "their words: pip install 'maskery[words]'"
        )
        return None
    # The dictionaries are the same in every locale.
    return lambda text: [str(word) for word in WordBreaker(text, "en")]


def is_unspaced(text: str) -> npt.NDArray[np.bool_]:
    """Mark the characters of these scripts: (n,) bool."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    inside: npt.NDArray[np.bool_] = np.searchsorted(_BOUNDS, codes, side="right") % 2 == 1
    return inside


def begins_unspaced(piece: str) -> bool:
    """Return True if a piece begins with a character of these scripts."""
    return piece[:1] >= chr(UNSPACED[0][0]) and bool(is_unspaced(piece[:1])[0])


def word_rules() -> str:
    """Return what decides where words begin, for the names of what is kept on disk."""
    try:
        return f"words by icu4py {version('icu4py')}"
    except PackageNotFoundError:
        return "words by pieces"


def word_numbers(text: str, inside: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Number the words of the marked characters in order: (n,) int64; others have no meaning."""
    cut = segmenter()
    numbers = np.arange(len(text))
    if cut is None:
        return numbers
    edges = np.flatnonzero(np.diff(inside, prepend=False, append=False)).tolist()
    for first, last in zip(edges[::2], edges[1::2], strict=True):
        start = first
        for word in cut(text[first:last]):
            numbers[start : start + len(word)] = start
            start += len(word)
    return numbers
