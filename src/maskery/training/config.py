"""Settings of training: one frozen config, light to import."""

import math
import re
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any, Literal, Self, TypeAlias

from maskery.core.errors import ConfigError
from maskery.core.flags import conf
from maskery.core.ranges import Count, Needs, Range, Settings, Share, Weight

Precision = Literal["auto", "fp32", "bf16"]
Sharding = Literal["ddp", "fsdp"]
LearningRateShape = Literal["linear", "cosine", "constant", "wsd"]
DecayShape = Literal["linear", "cosine", "1-sqrt"]
Optimiser = Literal["adamw", "muon", "stable-adamw"]
TrackerName = Literal[
    "aim", "clearml", "comet_ml", "dvclive", "mlflow", "swanlab", "tensorboard", "trackio", "wandb"
]
Rate: TypeAlias = Annotated[float, Range(0, 1, above=True, hint="try {flag} 1e-4")]
WITH_WSD = Needs("lr_schedule", "wsd")

CPU_TOKENS, GPU_TOKENS = 4096, 32_768  # Tokens of a step where none are given

# They change how a run is computed and kept, not what it learns: it may be resumed with others.
HOW = frozenset({
    "micro_batch_tokens", "micro_batch_pairs", "precision", "compile", "sharding", "log_every",
    "eval_every", "checkpoint_every", "checkpoint_minutes", "keep_checkpoints", "keep_at",
    "best_metric", "patience", "max_bad_steps", "tensorboard", "trackers",
})  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class BaseTrainingConfig(Settings):
    """Optimiser, schedule, length and bookkeeping that every run has."""

    epochs: Count = 3
    """Times the corpus is read."""
    max_steps: Count | None = None
    """Most optimiser steps; fewer if the epochs end before."""
    learning_rate: Rate = 1e-4
    """Peak learning rate."""
    head_learning_rate: Rate | None = None
    """Peak learning rate of a new head. Default: ten times learning_rate, 1e-3 at most."""
    optimiser: Optimiser = "adamw"
    """muon moves the matrices of hidden layers by Muon and the rest by AdamW: for small models from
    scratch, which learn in half the steps. stable-adamw limits the update of each tensor where its
    gradient outgrows its mean square, so that --clip-norm 0 is safe."""
    muon_learning_rate: Annotated[Rate, Needs("optimiser", "muon")] = 0.02
    """Peak learning rate of the matrices that muon moves."""
    weight_decay: Weight = 0.01
    """Decoupled weight decay; biases and norms have none."""
    warmup_share: Annotated[float, Range(0, 1, below=True, hint="try 0.06")] = 0.06
    """Share of the steps over which the learning rate rises from 0."""
    lr_schedule: LearningRateShape = "linear"
    """Shape of the learning rate after the warm-up. wsd stays at the peak until the last
    steps (--decay-share)."""
    decay_share: Annotated[float, Range(0, 1, above=True, hint="try 0.2"), WITH_WSD] = 0.2
    """Share of the steps, at the end, over which the learning rate of wsd falls."""
    # The best of Hägele et al. (2024), arXiv:2405.18392
    decay_shape: Annotated[DecayShape, WITH_WSD] = "1-sqrt"
    """Shape of the fall of wsd; 1-sqrt falls fast at first."""
    lr_floor: Share = 0.0
    """Share of the peak learning rate that it falls to."""
    clip_norm: Weight = 1.0
    """Gradients are scaled down to this norm; 0 for no limit."""
    precision: Precision = "auto"
    """bf16 where the device is faster at it with this model, else fp32. On a GPU that has it; on a
    CPU with AVX512-BF16 or AMX, for models 256 wide or wider."""
    sharding: Sharding = "ddp"
    """With several processes: ddp, each holds the model; fsdp, each holds a part of it."""
    seed: Annotated[int, Range(0, (1 << 63) - 1)] = 0
    """Decides masks, data order, dropout and new weights."""
    log_every: Count = 10
    """Steps between lines in metrics.jsonl; a checkpoint always comes with one."""
    eval_every: Count | None = None
    """Steps between held-out evaluations; the first and the last always happen."""
    checkpoint_every: Count = 500
    """Steps between checkpoints; the last step always has one."""
    checkpoint_minutes: Annotated[float | None, Range(0, above=True, hint="try 15")] = 15.0
    """Minutes after which a checkpoint is written though the steps are not over; None for never."""
    keep_checkpoints: Count = 2
    """Number of the newest checkpoints that stay on disk, beside the best."""
    keep_at: tuple[str, ...] = ()
    """Checkpoints that stay for ever, for --from: after so many steps (500) or tokens (2.5M; K, M
    or B), of which a step has --batch-tokens."""
    best_metric: str | None = None
    """The held-out figure of the best checkpoint: the lowest loss or perplexity, the highest of
    anything else; none for no best. Default: the first figure of a held-out line."""
    patience: Count | None = None
    """Evaluations in a row without a better best_metric after which the run ends. The model of the
    best one is then kept. Default: every step is taken, and the last model is kept."""
    max_bad_steps: Count = 20
    """Steps in a row that may be skipped for a loss or gradient that is no number."""
    tensorboard: bool = False
    """Write TensorBoard events into the run folder, too."""
    trackers: tuple[TrackerName, ...] = ()
    """Send every line of metrics.jsonl to these, too; each needs its own package."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.kept_steps  # an amount that is none is told now
        if self.patience is not None and self.best_metric == "none":
            raise ConfigError("patience waits for a better best_metric, and it is none; name one")
        if self.lr_schedule == "wsd" and self.warmup_share + self.decay_share > 1:
            shares = f"warmup_share ({self.warmup_share}) and decay_share ({self.decay_share})"
            raise ConfigError(f"{shares} are more than all steps; lower one of them")

    def require_evaluations(self) -> None:
        """Refuse patience where nothing is measured between the first step and the last."""
        if self.patience is not None and self.eval_every is None:
            told = "patience counts evaluations; say how often, as with --eval-every 100"
            raise ConfigError(told)

    @property
    def kept_steps(self) -> frozenset[int]:
        """The steps of `keep_at`."""
        return frozenset(self.steps_of("keep_at", amount) for amount in self.keep_at)

    def steps_of(self, setting: str, amount: str, after: tuple[int, int] = (0, 0)) -> int:
        """Return the step that reaches an amount of steps or tokens, `after` so many of both."""
        tokens = getattr(self, "batch_tokens", 0)  # None until a device is chosen; 0 of pictures
        found = re.fullmatch(r"([1-9]\d*)|((?:\d+\.)?\d+)([KMB])", amount, re.IGNORECASE)
        if found and found[1]:
            return int(found[1])
        wanted = float(found[2]) * 1e3 ** " KMB".index(found[3].upper()) if found else 0.0
        if not wanted or tokens == 0:
            known = "" if tokens == 0 else ", or of tokens such as 5M"
            raise ConfigError(f"{setting} has '{amount}': it must be steps such as 500{known}")
        return after[0] + math.ceil((round(wanted) - after[1]) / (tokens or CPU_TOKENS))

    def course(self) -> dict[str, Any]:
        """Return the settings that a resumed run must share: all but those in `HOW`."""
        # Not named without wsd, as by versions that knew of none.
        left_out = HOW | (set() if self.lr_schedule == "wsd" else {"decay_share", "decay_shape"})
        return {name: value for name, value in asdict(self).items() if name not in left_out}

    @property
    def all_trackers(self) -> tuple[TrackerName, ...]:
        """Trackers that get every line; TensorBoard by either setting."""
        board: tuple[TrackerName, ...] = ("tensorboard",) if self.tensorboard else ()
        return tuple(dict.fromkeys((*board, *self.trackers)))


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(BaseTrainingConfig):
    """Optimiser, schedule, length and bookkeeping of a text run, whose steps count tokens."""

    batch_tokens: Count | None = None
    """Tokens of one optimiser step, over all processes; short lines are never padded up to it.
    Default: 4,096, and 32,768 with a GPU, which waits for the next one in smaller steps."""
    micro_batch_tokens: Annotated[
        int | Literal["auto"] | None, Range(1, words=("auto",)), conf.arg(metavar="INT|auto")
    ] = None
    """Most tokens one device computes at once; smaller values accumulate. auto: batch_tokens, or
    half of them, a quarter, ..., whatever fits the memory. Default: batch_tokens."""
    compile: bool = False
    """Compile the step for constant shapes (a CUDA GPU, packed text); elsewhere it says why not."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_evaluations()
        if self.micro_batch_tokens == "auto" and self.compile:
            problem = "--compile needs to know its shapes before memory is measured"
            raise ConfigError(f"{problem}; give a number for --micro-batch-tokens")
        most = self.batch_tokens or CPU_TOKENS
        if isinstance(self.micro_batch_tokens, int) and self.micro_batch_tokens > most:
            problem = f"micro_batch_tokens is {self.micro_batch_tokens}, more than batch_tokens"
            raise ConfigError(f"{problem} ({most}); lower it, or raise batch_tokens")

    def for_device(self) -> Self:
        """Return a copy with `batch_tokens` chosen for the device, where none are given."""
        import torch  # heavy

        chosen = GPU_TOKENS if torch.cuda.is_available() else CPU_TOKENS
        return replace(self, batch_tokens=self.batch_tokens or chosen)
