from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskery.training.optimiser import learning_rate_factor


def factors(total: int, warmup_share: float, shape: str) -> np.ndarray:
    return np.array(
        [
            learning_rate_factor(step, total, warmup_share=warmup_share, shape=shape)
            for step in range(total)
        ]
    )


# 100 steps, 10 of them warm-up: steps 0 to 9 rise to the peak, and 90 are left from step 10 on.
LEFT = (100 - np.arange(10, 100)) / 90
AFTER = {"linear": LEFT, "cosine": (1 + np.cos(np.pi * (1 - LEFT))) / 2, "constant": np.ones(90)}


@pytest.mark.parametrize("shape", AFTER)
def test_the_formula(shape: str) -> None:
    expected = np.concatenate((np.arange(1, 11) / 10, AFTER[shape]))
    np.testing.assert_allclose(factors(100, 0.1, shape), expected, rtol=1e-12)


@given(
    st.integers(1, 300),
    st.floats(0, 1, exclude_max=True),
    st.sampled_from(["linear", "cosine", "constant"]),
)
def test_every_step_learns_and_none_exceeds_the_peak(
    total: int, warmup_share: float, shape: str
) -> None:
    seen = factors(total, warmup_share, shape)
    assert (seen > 0).all()
    assert (seen <= 1).all()
    assert seen.max() == 1.0
    peak = int(seen.argmax())
    assert (np.diff(seen[: peak + 1]) > 0).all()
    assert (np.diff(seen[peak:]) <= 0).all()


def test_no_warm_up_starts_at_the_peak() -> None:
    assert factors(4, 0.0, "linear").tolist() == [1.0, 0.75, 0.5, 0.25]
