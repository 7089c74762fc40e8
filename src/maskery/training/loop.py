"""The training loop: lines, held-out figures and checkpoints around the steps of `Stepper`."""

import contextlib
import logging
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from maskery.core.bars import Bar
from maskery.core.errors import CheckpointError, MaskeryError, StoppedError, TrainingError
from maskery.core.processes import lost_process
from maskery.core.system import SIGNALS, Interrupted, StopSignals
from maskery.core.task import BatchSource, Prepared, Task
from maskery.training.checkpoint import Checkpoints
from maskery.training.config import BaseTrainingConfig
from maskery.training.journal import WAITING, Callback, Journal, Tracker, check_callbacks
from maskery.training.parallel import gather
from maskery.training.snapshot import BEGINNING, Position, SnapshotMaker, restore, restore_task
from maskery.training.stepper import BadSteps, Prefetch, Stepper

log = logging.getLogger(__name__)
Evaluate = Callable[[int], Mapping[str, float]]


@dataclass(frozen=True, kw_only=True)
class Step:
    """An optimiser step whose random decisions are taken."""

    number: int  # From 0, over the whole run
    epoch: int  # From 0
    epoch_step: int  # From 0, within the epoch
    micro: Sequence[Prepared]  # This process's micro-batches


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Length and speed of a run that has ended."""

    steps: int  # Optimiser steps of the whole run
    tokens: int  # Real tokens that all processes trained on since they started or resumed
    seconds: float  # Time spent in steps since then
    resumed_from: int  # The step it went on from; 0 for a fresh run
    pairs: int = 0  # Likewise pictures with captions; 0 of text


def planned_steps(
    source: BatchSource[Any], config: BaseTrainingConfig, first: Position = BEGINNING
) -> tuple[list[int], int]:
    """Return the optimiser steps of each epoch, and those of the run, which may end before.

    A run that begins at `first` counts the steps before it, whatever data they were of.
    """
    epochs = [source.num_steps(epoch) for epoch in range(first.epoch)]
    before = first.step - sum(epochs) - first.epoch_step
    most, last = config.max_steps, config.epochs
    if first.step and most and first.epoch >= last:
        last = most  # a finished run is extended by more steps alone; an epoch has at least one
    while len(epochs) < last and (not most or before + sum(epochs) < most):
        epochs.append(source.num_steps(len(epochs)))
    total = before + sum(epochs)
    return epochs, min(total, most or total)


class TrainingLoop:
    """Trains a task from its first or its last saved step to the end.

    Args:
        folder: The run folder; `checkpoints/` and `metrics.jsonl` are written there.
        identity: Settings and data that a resumed run must share, as JSON.
        evaluate: From the steps done to held-out figures by name; called at the start, every
            `eval_every` steps and at the end, with the model in evaluation mode, by every process.
        first: Where a run begins, if its first checkpoint is another run's.

    Raises:
        ConfigError: An object in `callbacks` is none.
        MissingExtraError: A tracker's package is not installed.
    """

    def __init__(
        self,
        task: Task[Any, Any],
        source: BatchSource[Any],
        optimiser: torch.optim.Optimizer,
        config: BaseTrainingConfig,
        folder: Path,
        *,
        identity: str,
        evaluate: Evaluate | None = None,
        callbacks: Sequence[Callback] = (),
        progress: bool = True,
        first: Position = BEGINNING,
    ) -> None:
        check_callbacks(callbacks)
        self.epoch_steps, self.total_steps = planned_steps(source, config, first)
        self.task, self.source, self.config = task, source, config
        self.stepper = Stepper(task, config, total_steps=self.total_steps, optimiser=optimiser)
        self.processes = self.stepper.processes
        self.evaluate, self.callbacks = evaluate, callbacks
        self.identity, self.progress = identity, progress
        kept = config.kept_steps | {first.step}
        self.checkpoints = Checkpoints(folder / "checkpoints", config.keep_checkpoints, kept)
        self.snapshots = SnapshotMaker(keeps=self.processes.is_main)
        trackers = config.all_trackers if self.processes.is_main else ()
        self.tracker = Tracker(folder, trackers=trackers, settings=config.course())
        self.journal = Journal(self.tracker, self.processes, config.best_metric, first.step)
        self.bad_steps = BadSteps(config.max_bad_steps)
        self.signals = StopSignals()
        self._last: Step | None = None
        self._done = self._saved = 0
        self._saved_at = self._resumed_at = time.perf_counter()
        self._seconds, self._tokens, self._pairs = 0.0, 0, 0

    def train(self, *, resume: bool = False) -> Summary:
        """Run to the end, with `resume` from the newest sound checkpoint, if there is one.

        Raises:
            StoppedError: A signal asked for the end; a checkpoint is written.
            TrainingError: Too many steps in a row were no numbers; a checkpoint is written.
            CheckpointError: A checkpoint could not be read or written.
        """
        try:
            return self._train(resume=resume)
        finally:
            self.tracker.close()
            for callback in self.callbacks:
                callback.on_end()

    def _train(self, *, resume: bool) -> Summary:
        start = BEGINNING
        if resume:
            found = self.processes.on_main(self.checkpoints.to_resume_from)
            if found is not None:
                start = restore(Path(found), self.task, self.stepper.optimiser, self.identity)
            self.journal.rewind(start.step, start.window, self.stepper.device)
            if self.journal.best_step is not None:  # a kill may have come before it was marked
                self.checkpoints.mark_best(self.journal.best_step)
            self.bad_steps = BadSteps(self.config.max_bad_steps, start.bad_steps)
        self._done = self._saved = start.step
        # A run may have been stopped between a step's checkpoint and its evaluation.
        due = self._due(start.step) and not (resume and self.journal.has_held_out(start.step))
        if due and self._evaluate(start.step) and self.processes.is_main:
            self.checkpoints.mark_best(start.step)
        self._saved_at = self._resumed_at = time.perf_counter()
        self._take_steps(start)
        if self.config.patience is not None and (best := self.restore_best()) is not None:
            told = "ended after step %d; the model is the best one, of step %d"
            log.info(told, self._done, best)
        self._tell_saved()
        gather(self.task)
        tokens, pairs = map(int, self.processes.sum([self._tokens, self._pairs]))
        return Summary(
            steps=self._done,
            tokens=tokens,
            pairs=pairs,
            seconds=self._seconds,
            resumed_from=start.step,
        )

    def restore_best(self) -> int | None:
        """Load the best checkpoint's weights; returns its step, None if there is no checkpoint."""
        best = self.processes.on_main(lambda: str(self.checkpoints.best_sound() or ""))
        return restore_task(Path(best), self.task) if best else None

    def _take_steps(self, start: Position) -> None:
        """Take every step from a position on, and wait for the last checkpoint."""
        shown = self.progress and self.processes.is_main
        told: Any = {"initial": start.step, "unit": "step", "leave": True}
        bar = Bar(self.total_steps, "training", shown=shown, **told)
        with self.signals, bar, Prefetch(self.steps(start), gives_up=self._stops_alone) as steps:
            try:
                while not self._enough and (step := self._next(steps)) is not None:
                    losses = self.step(step)
                    self._last, self._done = step, step.number + 1
                    self._after(step, losses, bar)
            except BaseException as error:
                # Other processes may have failed, so do not synchronise: only wait for our write.
                with contextlib.suppress(CheckpointError):
                    self.checkpoints.finish()
                if (lost := lost_process(error)) is not None:
                    raise lost from error
                raise
            self.processes.on_main(self.checkpoints.finish)

    def _tell(self, event: str, *what: Any) -> None:
        with self._kept():
            for callback in self.callbacks:
                getattr(callback, event)(*what)

    def _tell_saved(self) -> None:
        while self.callbacks and self.checkpoints.written:
            self._tell("on_save", *self.checkpoints.written.pop(0))

    def _next(self, steps: Iterator[Step]) -> Step | None:
        began = time.perf_counter()
        with self._kept():
            step = next(steps, None)
        self.journal.window.waited += time.perf_counter() - began
        if step is None and self._done < self.total_steps and self._stops_alone():
            self._save_last()
            raise self._end(self._done, self._asked()[0])
        return step

    @contextlib.contextmanager
    def _kept(self) -> Iterator[None]:
        """Let no step that is done be lost where the block fails."""
        try:
            yield
        except BaseException:
            with contextlib.suppress(CheckpointError):
                self._save_last()
            raise

    def _save_last(self) -> None:
        """Write the state after the last step, if no other process has to take part."""
        if self._last and self._saved < self._done and self.processes.world_size == 1:
            self._save(self._last, must=True)
            self.checkpoints.finish()

    def _stops_alone(self) -> bool:
        """Return True if a signal asks for the end and no other process has to agree."""
        return self.processes.world_size == 1 and self.signals.received is not None

    def _after(self, step: Step, losses: dict[str, torch.Tensor], bar: Bar) -> None:
        """Do what falls between two steps: lines, held-out figures, checkpoints, an early end."""
        done, tokens = step.number + 1, sum(micro.num_tokens for micro in step.micro)
        last, keeps = done == self.total_steps, done in self.checkpoints.keep_at
        scheduled = keeps or done % self.config.checkpoint_every == 0
        pairs = sum(getattr(micro, "num_pairs", 0) for micro in step.micro)
        self._tokens, self._pairs = self._tokens + tokens, self._pairs + pairs
        # What batches count beyond their loss terms is logged as sums.
        names = {n for micro in step.micro for n in micro.counts} - set(self.task.loss_weights)
        counted = {n: sum(micro.counts.get(n, 0) for micro in step.micro) for n in sorted(names)}
        self.journal.window.add(losses, tokens, counted, pairs)
        self.bad_steps.add(losses["grad_norm"])
        bar.update()
        signalled, due = self._asked()
        logs = last or scheduled or done % self.config.log_every == 0
        if logs:
            # A new head, and what Muon moves, have rates of their own.
            rate = max(group["lr"] for group in self.stepper.optimiser.param_groups)
            waiting = self.journal.window.waiting_share
            more = {"learning_rate": rate, "epoch": step.epoch, WAITING: waiting}
            values = self.journal.line(done, more)
            loss = f"loss {values['loss']:.3f}, " if "loss" in values else ""
            # Shown when the bar is due: a refresh for each line would fill log files.
            speed = f"{values['tokens_per_second']:,.0f} tok/s, {waiting:.0%} waiting for data"
            if "pairs_per_second" in values:
                speed = f"{values['pairs_per_second']:,.1f} pairs/s, {speed}"
            bar.set_postfix_str(f"{loss}{speed}", refresh=False)
        self._tell_saved()
        self._tell("on_step", done, losses)
        spoilt = (logs or self.bad_steps.free_to_ask) and self.bad_steps.too_many
        stops = (signalled is not None or spoilt) and not last
        self._seconds = time.perf_counter() - self._resumed_at
        if saves := last or stops or scheduled or due:  # before an evaluation, which may take long
            self._save(step, must=last or stops)
        if stops:
            self.processes.on_main(self.checkpoints.finish)
            raise self._end(done, signalled)
        if self._due(done):
            self._judge(step, saved=saves)

    def _judge(self, step: Step, *, saved: bool) -> None:
        """Evaluate after a step, and keep its checkpoint where it is the best."""
        done = step.number + 1
        try:
            best = self._evaluate(done)
        except Interrupted:  # a resumed run evaluates again
            if not saved:
                self._save(step, must=True)
            self.checkpoints.finish()
            raise self._end(done, self._asked()[0]) from None
        if (best or self._enough) and not saved:
            self._save(step, must=self._enough)
        if best and self.processes.is_main:
            self.checkpoints.begin_mark_best(done)

    def step(self, step: Step) -> dict[str, torch.Tensor]:
        """Take one optimiser step; returns what `Stepper.step` does."""
        # Alone, a process asks for its own flags when it needs them.
        flags = self._flags() if self.processes.world_size > 1 else ()
        return self.stepper.step(step.number, step.micro, flags=flags)

    def steps(self, start: Position) -> Iterator[Step]:
        """Prepare every step from a position on; runs in the prefetching thread."""
        number, epoch_step = start.step, start.epoch_step
        share = {"rank": self.processes.rank, "world_size": self.processes.world_size}
        for epoch in range(start.epoch, len(self.epoch_steps)):
            for index in range(epoch_step, self.epoch_steps[epoch]):
                if number >= self.total_steps:
                    return
                batches = self.source.micro_batches(epoch, index, **share)
                micro = self.stepper.prepare(number, batches, epoch=epoch)
                yield Step(number=number, epoch=epoch, epoch_step=index, micro=micro)
                number += 1
            epoch_step = 0

    def _flags(self) -> list[float]:
        """Return this process's flags: one for each signal, a checkpoint's time, a failed write."""
        main, minutes = self.processes.is_main, self.config.checkpoint_minutes
        late = minutes is not None and time.perf_counter() - self._saved_at > 60.0 * minutes
        saves, failed = main and late, main and self.checkpoints.failed
        return [*(self.signals.received == number for number in SIGNALS), saves, failed]

    def _asked(self) -> tuple[int | None, bool]:
        """Return the signal that any process got, and True if time makes a checkpoint due."""
        # Alone, a process looks now; with others, all have agreed when the step began.
        flags = self._flags() if self.processes.world_size == 1 else self.stepper.flags
        *signals, saves, failed = flags
        if failed:
            self.processes.on_main(self.checkpoints.finish)  # raises the error of the write
        received = [number for number, flag in zip(SIGNALS, signals, strict=True) if flag]
        return (received[0] if received else None), bool(saves)

    def _end(self, done: int, number: int | None) -> MaskeryError:
        """Return the error that ends the run early: for a signal, or for too many bad steps."""
        if number is not None:
            reached = f"{signal.Signals(number).name} after step {done} of {self.total_steps}"
            told = f"stopped by {reached}; go on with --resume auto"
            return StoppedError(told, exit_code=128 + number)
        place = f"{self.bad_steps.in_a_row} steps in a row, up to step {done}"
        left = "none of them changed the model, and a checkpoint is written"
        fix = "look at the data there, or start afresh with a lower --learning-rate"
        problem = f"the loss or its gradient was no finite number in {place}"
        return TrainingError(f"{problem}; {left}; {fix}")

    @property
    def _enough(self) -> bool:
        """Return True if `patience` ends the run."""
        patience = self.config.patience
        return patience is not None and self.journal.since_best >= patience

    def _due(self, step: int) -> bool:
        """Return True if held-out figures are due."""
        every = self.config.eval_every
        # At the ends, and before parameters begin to be trained that were held back.
        fixed = {self.journal.first_step, self.total_steps, *self.stepper.starts}
        return step in fixed or bool(every and step % every == 0)

    def _evaluate(self, step: int) -> bool:
        """Write held-out figures; returns True if they are the best so far."""
        if self.evaluate is None:
            return False
        began = time.perf_counter()
        self.task.model.eval()
        with self.signals.interrupting():
            figures = self.evaluate(step)
        best = self.journal.held_out(step, figures)
        passed = time.perf_counter() - began  # speed is that of training
        self._resumed_at += passed
        self.journal.window.began += passed
        self._tell("on_evaluation", step, figures)
        return best

    def _save(self, step: Step, *, must: bool) -> None:
        """Copy the state and let it be written; only the copy is waited for."""
        self._saved = step.number + 1
        last = step.epoch_step + 1 == self.epoch_steps[step.epoch]
        position = Position(
            step=self._saved,
            epoch=step.epoch + 1 if last else step.epoch,
            epoch_step=0 if last else step.epoch_step + 1,
            identity=self.identity,
            window=self.journal.window.state(self.processes),
            bad_steps=self.bad_steps.in_a_row,
        )
        # The memory that is copied to may still be read.
        self.processes.on_main(self.checkpoints.finish)
        snapshot = self.snapshots.take(self.task, self.stepper.optimiser, position)
        self._saved_at = time.perf_counter()
        if self.processes.is_main:
            self.checkpoints.begin(snapshot, must=must, first=self.tracker.flush)
