from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskery.core.errors import ConfigError
from maskery.core.random import (
    MAX_EPOCH,
    Stream,
    philox4x32,
    random_rows,
    random_words,
    to_integers,
    to_uniforms,
    uniforms,
)

# kat_vectors of Random123 1.09, lines "philox4x32 10": counter, key, result.
KNOWN = [
    (
        (0, 0, 0, 0),
        (0, 0),
        (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8),
    ),
    (
        (0xFFFFFFFF,) * 4,
        (0xFFFFFFFF,) * 2,
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]
WORDS = st.integers(0, 2**32 - 1)
IDS = st.integers(0, 2**64 - 1)
POSITIONS = st.integers(0, 2**32 - 1)


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_published_vectors(
    counter: tuple[int, ...], key: tuple[int, int], expected: tuple[int, ...]
) -> None:
    c0, c1, c2, c3 = (np.array([word], np.uint64) for word in counter)
    assert [int(word[0]) for word in philox4x32((c0, c1, c2, c3), key)] == list(expected)
    # The counter is an argument, not a workspace.
    assert [int(c[0]) for c in (c0, c1, c2, c3)] == list(counter)


def philox_in_integers(counter: list[int], key: list[int]) -> list[int]:
    """The rounds of the paper (section 4.3 and figure 3) in Python's own integers."""
    for _ in range(10):
        high_0, low_0 = divmod(0xD2511F53 * counter[0], 2**32)
        high_1, low_1 = divmod(0xCD9E8D57 * counter[2], 2**32)
        counter = [high_1 ^ counter[1] ^ key[0], low_1, high_0 ^ counter[3] ^ key[1], low_0]
        key = [(key[0] + 0x9E3779B9) % 2**32, (key[1] + 0xBB67AE85) % 2**32]
    return counter


@given(
    st.integers(0, 2**64 - 1),
    st.sampled_from(Stream),
    st.integers(0, MAX_EPOCH),
    st.lists(st.tuples(IDS, POSITIONS), min_size=1, max_size=8),
)
def test_a_word_is_named_by_seed_stream_epoch_example_and_position(
    seed: int, stream: Stream, epoch: int, names: list[tuple[int, int]]
) -> None:
    ids = np.array([i for i, _ in names], np.uint64)
    positions = np.array([p for _, p in names], np.int64)
    expected = [
        philox_in_integers(
            [p // 4, i % 2**32, i >> 32, epoch + (int(stream) << 24)], [seed % 2**32, seed >> 32]
        )[p % 4]
        for i, p in names
    ]
    assert random_words(seed, stream, epoch, ids, positions).tolist() == expected


@given(
    st.lists(st.tuples(IDS, st.integers(0, 10_000), st.integers(0, 25)), max_size=12),
    st.sampled_from(Stream),
)
def test_rows_are_words_of_consecutive_positions(
    runs: list[tuple[int, int, int]], stream: Stream
) -> None:
    ids = np.array([i for i, _, _ in runs], np.uint64)
    starts = np.array([s for _, s, _ in runs], np.int64)
    lengths = np.array([n for _, _, n in runs], np.int64)
    positions = np.array([p for _, s, n in runs for p in range(s, s + n)], np.int64)
    rows = random_rows(7, stream, 2, ids, starts, lengths)
    words = random_words(7, stream, 2, np.repeat(ids, lengths), positions)
    assert rows.dtype == words.dtype == np.uint32
    assert rows.tolist() == words.tolist()


def test_rows_longer_than_a_block() -> None:
    ids, starts, lengths = np.array([5, 6], np.uint64), np.array([3, 0]), np.array([70_001, 9])
    rows = random_rows(0, Stream.SELECT, 0, ids, starts, lengths)
    positions = np.concatenate((np.arange(3, 70_004), np.arange(9)))
    words = random_words(0, Stream.SELECT, 0, np.repeat(ids, lengths), positions)
    assert np.array_equal(rows, words)


def draws(
    seed: int = 0, stream: Stream = Stream.SELECT, epoch: int = 0, example: int = 0
) -> np.ndarray:
    n = 1 << 16
    return uniforms(seed, stream, epoch, np.full(n, example, np.uint64), np.arange(n))


def test_uniforms_are_uniform() -> None:
    # 256 cells: chi-square with 255 degrees of freedom has mean 255 and deviation sqrt(510);
    # five deviations either way.
    for values in (draws(), draws(seed=2**63), draws(example=2**64 - 1)):
        assert 0.0 <= values.min() <= values.max() < 1.0
        seen = np.bincount((values * 256).astype(np.int64), minlength=256)
        statistic = ((seen - len(values) / 256) ** 2 / (len(values) / 256)).sum()
        assert abs(statistic - 255) < 5 * np.sqrt(510)


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 1},
        {"seed": 1 << 32},
        {"stream": Stream.CORRUPT},
        {"epoch": 1},
        {"epoch": MAX_EPOCH},
        {"example": 1},
        {"example": 1 << 32},
    ],
)
def test_other_names_give_independent_draws(other: dict[str, int]) -> None:
    one, two = draws(), draws(**other)  # type: ignore[arg-type]
    # A correlation of independent draws has deviation 1/sqrt(n); five of them.
    assert abs(np.corrcoef(one, two)[0, 1]) < 5 / np.sqrt(len(one))
    assert (one == two).mean() < 1e-3


def test_neighbouring_positions_are_independent() -> None:
    values = draws()
    for lag in (1, 2, 3, 4, 5):
        correlation = np.corrcoef(values[:-lag], values[lag:])[0, 1]
        assert abs(correlation) < 5 / np.sqrt(len(values))


def test_uniforms_are_the_top_24_bits() -> None:
    words = np.array([0, 255, 256, 2**31, 2**32 - 1], np.uint32)
    assert to_uniforms(words).tolist() == [0.0, 0.0, 2.0**-24, 0.5, 1 - 2.0**-24]


@given(st.lists(WORDS, max_size=20), st.integers(1, 2**31))
def test_integers_are_the_scaled_words(words: list[int], bound: int) -> None:
    drawn = to_integers(np.array(words, np.uint32), bound)
    assert drawn.tolist() == [word * bound // 2**32 for word in words]


@pytest.mark.parametrize("kind", [np.int32, np.int64, np.uint64])
def test_numpys_own_integers_are_integers(kind: type[np.integer[Any]]) -> None:
    place = np.zeros(3, np.uint64), np.arange(3)
    expected = random_words(7, Stream.SELECT, 1, *place)
    assert random_words(kind(7), Stream.SELECT, kind(1), *place).tolist() == expected.tolist()
    assert to_integers(expected, kind(9)).tolist() == to_integers(expected, 9).tolist()


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_out_of_range_is_refused(seed: int) -> None:
    with pytest.raises(ConfigError, match=f"the seed is {seed}.*2\\*\\*64 - 1"):
        random_words(seed, Stream.SELECT, 0, np.zeros(1, np.uint64), np.zeros(1, np.int64))


@pytest.mark.parametrize("epoch", [-1, MAX_EPOCH + 1])
def test_an_epoch_out_of_range_is_refused(epoch: int) -> None:
    with pytest.raises(ConfigError, match=f"the epoch is {epoch}.*{MAX_EPOCH}"):
        random_rows(
            0,
            Stream.SELECT,
            epoch,
            np.zeros(1, np.uint64),
            np.zeros(1, np.int64),
            np.ones(1, np.int64),
        )
