from __future__ import annotations

import numpy as np
import pytest

from maskery.masking.config import MaskingConfig
from maskery.masking.schedules import mask_rate

PROGRESS = np.linspace(0, 1, 11)


def rates(**settings: object) -> np.ndarray:
    config = MaskingConfig(**settings)  # type: ignore[arg-type]
    return np.array([mask_rate(config, float(p)) for p in PROGRESS])


def test_constant() -> None:
    assert rates(mask_rate=0.2).tolist() == [0.2] * 11


def test_linear() -> None:
    seen = rates(mask_rate=0.3, mask_rate_end=0.15, mask_schedule="linear")
    np.testing.assert_allclose(seen, np.interp(PROGRESS, [0, 1], [0.3, 0.15]), rtol=1e-12)


def test_cosine() -> None:
    seen = rates(mask_rate=0.3, mask_rate_end=0.15, mask_schedule="cosine")
    np.testing.assert_allclose(seen, 0.225 + 0.075 * np.cos(np.pi * PROGRESS), rtol=1e-12)


def test_rates_may_rise() -> None:
    assert (np.diff(rates(mask_rate=0.1, mask_rate_end=0.4, mask_schedule="cosine")) > 0).all()


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_no_rate_lies_outside_the_two(schedule: str) -> None:
    config = MaskingConfig(mask_rate=0.3, mask_rate_end=0.1, mask_schedule=schedule)  # type: ignore[arg-type]
    assert mask_rate(config, -0.5) == pytest.approx(0.3)
    assert mask_rate(config, 1.5) == pytest.approx(0.1)
