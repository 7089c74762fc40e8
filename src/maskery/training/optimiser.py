"""AdamW as BERT-like encoders want it: fused, without decay on biases and norms."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import nn

from maskery.training.config import TrainingConfig

PEAK = "peak_lr"


def build_optimiser(
    model: nn.Module, config: TrainingConfig, new_parameters: Collection[str] = ()
) -> torch.optim.AdamW:
    """Group the parameters by decay and learning rate.

    Args:
        model: What is trained; frozen parameters are left out.
        config: Rates and decay.
        new_parameters: Names of parameters that start from nothing and learn at
            `head_learning_rate`.

    Returns:
        AdamW whose groups carry their peak learning rate under `peak_lr`.
    """
    head_rate = config.head_learning_rate or min(10.0 * config.learning_rate, 1e-3)
    head_rate = max(head_rate, config.learning_rate)
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            # Biases, norms and scalars have one dimension or none.
            key = (name in new_parameters, parameter.dim() >= 2)
            groups.setdefault(key, []).append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "lr": 0.0,
                PEAK: head_rate if new else config.learning_rate,
                "weight_decay": config.weight_decay if decays else 0.0,
            }
            for (new, decays), parameters in groups.items()
        ],
        betas=(0.9, 0.98),
        eps=1e-6,
        fused=True,
    )


def set_learning_rate(optimiser: torch.optim.Optimizer, factor: float) -> None:
    """Give every group `factor` times its peak."""
    for group in optimiser.param_groups:
        group["lr"] = factor * group[PEAK]
