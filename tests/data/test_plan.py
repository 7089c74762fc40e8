from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskery.core.errors import ConfigError
from maskery.data.batching import Layout, Plan, plan_epoch, split_step

LAYOUTS: list[Layout] = ["packed", "padded"]
LENGTHS = st.lists(st.integers(1, 64), max_size=200)


def realistic_lengths(count: int = 3000) -> np.ndarray:
    """Sentences: log-normal with a median of 24 tokens, cut into windows of 128 at most."""
    drawn = np.random.default_rng(0).lognormal(np.log(24), 0.7, count)
    return np.clip(drawn.astype(np.int64) + 3, 3, 128)


def steps(plan: Plan) -> list[np.ndarray]:
    return [plan.step(index) for index in range(plan.num_steps)]


@pytest.mark.parametrize("layout", LAYOUTS)
@given(lengths=LENGTHS, seed=st.integers(0, 2**64 - 1), budget=st.integers(64, 400))
def test_every_example_once_and_no_step_over_the_budget(
    layout: Layout, lengths: list[int], seed: int, budget: int
) -> None:
    array = np.array(lengths, np.int64)
    plan = plan_epoch(array, seed=seed, epoch=1, batch_tokens=budget, layout=layout)
    assert sorted(plan.order.tolist()) == list(range(len(lengths)))
    assert plan.boundaries[0] == 0
    assert plan.boundaries[-1] == len(lengths)
    for step in steps(plan):
        assert len(step) > 0
        cost = array[step].sum() if layout == "packed" else array[step].max() * len(step)
        assert cost <= budget
    again = plan_epoch(array.copy(), seed=seed, epoch=1, batch_tokens=budget, layout=layout)
    assert np.array_equal(plan.order, again.order)
    assert np.array_equal(plan.boundaries, again.boundaries)


@given(LENGTHS, st.integers(64, 400))
def test_packed_steps_are_as_full_as_their_order_allows(lengths: list[int], budget: int) -> None:
    array = np.array(lengths, np.int64)
    plan = plan_epoch(array, seed=0, epoch=0, batch_tokens=budget)
    pieces = steps(plan)
    for step, following in itertools.pairwise(pieces):
        assert array[step].sum() + array[following[0]] > budget


@pytest.mark.parametrize("layout", LAYOUTS)
def test_orders_differ_by_epoch_and_seed(layout: Layout) -> None:
    lengths = realistic_lengths()
    orders = [
        plan_epoch(lengths, seed=seed, epoch=epoch, batch_tokens=2048, layout=layout).order
        for seed, epoch in ((0, 0), (0, 1), (1, 0))
    ]
    for other in orders[1:]:
        assert (orders[0] == other).mean() < 0.02


def test_the_packed_order_is_a_fair_shuffle() -> None:
    place = np.zeros((6, 6))
    for seed in range(3000):
        plan = plan_epoch(np.ones(6, np.int64), seed=seed, epoch=0, batch_tokens=6)
        place[plan.order, np.arange(6)] += 1
    # Every example at every place alike; 25 degrees of freedom, five deviations.
    assert ((place - 500) ** 2 / 500).sum() < 25 + 5 * np.sqrt(50)


def test_padded_steps_hold_little_padding() -> None:
    lengths = realistic_lengths()
    plan = plan_epoch(lengths, seed=0, epoch=0, batch_tokens=2048, layout="padded")
    computed = sum(int(lengths[step].max()) * len(step) for step in steps(plan))
    assert lengths.sum() / computed >= 0.8
    # And little of the budget is left unused.
    assert lengths.sum() / (plan.num_steps * 2048) >= 0.8


def test_packed_steps_are_nearly_full() -> None:
    lengths = realistic_lengths()
    plan = plan_epoch(lengths, seed=0, epoch=0, batch_tokens=2048)
    assert lengths.sum() / (plan.num_steps * 2048) >= 0.97


def test_padded_steps_do_not_come_in_order_of_length() -> None:
    lengths = realistic_lengths()
    plan = plan_epoch(lengths, seed=0, epoch=0, batch_tokens=2048, layout="padded")
    means = np.array([lengths[step].mean() for step in steps(plan)])
    correlation = np.corrcoef(means[:-1], means[1:])[0, 1]
    assert abs(correlation) < 5 / np.sqrt(len(means))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_example_longer_than_the_budget_is_refused(layout: Layout) -> None:
    with pytest.raises(ConfigError, match=r"--batch-tokens is 50.*\(51 tokens\).*--max-length"):
        plan_epoch(np.array([3, 51]), seed=0, epoch=0, batch_tokens=50, layout=layout)


@given(
    st.lists(st.integers(1, 60), max_size=40),
    st.integers(1, 200),
    st.integers(1, 5),
)
def test_a_step_is_split_whole(lengths: list[int], micro_tokens: int, parts: int) -> None:
    array = np.array(lengths, np.int64)
    pieces = split_step(array, micro_tokens=micro_tokens, parts=parts)
    assert sorted(np.concatenate(pieces).tolist()) == list(range(len(lengths)))
    assert len(pieces) % parts == 0
    assert all((np.diff(piece) > 0).all() for piece in pieces)
    for piece in pieces:
        # An example that exceeds the budget needs its own length in any case.
        assert array[piece].sum() <= max(micro_tokens, *lengths, 1)
    # No more micro-batches than examples, rounded up to the processes.
    assert len(pieces) <= -(-max(len(lengths), 1) // parts) * parts


def test_a_step_is_not_split_without_need() -> None:
    assert [p.tolist() for p in split_step(np.array([5, 5, 5]), micro_tokens=15, parts=1)] == [
        [0, 1, 2]
    ]
    assert len(split_step(np.array([5, 5, 5, 5]), micro_tokens=10, parts=1)) == 2


@given(st.lists(st.integers(1, 60), min_size=1, max_size=40), st.integers(2, 5))
def test_the_longest_left_goes_to_the_emptiest_part(lengths: list[int], parts: int) -> None:
    members: list[list[int]] = [[] for _ in range(parts)]
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        emptiest = min(range(parts), key=lambda p: sum(lengths[i] for i in members[p]))
        members[emptiest].append(index)
    found = split_step(np.array(lengths, np.int64), micro_tokens=10**6, parts=parts)
    assert [piece.tolist() for piece in found] == [sorted(part) for part in members]


def test_parts_are_of_like_size() -> None:
    lengths = realistic_lengths(300)
    sizes = [int(lengths[p].sum()) for p in split_step(lengths, micro_tokens=10**6, parts=4)]
    # Longest first into the emptiest leaves a difference of at most the shortest examples.
    assert max(sizes) - min(sizes) <= 12
