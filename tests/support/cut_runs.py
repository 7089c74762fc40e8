"""Runs that die before a step, as by Ctrl+C in the middle of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from maskery.training import loop


def die_before(
    number: int, train: Callable[..., Any], config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Train until a step, counted from 0, that is never taken."""
    step = loop.TrainingLoop.step

    def die(self: loop.TrainingLoop, prepared: loop.Step) -> dict[str, torch.Tensor]:
        if prepared.number == number:
            raise KeyboardInterrupt
        return step(self, prepared)

    monkeypatch.setattr(loop.TrainingLoop, "step", die)
    with pytest.raises(KeyboardInterrupt):
        train(config, progress=False)
    monkeypatch.setattr(loop.TrainingLoop, "step", step)
