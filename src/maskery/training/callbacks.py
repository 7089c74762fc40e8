"""Code of one's own that a run calls while it trains, handed over as objects in Python."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import torch


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
