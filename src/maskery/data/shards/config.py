"""Settings of making token shards, light to import."""

from dataclasses import dataclass
from typing import Annotated, Literal

from maskery.core.errors import ConfigError
from maskery.core.ranges import Count, Range, Settings


@dataclass(frozen=True, kw_only=True)
class ShardingConfig(Settings):
    """Size of the shards, and who makes them."""

    shard_mb: Annotated[float, Range(0, 4096, above=True, hint="try 16")] = 16.0
    """Text of one shard, in millions of bytes."""
    held_out_share: Annotated[float, Range(0, 1, above=True, below=True, hint="try 0.005")] = 0.005
    """Share of the examples that is held out for evaluation, chosen by a hash of their content."""
    executor: Literal["local", "ray", "slurm"] = "local"
    """Where shards are made: in processes of this machine, on the Ray cluster of RAY_ADDRESS, or by
    an array of Slurm jobs. The last two: pip install 'maskery[cluster]'."""
    workers: Count | None = None
    """Processes on this machine (default: one for each processor it may use); with ray, pieces that
    are made at once; with slurm, jobs of the array (default: 64)."""
    slurm: tuple[str, ...] = ()
    """Options of sbatch; partition and time are needed, and cpus-per-task is the processes of a
    job: --slurm partition=cpu time=4:00:00 cpus-per-task=8."""

    def __post_init__(self) -> None:
        super().__post_init__()
        whole = {"partition", "time"} <= self.sbatch.keys()
        if not (whole if self.executor == "slurm" else not self.slurm):
            raise ConfigError(
                f"--executor is {self.executor} and --slurm '{' '.join(self.slurm)}': slurm needs "
                f"options of sbatch, --slurm partition=NAME time=4:00:00; others take none"
            )

    @property
    def sbatch(self) -> dict[str, str]:
        """`slurm` by the names of the options; of those without a value it is empty."""
        return {name: value for name, _, value in (o.partition("=") for o in self.slurm)}

    @property
    def shard_bytes(self) -> int:
        """`shard_mb` in bytes."""
        return max(1, int(self.shard_mb * 1e6))
