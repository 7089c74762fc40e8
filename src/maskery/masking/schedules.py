"""How the mask rate changes over a run (decay from 0.3 to 0.15: arXiv 2305.15096)."""

from __future__ import annotations

import math
from collections.abc import Callable

from maskery.masking.config import MaskingConfig

Schedule = Callable[[float, float, float], float]


def constant(start: float, end: float, progress: float) -> float:
    """Always `start`."""
    del end, progress
    return start


def linear(start: float, end: float, progress: float) -> float:
    """In a straight line from `start` at progress 0 to `end` at progress 1."""
    return start + (end - start) * progress


def cosine(start: float, end: float, progress: float) -> float:
    """Along half a cosine: flat at both ends, steepest in the middle."""
    return end + (start - end) * 0.5 * (1.0 + math.cos(math.pi * progress))


SCHEDULES: dict[str, Schedule] = {"constant": constant, "linear": linear, "cosine": cosine}


def mask_rate(config: MaskingConfig, progress: float) -> float:
    """The mask rate when a share `progress` in [0, 1] of the run is done."""
    end = config.mask_rate if config.mask_rate_end is None else config.mask_rate_end
    schedule = SCHEDULES[config.mask_schedule]
    return schedule(config.mask_rate, end, min(max(progress, 0.0), 1.0))
