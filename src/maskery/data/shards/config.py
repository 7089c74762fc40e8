"""How token shards are made and how they are read; light to import."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from maskery.core.errors import ConfigError

RanksFrom = Literal["flags", "slurm-array", "slurm-tasks", "torchrun"]


@dataclass(frozen=True, kw_only=True)
class ShardingConfig:
    """How a corpus is cut into shards, and by whom."""

    shard_mb: float = 16.0
    """Text of one shard, in millions of bytes."""
    held_out_share: float = 0.005
    """Share of the examples that is held out for evaluation, chosen by a hash of their content."""
    workers: int | None = None
    """Processes on this machine. Default: one for each processor it may use."""
    shard_rank: int = 0
    """Which of `shard_count` machines or jobs this is, from 0."""
    shard_count: int = 1
    """How many machines or jobs share the work; each needs the same corpus and output folder."""
    ranks_from: RanksFrom = "flags"
    """Where rank and count come from: slurm-array reads SLURM_ARRAY_TASK_ID, _MIN, _STEP and
    _COUNT; slurm-tasks SLURM_PROCID and SLURM_NTASKS; torchrun RANK and WORLD_SIZE."""

    def __post_init__(self) -> None:
        if not 0.0 < self.shard_mb <= 4096.0:
            raise ConfigError(
                f"shard_mb is {self.shard_mb}: it must be above 0 and at most 4096; try 16"
            )
        if not 0.0 < self.held_out_share < 1.0:
            raise ConfigError(
                f"held_out_share is {self.held_out_share}: it must lie between 0 and 1; try 0.005"
            )
        if self.workers is not None and self.workers < 1:
            raise ConfigError(f"workers is {self.workers}: it must be at least 1")
        if self.shard_count < 1:
            raise ConfigError(f"shard_count is {self.shard_count}: it must be at least 1")
        if not 0 <= self.shard_rank < self.shard_count:
            raise ConfigError(
                f"shard_rank is {self.shard_rank}: it must be from 0 to shard_count - 1, "
                f"which is {self.shard_count - 1}"
            )
        if self.ranks_from not in get_args(RanksFrom):
            raise ConfigError(
                f"ranks_from is {self.ranks_from!r}: it must be one of "
                f"{', '.join(get_args(RanksFrom))}"
            )
        if self.ranks_from != "flags" and (self.shard_rank, self.shard_count) != (0, 1):
            raise ConfigError(
                f"--ranks-from {self.ranks_from} and --shard-rank or --shard-count contradict "
                "each other; leave out one of them"
            )

    @property
    def shard_bytes(self) -> int:
        """`shard_mb` in bytes."""
        return max(1, int(self.shard_mb * 1e6))


@dataclass(frozen=True, kw_only=True)
class StreamingConfig:
    """How a run reads shards; of no effect on other corpora."""

    shuffle_shards: int = 4
    """Shards whose examples are shuffled together; memory grows with it."""
    cache_shards: int = 16
    """Shards from an address that are kept on the local disk, besides those in use."""
    held_out_tokens: int = 250_000
    """Most held-out tokens that are scored, of those set aside when the shards were made."""

    def __post_init__(self) -> None:
        for name, least in (("shuffle_shards", 1), ("cache_shards", 0), ("held_out_tokens", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} is {getattr(self, name)}: it must be at least {least}")
