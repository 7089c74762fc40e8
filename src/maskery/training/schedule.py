"""The learning rate as a function of the step alone, so that resuming needs no state."""

from __future__ import annotations

import math


def learning_rate_factor(
    step: int, total: int, *, warmup_share: float, shape: str, floor: float = 0.0
) -> float:
    """What the peak learning rate is multiplied by at a step.

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
