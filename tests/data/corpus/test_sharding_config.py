from __future__ import annotations

import pytest

from maskery.core.errors import ConfigError
from maskery.data.corpus.config import ShardingConfig, StreamingConfig


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"shard_mb": 0.0}, "shard_mb is 0.0: it must be above 0"),
        ({"shard_mb": float("nan")}, "shard_mb is nan"),
        ({"held_out_share": 1.0}, "held_out_share is 1.0: it must lie between 0 and 1"),
        ({"workers": 0}, "workers is 0"),
        ({"executor": "pbs"}, "executor is 'pbs': it must be one of local, ray, slurm"),
        ({"executor": "slurm"}, "executor is slurm and --slurm '': slurm needs options of sbatch"),
        ({"executor": "slurm", "slurm": ("time=1:00",)}, "--slurm partition=NAME time=4:00:00"),
        ({"executor": "ray", "slurm": ("time=1:00", "partition=a")}, "others take none"),
    ],
)
def test_a_setting_outside_its_range_is_named(setting: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ShardingConfig(**setting)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("shuffle_shards", "at least 1"),
        ("cache_shards", "0 or more"),
        ("held_out_tokens", "at least 1"),
    ],
)
def test_streaming_settings_are_checked(name: str, rule: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} is -1: it must be {rule}"):
        StreamingConfig(**{name: -1})


def test_shard_bytes() -> None:
    assert ShardingConfig(shard_mb=0.5).shard_bytes == 500_000
