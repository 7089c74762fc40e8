"""Masks and weights of masked diffusion: the NELBO, exactly, over all subsets and all orders."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from maskery.core.batch import TokenBatch, Vocabulary
from maskery.masking.diffusion import FLOOR, DiffusionMasker, NelboMasker, drawn_times
from maskery.masking.policies import Draws

MakeBatch = Callable[..., TokenBatch]
KINDS = [DiffusionMasker, NelboMasker]


@pytest.mark.parametrize("kind", KINDS)
def test_masks_do_not_depend_on_the_batch(
    make_batch: MakeBatch, vocabulary: Vocabulary, kind: type[DiffusionMasker]
) -> None:
    masker = kind.of(vocabulary, seed=5)
    lengths, ids, starts = [9, 0, 30, 4, -1, 17], [7, 8, 7, 9, 1, 2], [0, 0, 11, 3, 0, 0]
    whole = masker.mask(make_batch(lengths, ids=ids, starts=starts), epoch=2)
    edges, parts = whole.batch.boundaries, []
    for first, last in itertools.pairwise([0, 1, 4, 6]):
        chosen = slice(edges[first], edges[last])
        part = TokenBatch(
            input_ids=whole.batch.input_ids[chosen],
            boundaries=edges[first : last + 1] - edges[first],
            example_ids=whole.batch.example_ids[first:last],
            starts=whole.batch.starts[first:last],
            word_starts=whole.batch.word_starts[chosen],
        )
        parts.append(masker.mask(part, epoch=2))
    assert np.array_equal(np.concatenate([p.input_ids for p in parts]), whole.input_ids)
    assert np.array_equal(np.concatenate([p.weights for p in parts]), whole.weights)
    assert len(whole.positions)
    hidden = whole.input_ids[whole.positions]
    assert (hidden == vocabulary.mask_token_id).all()  # never a random token, never itself
    other = masker.mask(whole.batch, epoch=3)
    assert not np.array_equal(other.input_ids, whole.input_ids)


def test_a_sequence_has_one_t_and_weights_of_its_inverse(
    make_batch: MakeBatch, vocabulary: Vocabulary
) -> None:
    batch = make_batch([400] * 60)
    masked = DiffusionMasker.of(vocabulary, seed=1).mask(batch, epoch=0)
    words = Draws(seed=1, epoch=0).at("diffusion time", batch.example_ids, batch.starts)
    assert masked.weights is not None
    for row, word in enumerate(words.tolist()):
        t = FLOOR + (1 - FLOOR) * (word + 1) / 2**32
        own = batch.sequences_of(masked.positions) == row
        assert masked.weights[own] == pytest.approx(1 / t)
        assert own.sum() / 400 == pytest.approx(t, abs=4.5 * np.sqrt(t * (1 - t) / 400) + 1e-9)


def test_the_bell_is_a_density_with_bounded_weights() -> None:
    uniforms = (np.arange(200_000) + 0.5) / 200_000
    times, density = drawn_times(uniforms, bell=True)
    assert (1 / density).mean() == pytest.approx(1.0, abs=1e-4)  # it integrates to 1 over t
    assert (times / density).mean() == pytest.approx(0.5 * (1 + FLOOR), abs=1e-4)
    counts, edges = np.histogram(times, 20, (FLOOR, 1.0))
    middle = (edges[1:] + edges[:-1]) / 2
    normal = np.exp(-(((middle - 0.5) / 0.25) ** 2) / 2)
    np.testing.assert_allclose(counts / counts.sum(), normal / normal.sum(), atol=5e-4)
    for bell in (False, True):
        ends = drawn_times(np.array([2.0**-32, 1.0]), bell=bell)
        assert (1 / (ends[0] * ends[1])).max() < 4.5 / FLOOR


@pytest.mark.parametrize("kind", ["uniform", "bell", "exact"])
def test_the_mean_is_that_over_all_subsets_and_all_orders(
    make_batch: MakeBatch, vocabulary: Vocabulary, kind: str
) -> None:
    # Any table of costs will do: of token i where the set S is masked, i in S.
    costs = np.random.default_rng(3).gamma(1.0, 2.0, (1 << 6, 6))
    subsets = [[i for i in range(6) if bits >> i & 1] for bits in range(1 << 6)]
    sums = np.array([costs[bits, chosen].sum() for bits, chosen in enumerate(subsets)])
    by_size = [sums[[len(s) == k for s in subsets]].mean() for k in range(7)]
    exact = sum(6 / k * by_size[k] for k in range(1, 7)) / 6
    orders = [
        sum(costs[sum(1 << j for j in order[n:]), i] for n, i in enumerate(order))
        for order in itertools.permutations(range(6))
    ]
    assert np.mean(orders) == pytest.approx(exact)

    batch, found = make_batch([6] * 1500), []
    made = NelboMasker if kind == "exact" else DiffusionMasker
    masker = replace(made.of(vocabulary, seed=11), bell=kind == "bell")
    for epoch in range(8):
        masked = masker.mask(batch, epoch=epoch)
        sequence = batch.sequences_of(masked.positions)
        inside = masked.positions - batch.boundaries[sequence] - 1
        bits = np.bincount(sequence, 1 << inside, minlength=1500).astype(np.int64)
        found.append(np.bincount(sequence, masked.weights * costs[bits[sequence], inside], 1500))
    # Of the exact kind, four draws in a row make one estimate.
    each = np.array(found).reshape(-1, made.draws, 1500).sum(axis=1).ravel()
    error = each.std(ddof=1) / np.sqrt(len(each))
    assert error < 0.02 * exact
    assert abs(each.mean() - exact) < 3 * error
    assert (error < 0.006 * exact) == (kind == "exact")


def test_frozen_weights_sum_to_the_tokens(make_batch: MakeBatch, vocabulary: Vocabulary) -> None:
    batch = make_batch([1, 2, 3, 50, 0])
    masker, totals = NelboMasker.of(vocabulary), np.zeros(5)
    for epoch in range(NelboMasker.draws):
        masked = masker.mask(batch, epoch=epoch)
        counts = np.bincount(batch.sequences_of(masked.positions), minlength=5)
        assert 12.5 * epoch < counts[3] <= 12.5 * (epoch + 1) + 0.5
        totals += np.bincount(batch.sequences_of(masked.positions), masked.weights, minlength=5)
    assert totals == pytest.approx([1, 2, 3, 50, 0])
