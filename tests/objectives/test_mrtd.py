from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from maskery.objectives.mrtd import (
    mrtd_loss_sum,
    mrtd_mask_modeling,
    mrtd_mask_modeling_everywhere,
    sample_tokens,
)

PAD, CLS, SEP, MASK = 0, 1, 2, 3
SPECIAL = (PAD, CLS, SEP, MASK)
ORIGINAL = torch.tensor([[CLS, 10, 11, 12, SEP], [CLS, 13, SEP, PAD, PAD]])
REAL = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
MASKED = torch.tensor([[CLS, MASK, 11, MASK, SEP], [CLS, MASK, SEP, PAD, PAD]])


def test_sampling_follows_the_weights() -> None:
    weights = torch.tensor([0.0, 3.0, 0.0, 1.0, 0.0])
    uniforms = torch.rand(40_000, generator=torch.Generator().manual_seed(0))
    drawn = sample_tokens(weights.expand(len(uniforms), -1), uniforms)
    counts = torch.bincount(drawn, minlength=5)
    assert counts[[0, 2, 4]].tolist() == [0, 0, 0]
    # Four standard deviations of a binomial share of 40,000 draws.
    assert counts[1].item() / 40_000 == pytest.approx(0.75, abs=4 * (0.75 * 0.25 / 40_000) ** 0.5)


@settings(deadline=None, max_examples=60)
@given(
    weights=st.lists(st.floats(0, 1, width=32), min_size=1, max_size=30).filter(
        lambda w: sum(w) > 1e-30
    ),
    uniform=st.floats(0, 1, exclude_max=True, width=32),
)
def test_a_token_without_weight_is_never_drawn(weights: list[float], uniform: float) -> None:
    (drawn,) = sample_tokens(torch.tensor([weights]), torch.tensor([uniform])).tolist()
    assert weights[drawn] > 0


def test_masked_words_are_replaced_and_labelled() -> None:
    # Position 1 becomes 20, position 3 happens to be right, row 1's word becomes 21.
    sampled = torch.tensor([20, 12, 21])
    ids, labels = mrtd_mask_modeling(MASKED, ORIGINAL, REAL, sampled=sampled, special_ids=SPECIAL)
    assert ids.tolist() == [[CLS, 20, 11, 12, SEP], [CLS, 21, SEP, PAD, PAD]]
    assert labels.tolist() == [[-100, 1, 0, 0, -100], [-100, 1, -100, -100, -100]]


def test_inputs_are_left_alone() -> None:
    before = MASKED.clone(), ORIGINAL.clone()
    mrtd_mask_modeling(MASKED, ORIGINAL, REAL, sampled=torch.tensor([20, 12, 21]))
    assert torch.equal(before[0], MASKED)
    assert torch.equal(before[1], ORIGINAL)


@pytest.mark.parametrize("shape", ["rows", "flat", "full"])
def test_weights_may_be_of_the_masked_rows_or_of_all(shape: str) -> None:
    generator = torch.Generator().manual_seed(2)
    weights = torch.rand(10, 30, generator=generator)
    positions = torch.tensor([1, 3, 6])
    given_weights = {
        "rows": weights[positions],
        "flat": weights,
        "full": weights.view(2, 5, 30),
    }[shape]
    uniforms = torch.rand(3, generator=generator)
    ids, _ = mrtd_mask_modeling(
        MASKED, ORIGINAL, REAL, given_weights, uniforms=uniforms, special_ids=SPECIAL
    )
    allowed = weights[positions].index_fill(1, torch.tensor(SPECIAL), 0)
    assert ids.flatten()[positions].tolist() == sample_tokens(allowed, uniforms).tolist()
    assert (ids.flatten()[positions] > MASK).all()


def test_masked_but_unchanged_words_are_sampled_when_positions_say_so() -> None:
    masked = MASKED.clone()
    masked[0, 3] = 12  # chosen for masking, kept as it is
    sampled = torch.tensor([20, 22, 21])
    ids, labels = mrtd_mask_modeling(
        masked, ORIGINAL, REAL, positions=torch.tensor([1, 3, 6]), sampled=sampled
    )
    assert ids[0, 3] == 22
    assert labels[0, 3] == 1


def test_neither_weights_nor_samples_is_refused() -> None:
    with pytest.raises(ValueError, match="weights and uniforms"):
        mrtd_mask_modeling(MASKED, ORIGINAL, REAL)


def test_everywhere_is_the_released_rule() -> None:
    sampled = torch.tensor([[9, 10, PAD, 20, SEP], [9, CLS, 7, 8, 8]])
    ids, labels = mrtd_mask_modeling_everywhere(ORIGINAL, REAL, sampled, pad_token_id=PAD)
    assert ids.tolist() == [[CLS, 10, PAD, 20, SEP], [CLS, CLS, 7, PAD, PAD]]
    assert labels.tolist() == [[-100, 0, -100, 1, 0], [-100, -100, 1, -100, -100]]


def test_real_words_are_judged() -> None:
    sampled = torch.tensor([20, 12, 21])
    for special_ids, judged in ((SPECIAL, [[0, 1, 1, 1, 0], [0, 1, 0, 0, 0]]), ((), REAL.tolist())):
        _, labels = mrtd_mask_modeling(
            MASKED, ORIGINAL, REAL, sampled=sampled, special_ids=special_ids
        )
        assert (labels != -100).int().tolist() == judged


def test_loss_ignores_what_is_not_judged() -> None:
    logits = torch.tensor([[0.0, 2.0], [1.0, 0.0], [5.0, -5.0]])
    expected = torch.log1p(torch.exp(torch.tensor([-2.0, 1.0]))).sum()
    actual = mrtd_loss_sum(logits, torch.tensor([1, 1, -100]))
    torch.testing.assert_close(actual, expected)
