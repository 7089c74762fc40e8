"""Settings of making token shards, light to import."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from maskery.core.errors import ConfigError
from maskery.core.ranges import Count, Range, check_ranges

RanksFrom = Literal["flags", "slurm-array", "slurm-tasks", "torchrun"]


@dataclass(frozen=True, kw_only=True)
class ShardingConfig:
    """Size of the shards, and who makes which."""

    shard_mb: Annotated[float, Range(0, 4096, above=True, hint="try 16")] = 16.0
    """Text of one shard, in millions of bytes."""
    held_out_share: Annotated[float, Range(0, 1, above=True, below=True, hint="try 0.005")] = 0.005
    """Share of the examples that is held out for evaluation, chosen by a hash of their content."""
    workers: Count | None = None
    """Processes on this machine. Default: one for each processor it may use."""
    shard_rank: int = 0
    """Which of `shard_count` machines or jobs this is, from 0."""
    shard_count: Count = 1
    """Number of machines or jobs that share the work, with one corpus and one output folder."""
    ranks_from: RanksFrom = "flags"
    """Source of rank and count: slurm-array reads SLURM_ARRAY_TASK_ID, _MIN, _STEP and
    _COUNT; slurm-tasks SLURM_PROCID and SLURM_NTASKS; torchrun RANK and WORLD_SIZE."""

    def __post_init__(self) -> None:
        check_ranges(self)
        if not 0 <= self.shard_rank < self.shard_count:
            raise ConfigError(
                f"shard_rank is {self.shard_rank}: it must be from 0 to shard_count - 1, "
                f"which is {self.shard_count - 1}"
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
