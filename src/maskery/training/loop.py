"""The training loop: one optimiser step after another, the same on any number of processes.

The loss of a step is `sum over terms of weight * (sum of the term / its count)`, with counts taken
over every micro-batch of every process, so it does not depend on how the step is cut up.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from tqdm import tqdm

from maskery.core.errors import CheckpointError
from maskery.core.task import BatchSource, Prepared, Task
from maskery.training.checkpoint import Checkpoints, Position, restore
from maskery.training.config import Precision, TrainingConfig
from maskery.training.optimiser import set_learning_rate
from maskery.training.prefetch import Prefetch
from maskery.training.schedule import learning_rate_factor
from maskery.training.tracking import Tracker

Evaluate = Callable[[int], Mapping[str, float]]


@dataclass(frozen=True, kw_only=True)
class Step:
    """One optimiser step, prepared.

    Attributes:
        number: From 0, over the whole run.
        epoch: From 0.
        epoch_step: From 0, within the epoch.
        micro: This process's micro-batches.
    """

    number: int
    epoch: int
    epoch_step: int
    micro: Sequence[Prepared]


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What a run did.

    Attributes:
        steps: Optimiser steps of the whole run.
        tokens: Real tokens this process trained on since it started or resumed.
        seconds: Time spent in steps since then.
        resumed_from: The step it went on from; 0 for a fresh run.
    """

    steps: int
    tokens: int
    seconds: float
    resumed_from: int


class Trainer:
    """Trains a task.

    Args:
        task: What is trained.
        source: Where its batches come from.
        optimiser: Made by `build_optimiser`.
        config: Length, schedule and bookkeeping.
        folder: The run folder; `checkpoints/` and `metrics.jsonl` are written there.
        identity: A hash of what a continuation must share with the run.
        evaluate: From the steps done to held-out figures by name; called at the start, every
            `eval_every` steps and at the end, with the model in evaluation mode.
        accelerator: Devices and precision; one is made from the config if None.
        progress: Whether to draw a progress bar.
    """

    def __init__(
        self,
        task: Task[Any, Any],
        source: BatchSource[Any],
        optimiser: torch.optim.Optimizer,
        config: TrainingConfig,
        folder: Path,
        *,
        identity: str,
        evaluate: Evaluate | None = None,
        accelerator: Accelerator | None = None,
        progress: bool = True,
    ) -> None:
        self.task, self.source, self.config = task, source, config
        self.evaluate = evaluate
        self.identity = identity
        self.progress = progress
        self.accelerator = accelerator or make_accelerator(config)
        self.optimiser = optimiser
        self.checkpoints = Checkpoints(folder / "checkpoints", keep=config.keep_checkpoints)
        self.tracker = Tracker(folder, tensorboard=config.tensorboard)
        self.epoch_steps = [source.num_steps(epoch) for epoch in range(config.epochs)]
        self.total_steps = min(sum(self.epoch_steps), config.max_steps or sum(self.epoch_steps))
        self.parameters = [p for g in optimiser.param_groups for p in g["params"]]

    def train(self, *, resume: bool = False) -> Summary:
        """Run to the end.

        Args:
            resume: Whether to go on from the newest sound checkpoint, if there is one.
        """
        # The model moves before the optimiser's moments are restored to where it is.
        self.task.model.to(self.accelerator.device)
        start = (
            self._restore()
            if resume
            else Position(step=0, epoch=0, epoch_step=0, identity=self.identity)
        )
        # A run may have been stopped between a step's checkpoint and its evaluation.
        if self._due(start.step) and not (resume and self.tracker.has("held_out", start.step)):
            self._evaluate(start.step)
        tokens, began = 0, time.perf_counter()
        window = _Window()
        bar = tqdm(
            total=self.total_steps,
            initial=start.step,
            desc="training",
            unit="step",
            disable=not (self.progress and self.accelerator.is_main_process),
        )
        with bar, Prefetch(self.steps(start)) as steps:
            for step in steps:
                losses = self.step(step)
                done = step.number + 1
                step_tokens = sum(micro.num_tokens for micro in step.micro)
                tokens += step_tokens
                window.add(losses, step_tokens, self._counted(step))
                bar.update()
                saves = done % self.config.checkpoint_every == 0 or done == self.total_steps
                # A line at every checkpoint, so that a resumed run averages over the same steps.
                if saves or done % self.config.log_every == 0:
                    self._log(done, step, window, bar)
                    window = _Window()
                if saves:
                    self._save(step)
                if done < self.total_steps and self._due(done):
                    self._evaluate(done)
        seconds = time.perf_counter() - began
        if start.step < self.total_steps:
            self._evaluate(self.total_steps)
        self.tracker.close()
        return Summary(
            steps=self.total_steps, tokens=tokens, seconds=seconds, resumed_from=start.step
        )

    def step(self, step: Step) -> dict[str, torch.Tensor]:
        """One optimiser step; returns its loss terms and total, detached, and the gradient norm."""
        self.task.model.train()
        # Dropout follows from (seed, step, process) alone, so that resuming repeats it.
        torch.manual_seed(step_seed(self.config.seed, step.number, self.accelerator.process_index))
        factor = learning_rate_factor(
            step.number,
            self.total_steps,
            warmup_share=self.config.warmup_share,
            shape=self.config.lr_schedule,
        )
        set_learning_rate(self.optimiser, factor)
        self.task.before_step()
        counts = self._global_counts(step.micro)
        losses: dict[str, torch.Tensor] = {}
        for prepared in step.micro:
            with self.accelerator.autocast():
                sums = self.task.loss_sums(prepared.to(self.accelerator.device))
            terms = {name: value / max(counts[name], 1) for name, value in sums.items()}
            total = sum(
                (self.task.loss_weights[name] * term for name, term in terms.items()),
                start=torch.zeros((), device=self.accelerator.device),
            )
            self.accelerator.backward(total * self.accelerator.num_processes)
            for name, term in {"loss": total, **terms}.items():
                losses[name] = losses.get(name, torch.zeros_like(term)).detach() + term.detach()
        limit = self.config.clip_norm or float("inf")
        losses["grad_norm"] = torch.nn.utils.clip_grad_norm_(self.parameters, limit)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        return losses

    def steps(self, start: Position) -> Iterator[Step]:
        """Every step from a position on; runs in the prefetching thread."""
        number, epoch_step = start.step, start.epoch_step
        for epoch in range(start.epoch, self.config.epochs):
            for index in range(epoch_step, self.epoch_steps[epoch]):
                if number >= self.total_steps:
                    return
                batches = self.source.micro_batches(
                    epoch,
                    index,
                    rank=self.accelerator.process_index,
                    world_size=self.accelerator.num_processes,
                )
                progress = number / self.total_steps
                micro = [
                    self.task.prepare(batch, epoch=epoch, progress=progress) for batch in batches
                ]
                yield Step(number=number, epoch=epoch, epoch_step=index, micro=micro)
                number += 1
            epoch_step = 0

    def _global_counts(self, micro: Sequence[Prepared]) -> dict[str, float]:
        names = sorted(self.task.loss_weights)
        counts = [float(sum(m.counts.get(name, 0) for m in micro)) for name in names]
        if self.accelerator.num_processes > 1:
            local = torch.tensor(counts, device=self.accelerator.device, dtype=torch.float64)
            counts = self.accelerator.reduce(local, reduction="sum").tolist()
        return dict(zip(names, counts, strict=True))

    def _counted(self, step: Step) -> Mapping[str, int]:
        """What this process's batches count beyond their loss terms; logged as sums."""
        names = {n for micro in step.micro for n in micro.counts} - set(self.task.loss_weights)
        return {n: sum(micro.counts.get(n, 0) for micro in step.micro) for n in sorted(names)}

    def _log(self, done: int, step: Step, window: _Window, bar: tqdm[Any]) -> None:
        values = window.means()
        values["learning_rate"] = max(g["lr"] for g in self.optimiser.param_groups)
        values["epoch"] = step.epoch
        bar.set_postfix_str(f"loss {values['loss']:.3f}, {values['tokens_per_second']:,.0f} tok/s")
        if self.accelerator.is_main_process:
            self.tracker.log("train", done, values)

    def _due(self, step: int) -> bool:
        """Whether the held-out figures belong to a step: the first, the last, and by the config."""
        every = self.config.eval_every
        return step in (0, self.total_steps) or bool(every and step % every == 0)

    def _evaluate(self, step: int) -> None:
        if self.evaluate is None:
            return
        self.task.model.eval()
        values = self.evaluate(step)
        if self.accelerator.is_main_process:
            self.tracker.log("held_out", step, values)

    def _save(self, step: Step) -> None:
        if not self.accelerator.is_main_process:
            return
        last = step.epoch_step + 1 == self.epoch_steps[step.epoch]
        position = Position(
            step=step.number + 1,
            epoch=step.epoch + 1 if last else step.epoch,
            epoch_step=0 if last else step.epoch_step + 1,
            identity=self.identity,
        )
        self.checkpoints.save(self.task, self.optimiser, position)

    def _restore(self) -> Position:
        path = self.checkpoints.newest_sound()
        if path is None:
            if self.checkpoints.complete():
                raise CheckpointError(
                    f"every checkpoint in '{self.checkpoints.folder}' is damaged; start afresh "
                    f"with another --output"
                )
            position = Position(step=0, epoch=0, epoch_step=0, identity=self.identity)
        else:
            position = restore(path, self.task, self.optimiser, self.identity)
        if self.accelerator.is_main_process:
            self.tracker.rewind(position.step)
        return position


class _Window:
    """Sums over the steps between two log lines, read only when a line is written."""

    def __init__(self) -> None:
        self.sums: dict[str, torch.Tensor] = {}
        self.counted: Counter[str] = Counter()
        self.steps = 0
        self.tokens = 0
        self.began = time.perf_counter()

    def add(
        self, losses: Mapping[str, torch.Tensor], tokens: int, counted: Mapping[str, int]
    ) -> None:
        for name, value in losses.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.counted.update(counted)
        self.steps += 1
        self.tokens += tokens

    def means(self) -> dict[str, float]:
        means = {name: float(value) / self.steps for name, value in self.sums.items()}
        means.update(self.counted)
        means["tokens_per_second"] = self.tokens / (time.perf_counter() - self.began)
        return means


def make_accelerator(config: TrainingConfig) -> Accelerator:
    """One process or many, whichever the launcher set up; bf16 where the GPU has it."""
    return Accelerator(mixed_precision="bf16" if resolve_precision(config) == "bf16" else "no")


def resolve_precision(config: TrainingConfig) -> Precision:
    """fp32 or bf16, whichever the config says or the device is fast at."""
    if config.precision != "auto":
        return config.precision
    fast = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16" if fast else "fp32"


def step_seed(*numbers: int) -> int:
    """A 63-bit seed from several numbers."""
    mixed = 0
    for number in numbers:
        mixed = (mixed ^ number) * 0x9E3779B97F4A7C15 + 0x7F4A7C15
        mixed = (mixed ^ (mixed >> 31)) & ((1 << 63) - 1)
    return mixed
