"""How a run is trained: one frozen config, light to import."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from maskery.core.errors import ConfigError

Precision = Literal["auto", "fp32", "bf16"]
Sharding = Literal["ddp", "fsdp"]
LearningRateShape = Literal["linear", "cosine", "constant"]
Optimiser = Literal["adamw", "muon"]


# Settings of how and not of what is computed: a run may be continued with others.
HOW = frozenset(
    {
        "micro_batch_tokens",
        "micro_batch_pairs",
        "precision",
        "compile",
        "sharding",
        "log_every",
        "eval_every",
        "checkpoint_every",
        "checkpoint_minutes",
        "keep_checkpoints",
        "best_metric",
        "max_bad_steps",
        "tensorboard",
    }
)


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Optimiser, schedule, length and bookkeeping of a run."""

    epochs: int = 3
    """Times the corpus is read."""
    max_steps: int | None = None
    """Most optimiser steps; fewer if the epochs end before."""
    batch_tokens: int = 4096
    """Tokens of one optimiser step, over all processes; short lines are never padded up to it."""
    micro_batch_tokens: int | None = None
    """Most tokens one device computes at once; smaller values accumulate. Default: batch_tokens."""
    learning_rate: float = 1e-4
    """Peak learning rate."""
    head_learning_rate: float | None = None
    """Peak learning rate of a new head. Default: ten times learning_rate, 1e-3 at most."""
    optimiser: Optimiser = "adamw"
    """muon moves the matrices of hidden layers by Muon and the rest by AdamW: for small models from
    scratch, which learn in half the steps."""
    muon_learning_rate: float = 0.02
    """Peak learning rate of the matrices that muon moves."""
    weight_decay: float = 0.01
    """Decoupled weight decay; biases and norms have none."""
    warmup_share: float = 0.06
    """Share of the steps over which the learning rate rises from 0."""
    lr_schedule: LearningRateShape = "linear"
    """How the learning rate falls after the warm-up."""
    lr_floor: float = 0.0
    """Share of the peak learning rate that it falls to."""
    clip_norm: float = 1.0
    """Gradients are scaled down to this norm; 0 for no limit."""
    precision: Precision = "auto"
    """bf16 where the device is faster at it with this model, else fp32. On a GPU that has it; on a
    CPU with AVX512-BF16 or AMX, for models 256 wide or wider."""
    sharding: Sharding = "ddp"
    """With several processes: ddp, each holds the model; fsdp, each holds a part of it."""
    compile: bool = False
    """Compile the step for constant shapes (a CUDA GPU, packed text); elsewhere it says why not."""
    seed: int = 0
    """Decides masks, data order, dropout and new weights."""
    log_every: int = 10
    """Steps between lines in metrics.jsonl; a checkpoint always comes with one."""
    eval_every: int | None = None
    """Steps between held-out evaluations; the first and the last always happen."""
    checkpoint_every: int = 500
    """Steps between checkpoints; the last step always has one."""
    checkpoint_minutes: float | None = 15.0
    """Minutes after which a checkpoint is written though the steps are not over; None for never."""
    keep_checkpoints: int = 2
    """How many of the newest checkpoints stay on disk, beside the best."""
    best_metric: str | None = None
    """The held-out figure of the best checkpoint: the lowest loss or perplexity, the highest of
    anything else; none for no best. Default: the first figure of a held-out line."""
    max_bad_steps: int = 20
    """Steps in a row that may be skipped for a loss or gradient that is no number."""
    tensorboard: bool = False
    """Write TensorBoard events into the run folder, too."""

    def __post_init__(self) -> None:
        for name in ("learning_rate", "head_learning_rate", "muon_learning_rate"):
            rate = getattr(self, name)
            if rate is not None and not (math.isfinite(rate) and 0.0 < rate <= 1.0):
                raise ConfigError(
                    f"{name} is {rate}: it must be above 0 and at most 1; "
                    f"try --{name.replace('_', '-')} 1e-4"
                )
        choices_of = {
            "precision": Precision,
            "lr_schedule": LearningRateShape,
            "sharding": Sharding,
            "optimiser": Optimiser,
        }
        for name, choices in choices_of.items():
            if getattr(self, name) not in get_args(choices):
                raise ConfigError(
                    f"{name} is '{getattr(self, name)}': it must be one of "
                    f"{', '.join(get_args(choices))}"
                )
        lengths = ("epochs", "max_steps", "batch_tokens", "micro_batch_tokens")
        intervals = ("log_every", "eval_every", "checkpoint_every")
        for name in (*lengths, *intervals, "keep_checkpoints", "max_bad_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}: it must be at least 1")
        if self.checkpoint_minutes is not None and not self.checkpoint_minutes > 0.0:
            raise ConfigError(
                f"checkpoint_minutes is {self.checkpoint_minutes}: it must be above 0; try 15"
            )
        if not 0.0 <= self.warmup_share < 1.0:
            raise ConfigError(
                f"warmup_share is {self.warmup_share}: it must be from 0 to below 1; try 0.06"
            )
        if not 0.0 <= self.lr_floor <= 1.0:
            raise ConfigError(f"lr_floor is {self.lr_floor}: it must be from 0 to 1")
        for name in ("weight_decay", "clip_norm"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0.0):
                raise ConfigError(f"{name} is {value}: it must be 0 or more")
        if not 0 <= self.seed < 1 << 63:
            raise ConfigError(f"seed is {self.seed}: it must be from 0 to 2**63 - 1")
        if self.micro_batch_tokens is not None and self.micro_batch_tokens > self.batch_tokens:
            raise ConfigError(
                f"micro_batch_tokens is {self.micro_batch_tokens}, more than batch_tokens "
                f"({self.batch_tokens}); lower it"
            )

    def course(self) -> dict[str, Any]:
        """The settings that decide the course of a run, but not how it is computed."""
        return {name: value for name, value in asdict(self).items() if name not in HOW}
