"""Lines of `metrics.jsonl`: means over steps, spikes, held-out figures and the best; callbacks.

Everything in a line but the speed follows from the steps, so a resumed run writes the same lines.
"""

import json
import logging
import math
import statistics
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, Self, TypeAlias

import torch

from maskery.core.errors import ConfigError, MissingExtraError, counted
from maskery.core.processes import Processes
from maskery.core.system import METRICS, flush, read_metrics, write_whole

log = logging.getLogger(__name__)

TRAIN, HELD_OUT = "train", "held_out"
SPIKE = "loss_spike_above"
WAITING = "waiting_time_share"
SPEEDS = ("tokens_per_second", "pairs_per_second", WAITING)  # What does not follow from the steps
NONE, BEST = "none", "best"
LOWER_IS_BETTER = ("loss", "perplexity")  # Ends of figures; of all others, higher is better
WHOLE = "grad_norm"  # Already the same on every process; loss terms are shares and must be summed
COUNTS = STEPS, SKIPPED, TOKENS, PAIRS = "steps", "skipped_steps", "tokens", "pairs"
COUNTED = "counted."
# A line's loss is a spike this many deviations above the median of the lines before it.
DEVIATIONS = 6.0
HISTORY, LEAST_HISTORY = 32, 8  # of fewer lines the deviation says little
MAD_OF_NORMAL = 0.6745  # Median absolute deviation of a normal distribution, in standard deviations
LEAST_RISE = 0.1  # Share of the loss below which nothing is a spike, however quiet the lines before
Sums: TypeAlias = Mapping[str, float]  # Of a process over steps, by name
EVENTS = ("on_step", "on_evaluation", "on_save", "on_end")


class Tracker:
    """Appends to `metrics.jsonl`; accelerate's `trackers` get every line too, as `kind/name`."""

    def __init__(
        self, folder: Path, trackers: Sequence[str] = (), settings: Mapping[str, Any] | None = None
    ) -> None:
        self._path = folder / METRICS
        self._others = [_started(name, folder, settings or {}) for name in trackers]

    def rewind(self, step: int) -> None:
        """Drop the lines after `step`, and damaged ones."""
        if not self._path.exists():
            return
        kept = [line for line in read_metrics(self._path, tell=True) if line["step"] <= step]
        write_whole(self._path, "".join(json.dumps(line) + "\n" for line in kept).encode())

    def flush(self) -> None:
        """Bring the lines to disk, so that no checkpoint is ahead of them."""
        if self._path.exists():
            flush(self._path)

    def lines(self) -> list[dict[str, Any]]:
        """Return the lines written so far."""
        return read_metrics(self._path) if self._path.exists() else []

    def log(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        """Write one line."""
        line = {"kind": kind, "step": step, **values}
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")
        for other in self._others:
            other.log({f"{kind}/{name}": value for name, value in values.items()}, step=step)

    def close(self) -> None:
        """Let the other trackers finish."""
        for other in self._others:
            other.finish()


def _started(name: str, folder: Path, settings: Mapping[str, Any]) -> Any:
    """Start one of accelerate's trackers; TensorBoard's events go into `folder/tensorboard`."""
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    kind = LOGGER_TYPE_TO_CLASS[name]
    board = name == "tensorboard"
    try:
        # A tracker's first argument is the folder of events, or else the project of the run.
        where = (folder,) if kind.requires_logging_directory else ()
        tracker = kind("tensorboard" if board else "maskery", *where)
        tracker.start()
    except ImportError as error:
        raise _missing(name) from error
    if not board:  # TensorBoard would write another folder of events for them
        tracker.store_init_configuration({"folder": str(folder), **settings})
    return tracker


def check_trackers(names: Sequence[str]) -> None:
    """Refuse a tracker whose package is not installed, before a run leaves anything."""
    if names:
        from accelerate.tracking import get_available_trackers

        there = {one.value for one in get_available_trackers()}
        if missing := [name for name in names if name not in there]:
            raise _missing(missing[0])


def _missing(name: str) -> MissingExtraError:
    package = "'maskery[tensorboard]'" if name == "tensorboard" else name
    fix = f"install it with: pip install {package}"
    return MissingExtraError(f"{name} is needed to write to {name} and is not installed; {fix}")


class Window:
    """Sums over the steps since the last line, by name, read only when a line is written.

    Steps whose gradient is not finite are counted, and left out of the means but for `counted`.
    """

    def __init__(self, sums: Mapping[str, torch.Tensor | float] | None = None) -> None:
        self.sums: dict[str, torch.Tensor | float] = {**dict.fromkeys(COUNTS, 0.0), **(sums or {})}
        self.began = time.perf_counter()
        self.waited = 0.0  # Seconds since then in which this process waited for its next batch

    def add(
        self,
        losses: Mapping[str, torch.Tensor],
        tokens: int,
        counted: Mapping[str, int] | None = None,
        pairs: int = 0,
    ) -> None:
        """Add a step's losses, this process's tokens, pairs and other counts, without waiting."""
        sound = torch.isfinite(losses[WHOLE])
        more: dict[str, Any] = {STEPS: 1, SKIPPED: (~sound).float(), TOKENS: tokens, PAIRS: pairs}
        for name, value in losses.items():
            more[name] = torch.where(sound, value, torch.zeros_like(value)).float()
        more |= {f"{COUNTED}{name}": count for name, count in (counted or {}).items()}
        for name, value in more.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def means(self, processes: Processes) -> dict[str, float]:
        """Return means over the steps and all processes; every process must ask."""
        sums = {name: float(value) for name, value in self.sums.items()}
        steps, skipped, *read = (sums.pop(name) for name in COUNTS)
        sound = steps - skipped
        counted = sorted(name for name in sums if name.startswith(COUNTED))
        # Without one sound step there are no losses.
        means = {n: value / sound for n, value in sums.items() if sound and n not in counted}
        names = sorted(means.keys() - {WHOLE})
        own = [*(means[name] for name in names), *(sums[name] for name in counted), *read]
        *shared, tokens, pairs = processes.sum(own)
        names += [name.removeprefix(COUNTED) for name in counted]
        values = means | dict(zip(names, shared, strict=True))
        seconds = time.perf_counter() - self.began
        values["tokens_per_second"] = tokens / seconds
        if pairs:
            values["pairs_per_second"] = pairs / seconds
        return values | ({SKIPPED: skipped} if skipped else {})

    @property
    def waiting_share(self) -> float:
        """Return the share of the time since it began that was waited for data."""
        return self.waited / max(time.perf_counter() - self.began, 1e-9)

    def state(self, processes: Processes) -> tuple[Sums, ...]:
        """Return each process's sums, for a checkpoint; every process must ask."""
        if not self.sums[STEPS]:
            return ()
        names = sorted(self.sums)
        rows = processes.gather([float(self.sums[name]) for name in names])
        return tuple(dict(zip(names, row, strict=True)) for row in rows)

    @classmethod
    def restored(cls, state: Sequence[Sums], processes: Processes, device: torch.device) -> Self:
        """Return the window of a checkpoint, to the bit if there are as many processes as then."""
        if not state:
            return cls()
        own = dict(state[processes.rank if len(state) == processes.world_size else 0])
        if len(state) != processes.world_size:
            # The main process takes all sums that were shared out.
            for name in own.keys() - {WHOLE, SKIPPED, STEPS}:
                own[name] = sum(row[name] for row in state) if processes.is_main else 0.0
        sums: dict[str, torch.Tensor | float] = dict(own)
        for name in own.keys() - set(COUNTS):
            if not name.startswith(COUNTED):  # losses are summed in float32
                sums[name] = torch.tensor(own[name], device=device)
        return cls(sums)


def usual_loss(before: Sequence[float], loss: float) -> float | None:
    """Return the median of the lines before if `loss` is a spike above it, else None."""
    if len(before) < LEAST_HISTORY:
        return None
    median = statistics.median(before)
    spread = statistics.median(abs(value - median) for value in before) / MAD_OF_NORMAL
    above = max(DEVIATIONS * spread, LEAST_RISE * abs(median))
    return median if loss > median + above else None


class Journal:
    """Decides what is written into `metrics.jsonl`, by the tracker of the main process.

    `best_metric` is the held-out figure that tells the best; None for the first of a line. After
    `first_step` the model is the start's.
    """

    def __init__(
        self, tracker: Tracker, processes: Processes, best_metric: str | None, first_step: int = 0
    ) -> None:
        self.tracker, self.processes, self.best_metric = tracker, processes, best_metric
        self.first_step = first_step
        self.window = Window()
        self._losses = deque[float](maxlen=HISTORY)  # Of the lines before
        self._best: float | None = None
        # The step after which figures were the best; None on others than the main process.
        self.best_step: int | None = None
        self.since_best = 0  # Evaluations after a step since the best one

    def rewind(self, step: int, window: Sequence[Sums], device: torch.device) -> None:
        """Go back to a checkpoint: drop the lines that were written after it."""
        self.window = Window.restored(window, self.processes, device)
        if self.processes.is_main:
            self._read_again(step)
        self.since_best = int(self.processes.on_main(lambda: str(self.since_best)) or 0)

    def _read_again(self, step: int) -> None:
        self.tracker.rewind(step)
        lines = self.tracker.lines()
        self._losses.clear()
        self._losses += [n["loss"] for n in lines if n["kind"] == TRAIN and "loss" in n]
        for line in lines:
            if line["kind"] == HELD_OUT and line["step"] > self.first_step:
                values = {n: v for n, v in line.items() if n not in ("kind", "step")}
                self.since_best = 0 if self._improves(line["step"], values) else self.since_best + 1

    def line(self, step: int, more: Mapping[str, float]) -> dict[str, float]:
        """Close the window and write its line; every process must ask, and gets the means."""
        values = self.window.means(self.processes)
        self.window = Window()
        values |= more
        if not self.processes.is_main:
            return values
        if SKIPPED in values:
            told = "skipped up to step %d: %s, with a loss or gradient that was no finite number"
            log.warning(told, step, counted(values[SKIPPED], "step"))
        if "loss" in values:
            usual = usual_loss(self._losses, values["loss"])
            self._losses.append(values["loss"])
            if usual is not None:
                values[SPIKE] = usual
                told = "the loss is %.3f at step %d, and was about %.3f before"
                log.warning(told, values["loss"], step, usual)
        self.tracker.log(TRAIN, step, values)
        return values

    def held_out(self, step: int, values: Mapping[str, float]) -> bool:
        """Write held-out figures; returns True if they are the best after any step so far."""

        # The main process decides for all: it alone has read the lines of a run that goes on, and
        # another's last digits may differ.
        def written() -> str | None:
            # The start is never the best, but a wrong name of a metric is told at once.
            improves = self._improves(step, values)
            if step == self.first_step:
                improves, self._best, self.best_step = False, None, None
            self.tracker.log(HELD_OUT, step, values)
            return BEST if improves else None

        best = self.processes.on_main(written) == BEST
        self.since_best = 0 if best or step == self.first_step else self.since_best + 1
        return best

    def has_held_out(self, step: int) -> bool:
        """Return True if the held-out figures of a step are written; the main process looks."""

        def written() -> str:
            lines = ((line["kind"], line["step"]) for line in self.tracker.lines())
            return str((HELD_OUT, step) in lines)

        return self.processes.on_main(written) == str(True)

    def _improves(self, step: int, values: Mapping[str, float]) -> bool:
        if self.best_metric == NONE or not values:
            return False
        name = next(iter(values)) if self.best_metric is None else self.best_metric
        if name not in values:
            problem = f"best_metric is '{name}', which is not among the held-out figures"
            raise ConfigError(f"{problem}: choose {', '.join(values)}, or {NONE}")
        value = float(values[name]) * (1 if name.endswith(LOWER_IS_BETTER) else -1)
        if math.isnan(value) or (self._best is not None and value >= self._best):
            return False
        self._best, self.best_step = value, step
        return True


class Callback(Protocol):
    """Subclass it and define the methods you need; the others do nothing.

    Every process of a run calls its own callbacks, but for `on_save`. An exception ends the run as
    any error does; a run of one process writes a checkpoint of the last step first, so that
    `--resume auto` goes on from there.
    """

    def on_step(self, step: int, figures: Mapping[str, torch.Tensor]) -> None:
        """Called after each optimiser step, from 1, once its line in `metrics.jsonl` is written.

        `figures` is what `Stepper.step` returned: scalars on the device; reading one waits for it.
        """

    def on_evaluation(self, step: int, figures: Mapping[str, float]) -> None:
        """Called after each evaluation, with the figures of its line; `step` counts steps done."""

    def on_save(self, step: int, folder: Path) -> None:
        """Called by the main process after a step that finds a new checkpoint on disk.

        `folder` is complete; the run deletes it when newer ones take its place. `step` is that of
        its state: it was written while steps went on.
        """

    def on_end(self) -> None:
        """Called once when a run ends, whether it is done, was stopped or failed."""


def check_callbacks(callbacks: Sequence[Callback]) -> None:
    """Check that callbacks have every method, before a run finds out at its first checkpoint."""
    for callback in callbacks:
        if isinstance(callback, type):
            fix = f"give an object of it: {callback.__name__}()"
            raise ConfigError(f"the callback {callback.__name__} is a class; {fix}")
        missing = [name for name in EVENTS if not callable(getattr(callback, name, None))]
        if missing:
            problem = f"the callback {type(callback).__name__} has no {' and no '.join(missing)}"
            base = "maskery.training.journal.Callback, whose methods do nothing"
            raise ConfigError(f"{problem}; derive its class from {base}")
