"""Random draws for drawn people: each is named by (seed, purpose, number, round).

The seed is mixed with the name of this dataset first, so that a run which masks and augments under
the same seed draws independently of what it looks at.
"""

from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from maskery.core.random import Stream, random_rows

T = TypeVar("T")
NUM_DRAWS = 64


@lru_cache(maxsize=16)
def mixed_seed(seed: int) -> int:
    """Return a 64-bit seed of this dataset's own."""
    return int.from_bytes(blake2b(b"drawn people %d" % seed, digest_size=8).digest(), "little")


def draw_words(
    seed: int, stream: Stream, numbers: Sequence[int], round_: int, count: int
) -> npt.NDArray[np.uint32]:
    """Return the random words of the draws with these N names: (N, count) uint32."""
    ids, lengths = np.array(numbers, np.uint64), np.full(len(numbers), count, np.int64)
    words = random_rows(mixed_seed(seed), stream, round_, ids, np.zeros_like(lengths), lengths)
    return words.reshape(len(numbers), count)


class Draws:
    """A short row of random words, taken one after the other."""

    def __init__(self, words: npt.NDArray[np.uint32]) -> None:
        self._words = words.tolist()
        self._next = 0

    def _word(self) -> int:
        word: int = self._words[self._next]
        self._next += 1
        return word

    def integer(self, bound: int) -> int:
        """Return an integer in [0, bound)."""
        return self._word() * bound >> 32

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """Return a float in [low, high)."""
        return low + (high - low) * self._word() * 2.0**-32

    def chance(self, probability: float) -> bool:
        """Return True with the given probability."""
        return self._word() < probability * 2.0**32

    def choice(self, options: Sequence[T]) -> T:
        """Return one of `options`, all equally likely."""
        return options[self.integer(len(options))]

    def shuffled(self, options: Sequence[T]) -> list[T]:
        """Return `options` in random order; takes one word for each."""
        keys = [self._word() for _ in options]
        return [options[i] for i in sorted(range(len(options)), key=keys.__getitem__)]


def draws(seed: int, stream: Stream, number: int, round_: int = 0) -> Draws:
    """Return the row of `NUM_DRAWS` words with this name."""
    return draw_rows(seed, stream, [number], round_)[0]


def draw_rows(seed: int, stream: Stream, numbers: Sequence[int], round_: int = 0) -> list[Draws]:
    """Return `draws` for several numbers at once, which costs hardly more than for one."""
    return [Draws(row) for row in draw_words(seed, stream, numbers, round_, NUM_DRAWS)]


@lru_cache(maxsize=256)
def permutation(seed: int, stream: Stream, number: int, size: int) -> npt.NDArray[np.int64]:
    """Return a random order of 0 to size - 1: (size,) int64."""
    (words,) = draw_words(seed, stream, [number], 0, size)
    return np.argsort(words, kind="stable").astype(np.int64)
