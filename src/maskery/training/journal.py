"""What a run writes down as it goes: means over steps, spikes, held-out figures and the best."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping

import torch

from maskery.core.errors import ConfigError
from maskery.core.processes import Processes
from maskery.training.guards import SpikeWatch
from maskery.training.tracking import Tracker
from maskery.training.window import SKIPPED, Window

log = logging.getLogger(__name__)

TRAIN, HELD_OUT = "train", "held_out"
SPIKE = "loss_spike_above"
NONE, BEST = "none", "best"
# Figures that are better when they are lower; all others are better when they are higher.
LOWER_IS_BETTER = ("loss", "perplexity")


class Journal:
    """The lines of `metrics.jsonl`.

    Everything in a line but the speed follows from the steps, so a resumed run writes the same.

    Args:
        tracker: Writes the lines; used by the main process alone.
        processes: Of the run.
        best_metric: The held-out figure that tells the best; None for the first of a line.

    Attributes:
        best_step: After which step the figures were the best; None before there are any, and
            everywhere but on the main process.
    """

    def __init__(self, tracker: Tracker, processes: Processes, best_metric: str | None) -> None:
        self.tracker, self.processes, self.best_metric = tracker, processes, best_metric
        self.window = Window()
        self._spikes = SpikeWatch()
        self._best: float | None = None
        self.best_step: int | None = None

    def rewind(
        self, step: int, window: tuple[Mapping[str, float], ...], device: torch.device
    ) -> None:
        """Go back to a checkpoint: what was written after it is dropped."""
        self.window = Window.restored(window, self.processes, device)
        if not self.processes.is_main:
            return
        self.tracker.rewind(step)
        lines = self.tracker.lines()
        losses = [line["loss"] for line in lines if line["kind"] == TRAIN and "loss" in line]
        self._spikes = SpikeWatch(losses)
        for line in lines:
            if line["kind"] == HELD_OUT and line["step"] > 0:
                values = {n: v for n, v in line.items() if n not in ("kind", "step")}
                self._improves(line["step"], values)

    def line(self, step: int, more: Mapping[str, float]) -> dict[str, float]:
        """Close the window and write its line; every process must ask, and gets the means."""
        values = self.window.means(self.processes)
        self.window = Window()
        values |= more
        if self.processes.is_main:
            self._warn(step, values)
            self.tracker.log(TRAIN, step, values)
        return values

    def _warn(self, step: int, values: dict[str, float]) -> None:
        """Tell what is wrong with the steps of a line; a spike is noted in it."""
        if SKIPPED in values:
            log.warning(
                "%d steps up to step %d were skipped: their loss or gradient was no finite number",
                int(values[SKIPPED]),
                step,
            )
        usual = self._spikes.usual(values["loss"]) if "loss" in values else None
        if usual is not None:
            values[SPIKE] = usual
            log.warning(
                "the loss is %.3f at step %d, and was about %.3f before",
                values["loss"],
                step,
                usual,
            )

    def held_out(self, step: int, values: Mapping[str, float]) -> bool:
        """Write held-out figures; returns whether they are the best after any step so far.

        The main process decides for all: it alone has read the lines of a run that goes on, and
        another's last digits may differ.

        Raises:
            ConfigError: The figure that tells the best is not among them.
        """

        def written() -> str | None:
            # The start is no achievement, but a metric that is not there is told at once.
            improves = self._improves(step, values)
            if step == 0:
                improves, self._best, self.best_step = False, None, None
            self.tracker.log(HELD_OUT, step, values)
            return BEST if improves else None

        return self.processes.on_main(written) == BEST

    def has_held_out(self, step: int) -> bool:
        """Whether the held-out figures of a step are written; the same for every process."""
        found = self.processes.on_main(lambda: str(self.tracker.has(HELD_OUT, step)))
        return found == str(True)

    def _improves(self, step: int, values: Mapping[str, float]) -> bool:
        if self.best_metric == NONE or not values:
            return False
        name = next(iter(values)) if self.best_metric is None else self.best_metric
        if name not in values:
            raise ConfigError(
                f"best_metric is '{name}', which is not among the held-out figures: choose "
                f"{', '.join(values)}, or {NONE}"
            )
        value = float(values[name])
        if not name.endswith(LOWER_IS_BETTER):
            value = -value
        if math.isnan(value) or (self._best is not None and value >= self._best):
            return False
        self._best, self.best_step = value, step
        return True
