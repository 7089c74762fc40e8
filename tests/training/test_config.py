from __future__ import annotations

from typing import Any

import pytest

from maskery.core.errors import ConfigError
from maskery.runs.image_text.config import PairsTrainingConfig
from maskery.training.config import TrainingConfig

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate is 0.0.*--learning-rate 1e-4"),
        ({"learning_rate": NAN}, "learning_rate is nan"),
        ({"learning_rate": 1.5}, "learning_rate is 1.5"),
        ({"head_learning_rate": -1e-3}, "head_learning_rate is -0.001.*--head-learning-rate"),
        ({"epochs": 0}, "epochs is 0: it must be at least 1"),
        ({"max_steps": 0}, "max_steps is 0"),
        ({"batch_tokens": -5}, "batch_tokens is -5"),
        ({"micro_batch_tokens": 0}, "micro_batch_tokens is 0"),
        ({"micro_batch_tokens": 5000}, "5000, more than batch_tokens \\(4096\\)"),
        ({"log_every": 0}, "log_every is 0"),
        ({"eval_every": 0}, "eval_every is 0"),
        ({"checkpoint_every": 0}, "checkpoint_every is 0"),
        ({"keep_checkpoints": 0}, "keep_checkpoints is 0"),
        ({"warmup_share": 1.0}, "warmup_share is 1.0"),
        ({"warmup_share": NAN}, "warmup_share is nan"),
        ({"weight_decay": -0.1}, "weight_decay is -0.1"),
        (
            {"keep_at": ("5x",)},
            "keep_at has '5x': it must be steps such as 500, or of tokens such as 5M",
        ),
        ({"keep_at": ("0",)}, "keep_at has '0'"),
        ({"keep_at": ("0.0K",)}, "keep_at has '0.0K'"),
        ({"keep_at": ("2.5",)}, "keep_at has '2.5'"),
        ({"clip_norm": INF}, "clip_norm is inf"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**63}, "it must be from 0 to"),
        ({"precision": "fp16"}, "precision is 'fp16'.*auto, fp32, bf16"),
        ({"lr_schedule": "step"}, "lr_schedule is 'step'.*linear, cosine, constant, wsd"),
        ({"lr_schedule": "wsd", "decay_share": 0.0}, "decay_share is 0.0: it must be above 0"),
        ({"lr_schedule": "wsd", "decay_shape": "sqrt"}, "decay_shape is 'sqrt'.*linear, cosine, 1"),
        (
            {"lr_schedule": "wsd", "decay_share": 0.95},
            r"decay_share \(0.95\) are more than all",
        ),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        TrainingConfig(**settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"learning_rate": 1.0, "warmup_share": 0.0, "clip_norm": 0.0, "weight_decay": 0.0},
        {"micro_batch_tokens": 4096, "seed": 2**63 - 1, "epochs": 1, "max_steps": 1},
        {"lr_schedule": "wsd", "warmup_share": 0.0, "decay_share": 1.0, "decay_shape": "cosine"},
    ],
)
def test_settings_at_the_edges_are_taken(settings: dict[str, Any]) -> None:
    TrainingConfig(**settings)


def test_tokens_are_as_many_steps_as_hold_them() -> None:
    config = TrainingConfig(batch_tokens=1000, keep_at=("7", "2K", "0.0025m", "1.1K", "3B"))
    assert config.kept_steps == {7, 2, 3, 3_000_000}
    with pytest.raises(ConfigError, match=r"keep_at has '2K': it must be steps such as 500$"):
        PairsTrainingConfig(keep_at=("2K",))
    assert PairsTrainingConfig(keep_at=("7",)).kept_steps == {7}


def test_the_fall_of_wsd_is_named_only_with_it() -> None:
    """Else checkpoints of before it could not be gone on with."""
    assert not {"decay_share", "decay_shape"} & TrainingConfig().course().keys()
    course = TrainingConfig(lr_schedule="wsd", decay_share=0.5).course()
    assert (course["decay_share"], course["decay_shape"]) == (0.5, "1-sqrt")
