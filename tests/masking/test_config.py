from __future__ import annotations

import dataclasses
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from maskery.core.errors import ConfigError
from maskery.masking.config import MaskingConfig

NAN = float("nan")


def test_the_defaults_are_berts() -> None:
    config = MaskingConfig()
    assert (config.policy, config.mask_rate, config.mask_share, config.random_share) == (
        "token",
        0.15,
        0.8,
        0.1,
    )
    assert not config.static
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.mask_rate = 0.2  # type: ignore[misc]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"policy": "words"}, "--policy is 'words'.*token, word, span, or FILE.py:NAME"),
        ({"mask_schedule": "step"}, "mask_schedule is 'step'.*constant, linear, cosine"),
        ({"mask_rate": 0.0}, "mask_rate is 0.0.*--mask-rate 0.15"),
        ({"mask_rate": 1.0}, "mask_rate is 1.0"),
        ({"mask_rate": NAN}, "mask_rate is nan"),
        ({"mask_rate_end": 1.2, "mask_schedule": "linear"}, "1.2.*--mask-rate-end"),
        ({"mask_rate_end": 0.3}, "--mask-rate-end 0.3 needs --mask-schedule"),
        ({"mask_schedule": "linear"}, "--mask-schedule linear needs --mask-rate-end"),
        ({"mask_share": -0.1}, "mask_share is -0.1: it must be from 0 to 1"),
        ({"mask_share": NAN}, "mask_share is nan"),
        ({"random_share": 1.1}, "random_share is 1.1"),
        ({"mask_share": 0.95}, "0.95 and --random-share 0.1 sum to more than 1"),
        ({"span_p": 0.0}, "span_p is 0.0"),
        ({"span_p": 1.0}, "span_p is 1.0"),
        ({"span_max": 0}, "span_max is 0"),
        ({"policy": "span", "mask_rate": 0.8}, "the mask rate is 0.8.*at most 0.79"),
        ({"policy": "span", "mask_rate": 0.6, "span_max": 1}, "at most 0.500"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        MaskingConfig(**settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"mask_share": 0.7, "random_share": 0.3},
        {"mask_share": 1.0, "random_share": 0.0},
        {"mask_rate": 0.8},
        {"policy": "span", "mask_rate": 0.75},
        {"mask_rate_end": 0.15},
    ],
)
def test_settings_at_the_edges_are_taken(settings: dict[str, Any]) -> None:
    MaskingConfig(**settings)


@pytest.mark.parametrize("module", ["maskery.masking.config", "maskery.training.config"])
def test_configs_are_light_to_import(module: str) -> None:
    heavy = "'torch', 'transformers', 'datasets', 'numpy'"
    code = f"import sys, {module}; print([m for m in ({heavy}) if m in sys.modules])"
    seen = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert seen.stdout.strip() == "[]"


PROGRESS = np.linspace(0, 1, 11)


def rates(**settings: object) -> np.ndarray:
    config = MaskingConfig(**settings)  # type: ignore[arg-type]
    return np.array([config.rate_at(float(p)) for p in PROGRESS])


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
    assert config.rate_at(-0.5) == pytest.approx(0.3)
    assert config.rate_at(1.5) == pytest.approx(0.1)
