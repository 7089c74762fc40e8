"""Counter-based random numbers: a uniform is a pure function of what it is for.

Philox4x32-10 (Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3",
SC 2011) maps a 128-bit counter and a 64-bit key to 128 random bits. Here

    key      = seed                                   (64 bits)
    counter  = (position // 4, example id, epoch | stream << 24)
                 32 bits       64 bits     24 bits  8 bits

and the word `position % 4` of the result belongs to `position`. So nothing about a draw depends on
batch composition, on the order of the draws, on the number of workers or on resuming. NumPy and
torch give identical bits.

Shapes: N draws, C counters (four words each).
"""

import operator
from collections.abc import Iterator
from enum import IntEnum
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

from maskery.core.batch import Ids, Ints, TokenBatch
from maskery.core.errors import ConfigError

if TYPE_CHECKING:
    import torch

UInt32Array: TypeAlias = npt.NDArray[np.uint32]
Float32Array: TypeAlias = npt.NDArray[np.float32]

# The paper's: rounds, multipliers, and what is added to the key after each round.
ROUNDS = 10
MULTIPLIER_0, MULTIPLIER_1 = 0xD2511F53, 0xCD9E8D57
WEYL_0, WEYL_1 = 0x9E3779B9, 0xBB67AE85
WORD, SHIFT = 0xFFFFFFFF, np.uint64(32)  # The lower word of 64 bits, and where the upper begins
MAX_EPOCH = (1 << 24) - 1  # The epoch has 24 bits of the counter; the stream has the other 8
BLOCK = 16384  # Counters are worked through in blocks that stay in the second-level cache


class Stream(IntEnum):
    """Purposes of draws; draws of different streams are independent."""

    SELECT = 0  # Which tokens (or words, or spans) are masked
    CORRUPT = 1  # The fate of a masked token: `[MASK]`, a random token or itself
    REPLACE = 2  # Which random token replaces it
    SPAN = 3  # The gaps and lengths of masked spans
    ORDER = 4  # The order of the examples of an epoch
    SAMPLE = 5  # Tokens sampled from a generator's distribution (MRTD)
    NEGATIVE = 6  # Hard negatives of a matching loss
    VIEW = 7  # Augmented views of an image
    CAPTION = 8  # Which caption of a picture or a person is read


Words: TypeAlias = tuple[Ids, Ids, Ids, Ids]


def philox4x32(counter: Words, key: tuple[int, int]) -> Words:
    """Run ten rounds of Philox4x32 over counters, four arrays (C,) of values below 2**32."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        product_0, product_1 = c0 * MULTIPLIER_0, c2 * MULTIPLIER_1
        c0 = product_1 >> SHIFT
        c0 ^= c1
        c0 ^= k0
        c2 = product_0 >> SHIFT
        c2 ^= c3
        c2 ^= k1
        product_1 &= WORD
        product_0 &= WORD
        c1, c3 = product_1, product_0
        k0, k1 = (k0 + WEYL_0) & WORD, (k1 + WEYL_1) & WORD
    return c0, c1, c2, c3


def _blocks(
    seed: int, stream: Stream, epoch: int, example_ids: Ids, counters: Ints
) -> Iterator[tuple[slice, Words]]:
    """Yield a slice of the counters (C,) and their four words, block by block."""
    seed = operator.index(seed)  # a scalar of NumPy's would turn the words into floats
    if not 0 <= seed < 1 << 64:
        raise ConfigError(f"the seed is {seed}: it must be from 0 to 2**64 - 1; choose another")
    if not 0 <= epoch <= MAX_EPOCH:
        raise ConfigError(f"the epoch is {epoch}: it must be from 0 to {MAX_EPOCH}")
    last_word = np.uint64(epoch | int(stream) << 24)
    for start in range(0, len(counters), BLOCK):
        chosen = slice(start, start + BLOCK)
        ids, index = example_ids[chosen], counters[chosen].astype(np.uint64)
        counter = (index, ids & np.uint64(WORD), ids >> SHIFT, np.full(len(ids), last_word))
        yield chosen, philox4x32(counter, (seed & WORD, seed >> 32))


def random_words(
    seed: int, stream: Stream, epoch: int, example_ids: Ids, positions: Ints
) -> UInt32Array:
    """Return a 32-bit word for each (example id, position) of (N,), repeated ones too."""
    words = np.empty(len(positions), np.uint32)
    for chosen, block in _blocks(seed, stream, epoch, example_ids, positions >> 2):
        words[chosen] = np.choose(positions[chosen] & 3, block)
    return words


def random_rows(
    seed: int, stream: Stream, epoch: int, example_ids: Ids, starts: Ints, lengths: Ints
) -> UInt32Array:
    """`random_words` for runs of consecutive positions, four positions for each counter.

    A run is an example, its first position and its number of positions, (B,) each. Returns (sum of
    lengths,) uint32: the words of run 0, then of run 1, and so on.
    """
    first = starts >> 2
    counts = np.where(lengths > 0, ((starts + lengths + 3) >> 2) - first, 0)
    num_counters = int(counts.sum())
    offsets = np.cumsum(counts) - counts
    # Every run takes whole counters; `within` numbers the counters of each run from its first.
    within = np.arange(num_counters) - np.repeat(offsets - first, counts)
    words = np.empty((num_counters, 4), np.uint32)
    for chosen, block in _blocks(seed, stream, epoch, np.repeat(example_ids, counts), within):
        for lane in range(4):
            words[chosen, lane] = block[lane]
    flat = words.reshape(-1)
    # Drop the words before each run's first position and after its last.
    gaps = 4 * offsets + (starts & 3) - (np.cumsum(lengths) - lengths)
    if not gaps.any() and len(flat) == int(lengths.sum()):
        return flat
    kept: UInt32Array = flat[np.arange(int(lengths.sum())) + np.repeat(gaps, lengths)]
    return kept


def to_uniforms(words: UInt32Array) -> Float32Array:
    """Turn 32-bit words into float32 uniforms in [0, 1), exact multiples of 2**-24."""
    return (words >> 8).astype(np.float32) * 2.0**-24


def to_integers(words: UInt32Array, bound: int) -> Ints:
    """Turn 32-bit words into integers in [0, bound), each as likely to within 2**-32."""
    return (words.astype(np.uint64) * np.uint64(bound) >> SHIFT).astype(np.int64)


def uniforms(
    seed: int, stream: Stream, epoch: int, example_ids: Ids, positions: Ints
) -> Float32Array:
    """`random_words` as float32 uniforms in [0, 1): (N,)."""
    return to_uniforms(random_words(seed, stream, epoch, example_ids, positions))


def token_uniforms(batch: TokenBatch, tokens: Ints, *, seed: int, epoch: int) -> "torch.Tensor":
    """Return one uniform for each of the given tokens (N,), to sample replacements with."""
    import torch  # workers that tokenise do without

    rows = batch.sequences_of(tokens)
    positions = batch.starts[rows] + tokens - batch.boundaries[rows]
    drawn = uniforms(seed, Stream.SAMPLE, epoch, batch.example_ids[rows], positions)
    return torch.from_numpy(drawn)
