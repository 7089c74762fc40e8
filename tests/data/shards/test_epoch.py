"""The steps that are counted without reading are the steps that are made."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskery.core.errors import ConfigError, DataError
from maskery.data.batching import cut_by_padded_size, cut_by_sum, cut_windows
from maskery.data.shards.source import (
    Epoch,
    count_steps,
    cut_exactly,
    padded_cuts,
    shard_blocks,
    split_fullest,
    step_order,
    window_histogram,
    window_order,
)

LENGTHS = st.lists(st.integers(1, 30), min_size=1, max_size=200).map(lambda x: np.array(x))


@given(lengths=st.lists(st.integers(0, 100), max_size=50), room=st.integers(1, 40))
def test_windows_are_counted_as_they_are_cut(lengths: list[int], room: int) -> None:
    documents = np.array(lengths, np.int64)
    windows = cut_windows(documents, np.arange(len(documents)), room)
    expected = np.bincount(windows.lengths + 2, minlength=room + 3)
    values, counts = np.unique(documents, return_counts=True)
    assert window_histogram(values, counts, room=room, special=2).tolist() == expected.tolist()


@given(lengths=LENGTHS, budget=st.integers(30, 200), order=st.randoms(use_true_random=False))
def test_no_order_of_packed_windows_needs_more_steps(
    lengths: np.ndarray, budget: int, order: object
) -> None:
    steps = count_steps(np.bincount(lengths), batch_tokens=budget, layout="packed")
    rows = lengths.tolist()
    order.shuffle(rows)  # type: ignore[attr-defined]
    assert len(cut_by_sum(np.array(rows), budget)) - 1 <= steps <= len(rows)


def test_packed_steps_of_short_windows_are_nearly_full() -> None:
    lengths = np.random.default_rng(0).integers(4, 65, 100_000)
    steps = count_steps(np.bincount(lengths), batch_tokens=4096, layout="packed")
    assert lengths.sum() / steps > 4096 - 64 - 5  # the last step may be short
    # And where every window is of full length, no place is lost.
    assert count_steps(np.bincount([512] * 80), batch_tokens=4096, layout="packed") == 10


@given(lengths=LENGTHS, budget=st.integers(30, 200))
def test_padded_steps_are_cut_as_windows_one_by_one_would_be(
    lengths: np.ndarray, budget: int
) -> None:
    expected = cut_by_padded_size(np.sort(lengths), budget)
    assert padded_cuts(np.bincount(lengths), budget).tolist() == expected.tolist()
    counted = count_steps(np.bincount(lengths), batch_tokens=budget, layout="padded")
    assert counted == len(expected) - 1


@given(
    lengths=LENGTHS,
    budget=st.integers(30, 200),
    layout=st.sampled_from(["packed", "padded"]),
    left_out=st.integers(0, 100),
)
def test_windows_are_cut_into_exactly_so_many_steps(
    lengths: np.ndarray, budget: int, layout: str, left_out: int
) -> None:
    steps = count_steps(np.bincount(lengths), batch_tokens=budget, layout=layout)  # type: ignore[arg-type]
    kept = lengths[left_out:]
    if layout == "padded":
        kept = np.sort(kept)
    if len(kept) < steps:
        with pytest.raises(DataError, match="nearly all of it stands in --eval-data"):
            cut_exactly(kept, steps, batch_tokens=budget, layout=layout)  # type: ignore[arg-type]
        return
    edges = cut_exactly(kept, steps, batch_tokens=budget, layout=layout)  # type: ignore[arg-type]
    assert (len(edges), edges[0], edges[-1]) == (steps + 1, 0, len(kept))
    for first, end in pairwise(edges.tolist()):
        rows = kept[first:end]
        assert len(rows)
        size = rows.sum() if layout == "packed" else rows.max() * len(rows)
        assert size <= budget


def test_packed_steps_are_of_like_size() -> None:
    lengths = np.random.default_rng(1).integers(4, 200, 20_000)
    steps = count_steps(np.bincount(lengths), batch_tokens=4096, layout="packed")
    edges = cut_exactly(lengths, steps, batch_tokens=4096, layout="packed")
    sizes = np.add.reduceat(lengths, edges[:-1])
    assert np.percentile(sizes, 5) > 0.9 * sizes.mean()


def test_nothing_makes_no_steps() -> None:
    nothing = np.zeros(5, np.int64)
    for layout in ("packed", "padded"):
        assert count_steps(nothing, batch_tokens=8, layout=layout) == 0  # type: ignore[arg-type]
        assert cut_exactly(nothing[:0], 0, batch_tokens=8, layout=layout).tolist() == [0]  # type: ignore[arg-type]


def test_a_budget_below_the_longest_window_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"--batch-tokens is 4, less than the longest .*\(5 tok"):
        count_steps(np.bincount([5]), batch_tokens=4, layout="packed")


def test_splitting_halves_the_fullest() -> None:
    assert split_fullest(np.array([0, 8, 9]), 4).tolist() == [0, 2, 4, 8, 9]
    assert split_fullest(np.array([0, 8]), 1).tolist() == [0, 8]


def test_every_shard_is_in_one_block_and_epochs_differ() -> None:
    blocks = shard_blocks(10, 4, seed=3, epoch=0)
    assert [len(block) for block in blocks] == [4, 4, 2]
    assert sorted(number for block in blocks for number in block) == list(range(10))
    assert blocks == shard_blocks(10, 4, seed=3, epoch=0)
    assert blocks != shard_blocks(10, 4, seed=3, epoch=1) != shard_blocks(10, 4, seed=4, epoch=1)


def test_windows_are_shuffled_over_all_shards_of_a_block() -> None:
    order = window_order([5, 2], [1000, 1000], seed=0, epoch=0)
    assert sorted(order.tolist()) == list(range(2000))
    # Of 1000 places in a fair shuffle, 500 are the first shard's, give or take five deviations.
    assert abs(int((order[:1000] < 1000).sum()) - 500) < 5 * 12
    assert abs(np.corrcoef(order, np.arange(2000))[0, 1]) < 0.12
    assert sorted(step_order(7, 20, seed=0, epoch=0).tolist()) == list(range(20))


def test_a_step_is_found_in_its_block() -> None:
    epoch = Epoch(blocks=[[0], [1], [2]], firsts=np.array([0, 3, 3, 5]), tokens=50)
    assert [epoch.find(step) for step in range(5)] == [(0, 0), (0, 1), (0, 2), (2, 0), (2, 1)]
    assert epoch.num_steps == 5
