"""The arguments of the Hugging Face `Trainer`: made from Maskery's, checked, and counted out."""

from __future__ import annotations

import math
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainingArguments

from maskery.core.errors import ConfigError
from maskery.core.task import BatchSource
from maskery.training.config import TrainingConfig
from maskery.training.precision import resolve_precision

# The Trainer's names for the schedules of `learning_rate_factor`; others are the Trainer's own.
SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant_with_warmup": "constant"}
# The one setting that these schedules have, under the name of the Trainer's own: `lr_floor`.
FLOOR = "min_lr_rate"
BATCHES = "the source makes the batches: set batch_tokens and micro_tokens there"
# Arguments that would have no effect, and what to do instead.
WITHOUT_EFFECT = {
    "per_device_train_batch_size": BATCHES,
    "gradient_accumulation_steps": BATCHES,
    "auto_find_batch_size": BATCHES,
    "dataloader_drop_last": BATCHES,
    "dataloader_num_workers": "the next step is already prepared in a thread",
    "label_smoothing_factor": "the task owns the loss",
    "neftune_noise_alpha": "the task owns the model's inputs",
    "include_num_input_tokens_seen": "tokens_per_second is logged anyway",
    "gradient_checkpointing": "call gradient_checkpointing_enable() on the model itself",
    "activation_checkpointing": "call activation_checkpointing_enable() on the model itself",
}


def training_arguments(
    config: TrainingConfig,
    model: nn.Module,
    source: BatchSource[Any],
    output_dir: Path,
    **others: Any,
) -> TrainingArguments:
    """The Trainer's name for every setting of a `TrainingConfig`.

    Args:
        config: What the loop would be given.
        model: What is trained; its width decides about bf16 on a CPU.
        source: Where the batches come from; says how long the run is.
        output_dir: Where the Trainer writes.
        **others: Further arguments of `TrainingArguments`; they win.

    Raises:
        ConfigError: The seed is larger than the Trainer takes.
    """
    if config.seed >= 1 << 32:
        raise ConfigError(
            f"seed is {config.seed}: under the Hugging Face Trainer it must be below 2**32"
        )
    half = resolve_precision(config, model) == "bf16"
    steps = sum(source.num_steps(epoch) for epoch in range(config.epochs))
    arguments: dict[str, Any] = {
        "num_train_epochs": config.epochs,
        "max_steps": min(steps, config.max_steps or steps),
        "learning_rate": config.learning_rate,
        "weight_decay": config.weight_decay,
        "adam_beta1": 0.9,
        "adam_beta2": 0.98,
        "adam_epsilon": 1e-6,
        "optim": "adamw_torch_fused",
        "max_grad_norm": config.clip_norm,
        "warmup_steps": config.warmup_share,
        "lr_scheduler_type": {v: k for k, v in SCHEDULES.items()}[config.lr_schedule],
        "bf16": half,
        "use_cpu": half and not torch.cuda.is_available(),  # else the Trainer asks for a GPU
        "seed": config.seed,
        "logging_steps": config.log_every,
        "eval_strategy": "steps" if config.eval_every else "no",
        "eval_steps": config.eval_every,
        "save_steps": config.checkpoint_every,
        "save_total_limit": config.keep_checkpoints,
        "report_to": list(config.all_trackers) or "none",
    }
    if config.lr_floor:  # other schedules, which `others` may name, do not know it
        arguments["lr_scheduler_kwargs"] = {FLOOR: config.lr_floor}
    return TrainingArguments(output_dir=str(output_dir), **(arguments | others))


def schedule_of(args: TrainingArguments) -> str | None:
    """The schedule's name in `learning_rate_factor`; None for one of the Trainer's own."""
    return SCHEDULES.get(str(getattr(args.lr_scheduler_type, "value", "")))


def first_steps(source: BatchSource[Any], args: TrainingArguments) -> list[int]:
    """The number of each epoch's first step, and at the end that of steps in all.

    Raises:
        ConfigError: There is not one step.
    """
    firsts, epochs = [0], args.num_train_epochs
    while firsts[-1] < args.max_steps if args.max_steps > 0 else len(firsts) - 1 < epochs:
        epoch = len(firsts) - 1
        num_steps = source.num_steps(epoch)
        if num_steps < 1:
            raise ConfigError("there is nothing to train on: the source has no steps")
        share = 1.0 if args.max_steps > 0 else min(1.0, epochs - epoch)
        firsts.append(firsts[-1] + math.ceil(share * num_steps))
    if args.max_steps > 0:
        firsts[-1] = args.max_steps
    if firsts[-1] < 1:
        raise ConfigError(f"num_train_epochs is {epochs}: it must be above 0")
    return firsts


def check_arguments(args: TrainingArguments, *, can_evaluate: bool) -> None:
    """Refuse arguments that would be silently dropped.

    Raises:
        ConfigError: One of them is set.
    """
    for field in fields(args):
        if field.name not in WITHOUT_EFFECT:
            continue
        value = getattr(args, field.name)
        if value and value != field.default:  # some defaults are filled in after they are read
            raise ConfigError(
                f"{field.name} is {value!r} in the TrainingArguments and would have no effect: "
                f"{WITHOUT_EFFECT[field.name]}"
            )
    unknown = set(args.lr_scheduler_kwargs or {}) - {FLOOR}
    if unknown and schedule_of(args) is not None:
        raise ConfigError(
            f"lr_scheduler_kwargs has '{min(unknown)}' in the TrainingArguments, and the schedule "
            f"'{args.lr_scheduler_type.value}' knows {FLOOR} alone; leave it out"
        )
    if str(getattr(args.eval_strategy, "value", "no")) != "no" and not can_evaluate:
        raise ConfigError(
            "eval_strategy is set in the TrainingArguments, and there is nothing to evaluate with: "
            "pass evaluate=, a function from the steps done to held-out figures"
        )
