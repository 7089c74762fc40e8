from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from maskery.core.batch import TokenBatch, Vocabulary
from maskery.masking.config import MaskingConfig
from maskery.masking.masker import corrupt
from maskery.masking.policies import Draws

MakeBatch = Callable[..., TokenBatch]
DRAWS = Draws(seed=3, epoch=1)
NUM_MASKED = 100_000


@pytest.fixture(scope="module")
def batch(make_batch: MakeBatch) -> TokenBatch:
    return make_batch([500] * 400)


@pytest.fixture(scope="module")
def positions(batch: TokenBatch, vocabulary: Vocabulary) -> np.ndarray:
    maskable = np.flatnonzero(~vocabulary.protected[batch.input_ids])
    return maskable[::2]


@pytest.mark.parametrize(
    ("mask_share", "random_share"), [(0.8, 0.1), (0.0, 1.0), (0.5, 0.5), (0.2, 0.0)]
)
def test_shares(
    batch: TokenBatch,
    positions: np.ndarray,
    vocabulary: Vocabulary,
    mask_share: float,
    random_share: float,
) -> None:
    config = MaskingConfig(mask_share=mask_share, random_share=random_share)
    corrupted = corrupt(batch, positions, None, vocabulary, DRAWS, config)[positions]
    original = batch.input_ids[positions]
    masked = (corrupted == vocabulary.mask_token_id).mean()
    # A random token is the original one time in 995.
    replaced = ((corrupted != original) & (corrupted != vocabulary.mask_token_id)).mean()
    for seen, expected in ((masked, mask_share), (replaced, random_share * 994 / 995)):
        error = np.sqrt(expected * (1 - expected) / NUM_MASKED)
        assert abs(seen - expected) <= 5 * error


def test_only_the_positions_change(
    batch: TokenBatch, positions: np.ndarray, vocabulary: Vocabulary
) -> None:
    corrupted = corrupt(batch, positions, None, vocabulary, DRAWS, MaskingConfig())
    others = np.setdiff1d(np.arange(batch.num_tokens), positions)
    assert np.array_equal(corrupted[others], batch.input_ids[others])
    assert not np.shares_memory(corrupted, batch.input_ids)


def test_replacements_are_uniform_over_the_ordinary_tokens(
    batch: TokenBatch, positions: np.ndarray, vocabulary: Vocabulary
) -> None:
    config = MaskingConfig(mask_share=0.0, random_share=1.0)
    drawn = corrupt(batch, positions, None, vocabulary, DRAWS, config)[positions]
    seen = np.bincount(drawn, minlength=vocabulary.size)
    assert not seen[list(vocabulary.special_ids)].any()
    ordinary = np.delete(seen, list(vocabulary.special_ids))
    expected = NUM_MASKED / 995
    # Chi-square with 994 degrees of freedom, five deviations.
    statistic = ((ordinary - expected) ** 2 / expected).sum()
    assert abs(statistic - 994) < 5 * np.sqrt(2 * 994)


def test_what_a_token_becomes_is_independent_of_what_replaces_it_and_of_its_neighbour(
    batch: TokenBatch, positions: np.ndarray, vocabulary: Vocabulary
) -> None:
    corrupted = corrupt(batch, positions, None, vocabulary, DRAWS, MaskingConfig(mask_share=0.5))
    masked = (corrupted[positions] == vocabulary.mask_token_id).astype(float)
    assert abs(np.corrcoef(masked[:-1], masked[1:])[0, 1]) < 5 / np.sqrt(NUM_MASKED)


def test_mask_alone_as_the_seed_document_has_it(
    batch: TokenBatch, positions: np.ndarray, vocabulary: Vocabulary
) -> None:
    config = MaskingConfig(mask_share=1.0, random_share=0.0)
    corrupted = corrupt(batch, positions, None, vocabulary, DRAWS, config)
    assert (corrupted[positions] == vocabulary.mask_token_id).all()


def test_tokens_with_one_anchor_fare_alike(
    batch: TokenBatch, positions: np.ndarray, vocabulary: Vocabulary
) -> None:
    # Groups of five masked tokens; a replaced one keeps its own id only by a chance of 1 in 995.
    groups = positions[: NUM_MASKED // 250 * 250].reshape(-1, 250)[:, :5]
    chosen, anchors = groups.ravel(), np.repeat(groups[:, 0], 5)
    config = MaskingConfig(mask_share=0.4, random_share=0.3)
    corrupted = corrupt(batch, chosen, anchors, vocabulary, DRAWS, config)[chosen].reshape(-1, 5)
    masked = (corrupted == vocabulary.mask_token_id).sum(axis=1)
    changed = (corrupted != batch.input_ids[groups]).sum(axis=1)
    assert set(masked.tolist()) == {0, 5}
    assert set(changed.tolist()) <= {0, 4, 5}
    # Each of the replaced tokens draws its own replacement.
    replaced = corrupted[(masked == 0) & (changed == 5)]
    assert len(replaced) > 50
    assert np.mean([len(set(row)) for row in replaced.tolist()]) > 4.9


def test_no_positions(batch: TokenBatch, vocabulary: Vocabulary) -> None:
    none = np.zeros(0, np.int64)
    corrupted = corrupt(batch, none, None, vocabulary, DRAWS, MaskingConfig())
    assert np.array_equal(corrupted, batch.input_ids)
