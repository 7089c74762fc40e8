"""AdamW as BERT-like encoders want it: fused, without decay on biases and norms; or Muon."""

from __future__ import annotations

import math
from collections.abc import Collection

import torch
from torch import nn

from maskery.training.config import BaseTrainingConfig
from maskery.training.muon import ORTHOGONAL, MuonAdamW, hidden_matrices

PEAK = "peak_lr"


def build_optimiser(
    model: nn.Module, config: BaseTrainingConfig, new_parameters: Collection[str] = ()
) -> torch.optim.AdamW:
    """Group the parameters by decay and learning rate.

    Args:
        model: What is trained; frozen parameters are left out.
        config: Rates and decay.
        new_parameters: Names of parameters that start from nothing and learn at
            `head_learning_rate`.

    Returns:
        AdamW whose groups carry their peak learning rate under `peak_lr`; with Muon in it where the
        config says so.
    """
    rate, head_rate = config.learning_rate, config.head_learning_rate
    if head_rate is None:
        head_rate = max(rate, min(10.0 * rate, 1e-3))
    matrices = hidden_matrices(model) if config.optimiser == "muon" else set()
    groups: dict[tuple[bool, bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            # Biases, norms and scalars have one dimension or none.
            key = (parameter in matrices, name in new_parameters, parameter.dim() >= 2)
            groups.setdefault(key, []).append(parameter)
    kind = MuonAdamW if config.optimiser == "muon" else torch.optim.AdamW
    return kind(
        [
            {
                "params": parameters,
                "lr": 0.0,
                PEAK: config.muon_learning_rate if matrix else head_rate if new else rate,
                "weight_decay": config.weight_decay if decays else 0.0,
                ORTHOGONAL: matrix,
            }
            for (matrix, new, decays), parameters in groups.items()
        ],
        betas=(0.9, 0.98),
        eps=1e-6,
        fused=True,
    )


def set_learning_rate(optimiser: torch.optim.Optimizer, factor: float) -> None:
    """Give every group `factor` times its peak."""
    for group in optimiser.param_groups:
        group["lr"] = factor * group[PEAK]


def learning_rate_factor(
    step: int, total: int, *, warmup_share: float, shape: str, floor: float = 0.0
) -> float:
    """Return what the peak learning rate is multiplied by at a step.

    It depends on the step alone, so resuming needs no state.

    Args:
        step: From 0.
        total: Steps of the run.
        warmup_share: Share of the steps over which the factor rises to 1.
        shape: `linear`, `cosine` or `constant` after the warm-up.
        floor: What the factor falls to, from 0 to 1.

    Returns:
        Above 0 and at most 1 for every step of the run.
    """
    warmup = round(total * warmup_share)
    if step < warmup:
        return (step + 1) / warmup
    left = (total - step) / max(total - warmup, 1)
    if shape == "constant":
        return 1.0
    if shape == "cosine":
        left = 0.5 * (1.0 - math.cos(math.pi * left))
    return floor + (1.0 - floor) * left
