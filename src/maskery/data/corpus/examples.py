"""Examples, their content-based ids, and the held-out share.

Shapes: N examples.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from maskery.core.errors import ConfigError

# SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA
# 2014): the increment, then the multipliers of its finaliser.
GOLDEN_GAMMA = 0x9E3779B97F4A7C15
MULTIPLIER_1, MULTIPLIER_2 = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


class Example(NamedTuple):
    r"""One text of a corpus.

    Attributes:
        text: Stripped of white space at both ends, never blank; line ends are `\n`.
        source: The file, or the hub dataset, it comes from.
        id: Unsigned 64-bit, from `example_id`.
    """

    text: str
    source: str
    id: int


def example_id(text: str) -> int:
    """The id of a text: the first 8 bytes, little-endian, of BLAKE2b (RFC 7693) of its UTF-8.

    The id depends on the content alone: it stays when files move or are sorted anew, and
    duplicates share it, so that no text is both trained on and held out.
    """
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")


def is_held_out(ids: npt.NDArray[np.uint64], share: float) -> npt.NDArray[np.bool_]:
    """Which examples belong to the held-out share, by a hash of their ids.

    The ids are mixed once more, so that the choice is independent of any other use of them.

    Args:
        ids: (N,) uint64.
        share: The expected share of distinct texts, from 0 to 1. A larger share holds out a
            superset of a smaller one.

    Returns:
        (N,) bool.

    Raises:
        ConfigError: The share is outside [0, 1].
    """
    if not 0.0 <= share <= 1.0:
        raise ConfigError(f"the held-out share is {share}: it must be from 0 to 1")
    if share == 1.0:  # 2**64 is no uint64
        return np.ones(len(ids), np.bool_)
    return mix(ids) < np.uint64(int(share * 2.0**64))


def mix(ids: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The first output of SplitMix64 for each seed of `ids`: (N,) uint64, a bijection."""
    mixed = ids + np.uint64(GOLDEN_GAMMA)
    mixed ^= mixed >> np.uint64(30)
    mixed *= np.uint64(MULTIPLIER_1)
    mixed ^= mixed >> np.uint64(27)
    mixed *= np.uint64(MULTIPLIER_2)
    mixed ^= mixed >> np.uint64(31)
    return mixed
