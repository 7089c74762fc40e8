"""Code of one's own that a run calls while it trains, handed over as objects in Python."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch

from maskery.core.errors import ConfigError

EVENTS = ("on_step", "on_evaluation", "on_save", "on_end")


class Callback(Protocol):
    """Subclass it and define the methods you need; the others do nothing.

    Every process of a run calls its own callbacks, but for `on_save`. An exception ends the run as
    any error does; a run of one process writes a checkpoint of the last step first, so that
    `--resume auto` goes on from there.
    """

    def on_step(self, step: int, figures: Mapping[str, torch.Tensor]) -> None:
        """Called after each optimiser step, once its line in `metrics.jsonl` is written.

        Args:
            step: Optimiser steps done, from 1.
            figures: What `Stepper.step` returned: scalars on the device, and reading one waits for
                it.
        """

    def on_evaluation(self, step: int, figures: Mapping[str, float]) -> None:
        """Called after each evaluation on held-out data.

        Args:
            step: Optimiser steps done; 0 before the first.
            figures: As they stand in `metrics.jsonl`.
        """

    def on_save(self, step: int, folder: Path) -> None:
        """Called by the main process after a step that finds a new checkpoint on disk.

        Args:
            step: Optimiser steps done when its state was copied; it is written while steps go on.
            folder: The checkpoint, complete. The run deletes it when newer ones take its place.
        """

    def on_end(self) -> None:
        """Called once when a run ends, whether it is done, was stopped or failed."""


def check_callbacks(callbacks: Sequence[Callback]) -> None:
    """Check that callbacks have every method, before a run finds out at its first checkpoint.

    Raises:
        ConfigError: One lacks a method, or is a class where an object is meant.
    """
    for callback in callbacks:
        if isinstance(callback, type):
            raise ConfigError(
                f"the callback {callback.__name__} is a class; give an object of it: "
                f"{callback.__name__}()"
            )
        missing = [name for name in EVENTS if not callable(getattr(callback, name, None))]
        if missing:
            raise ConfigError(
                f"the callback {type(callback).__name__} has no {' and no '.join(missing)}; derive "
                f"its class from maskery.training.callbacks.Callback, whose methods do nothing"
            )
