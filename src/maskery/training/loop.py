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
from maskery.core.processes import Processes, join_processes
from maskery.core.task import BatchSource, Prepared, Task, loss_sums_of, prepare_all
from maskery.training.checkpoint import Checkpoints, Position, restore
from maskery.training.config import Precision, TrainingConfig
from maskery.training.optimiser import set_learning_rate
from maskery.training.parallel import (
    clip_gradients,
    explain_unused,
    gather,
    last_backward,
    spread,
)
from maskery.training.prefetch import Prefetch
from maskery.training.schedule import learning_rate_factor
from maskery.training.tracking import Tracker

Evaluate = Callable[[int], Mapping[str, float]]
# What every process knows whole, where of the loss each has a share.
WHOLE = "grad_norm"


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
        tokens: Real tokens that all processes trained on since they started or resumed.
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
            `eval_every` steps and at the end, with the model in evaluation mode, by every process.
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
        self.processes = join_processes()
        self.accelerator = accelerator or make_accelerator(config)
        self.optimiser = optimiser
        self.checkpoints = Checkpoints(folder / "checkpoints", keep=config.keep_checkpoints)
        board = config.tensorboard and self.processes.is_main
        self.tracker = Tracker(folder, tensorboard=board)
        self.epoch_steps = [source.num_steps(epoch) for epoch in range(config.epochs)]
        self.total_steps = min(sum(self.epoch_steps), config.max_steps or sum(self.epoch_steps))

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        """What is trained."""
        return [p for group in self.optimiser.param_groups for p in group["params"]]

    def train(self, *, resume: bool = False) -> Summary:
        """Run to the end.

        Args:
            resume: Whether to go on from the newest sound checkpoint, if there is one.
        """
        # The model moves before the optimiser's moments are restored to where it is.
        device = self.accelerator.device
        self.task.model.to(device)
        spread(self.task, self.optimiser, self.config.sharding, device)
        start = (
            self._restore()
            if resume
            else Position(step=0, epoch=0, epoch_step=0, identity=self.identity)
        )
        # A run may have been stopped between a step's checkpoint and its evaluation.
        if self._due(start.step) and not (resume and self._evaluated(start.step)):
            self._evaluate(start.step)
        tokens, began = 0, time.perf_counter()
        window = _Window()
        bar = tqdm(
            total=self.total_steps,
            initial=start.step,
            desc="training",
            unit="step",
            disable=not (self.progress and self.processes.is_main),
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
        gather(self.task)
        return Summary(
            steps=self.total_steps,
            tokens=int(self.processes.sum([tokens])[0]),
            seconds=seconds,
            resumed_from=start.step,
        )

    def step(self, step: Step) -> dict[str, torch.Tensor]:
        """One optimiser step; returns its loss terms and total, detached, and the gradient norm."""
        self.task.model.train()
        # Dropout follows from (seed, step, process) alone, so that resuming repeats it.
        torch.manual_seed(step_seed(self.config.seed, step.number, self.processes.rank))
        factor = learning_rate_factor(
            step.number,
            self.total_steps,
            warmup_share=self.config.warmup_share,
            shape=self.config.lr_schedule,
            floor=self.config.lr_floor,
        )
        set_learning_rate(self.optimiser, factor)
        self.task.before_step()
        counts = self._global_counts(step.micro)
        losses: dict[str, torch.Tensor] = {}
        for index, prepared in enumerate(step.micro):
            with last_backward(self.task.model, last=index + 1 == len(step.micro)):
                terms = self._micro_step(prepared, counts)
            for name, term in terms.items():
                losses[name] = losses.get(name, torch.zeros_like(term)) + term
        limit = self.config.clip_norm or float("inf")
        losses["grad_norm"] = clip_gradients(self.parameters, limit)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        return losses

    def _micro_step(self, prepared: Prepared, counts: Mapping[str, float]) -> dict[str, Any]:
        """Gradients of one micro-batch; returns its share of the loss and its terms, detached."""
        device = self.accelerator.device
        try:
            with self.accelerator.autocast():
                sums = loss_sums_of(self.task, prepared.to(device))
        except RuntimeError as error:
            raise explain_unused(error, self.task.model) from error
        terms = {name: value / max(counts[name], 1) for name, value in sums.items()}
        total = sum(
            (self.task.loss_weights[name] * term for name, term in terms.items()),
            start=torch.zeros((), device=device),
        )
        # The processes' gradients are averaged; ours are shares of a sum.
        self.accelerator.backward(total * self.processes.world_size)
        return {"loss": total.detach(), **{name: term.detach() for name, term in terms.items()}}

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
                    rank=self.processes.rank,
                    world_size=self.processes.world_size,
                )
                progress = number / self.total_steps
                micro = prepare_all(self.task, batches, epoch=epoch, progress=progress)
                yield Step(number=number, epoch=epoch, epoch_step=index, micro=micro)
                number += 1
            epoch_step = 0

    def _global_counts(self, micro: Sequence[Prepared]) -> dict[str, float]:
        names = sorted(self.task.loss_weights)
        counts = [float(sum(m.counts.get(name, 0) for m in micro)) for name in names]
        return dict(zip(names, self.processes.sum(counts), strict=True))

    def _counted(self, step: Step) -> Mapping[str, int]:
        """What this process's batches count beyond their loss terms; logged as sums."""
        names = {n for micro in step.micro for n in micro.counts} - set(self.task.loss_weights)
        return {n: sum(micro.counts.get(n, 0) for micro in step.micro) for n in sorted(names)}

    def _log(self, done: int, step: Step, window: _Window, bar: tqdm[Any]) -> None:
        values = window.means(self.processes)
        values["learning_rate"] = max(g["lr"] for g in self.optimiser.param_groups)
        values["epoch"] = step.epoch
        bar.set_postfix_str(f"loss {values['loss']:.3f}, {values['tokens_per_second']:,.0f} tok/s")
        if self.processes.is_main:
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
        if self.processes.is_main:
            self.tracker.log("held_out", step, values)

    def _evaluated(self, step: int) -> bool:
        """Whether the held-out figures of a step are written."""
        found = self.processes.on_main(lambda: str(self.tracker.has("held_out", step)))
        return found == "True"

    def _save(self, step: Step) -> None:
        last = step.epoch_step + 1 == self.epoch_steps[step.epoch]
        position = Position(
            step=step.number + 1,
            epoch=step.epoch + 1 if last else step.epoch,
            epoch_step=0 if last else step.epoch_step + 1,
            identity=self.identity,
        )
        self.checkpoints.save(self.task, self.optimiser, position)

    def _restore(self) -> Position:
        found = self.processes.on_main(self._find_checkpoint)
        if found is None:
            position = Position(step=0, epoch=0, epoch_step=0, identity=self.identity)
        else:
            position = restore(Path(found), self.task, self.optimiser, self.identity)
        if self.processes.is_main:
            self.tracker.rewind(position.step)
        return position

    def _find_checkpoint(self) -> str | None:
        path = self.checkpoints.newest_sound()
        if path is None and self.checkpoints.complete():
            raise CheckpointError(
                f"every checkpoint in '{self.checkpoints.folder}' is damaged; start afresh "
                f"with another --output"
            )
        return None if path is None else str(path)


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

    def means(self, processes: Processes) -> dict[str, float]:
        """Over all processes: each has its share of a loss, and all have the gradient's norm."""
        names = sorted(self.sums.keys() - {WHOLE})
        counted = sorted(self.counted)
        own = [float(self.sums[name]) / self.steps for name in names]
        own += [self.counted[name] for name in counted]
        *shares, tokens = processes.sum([*own, self.tokens])
        means = dict(zip((*names, *counted), shares, strict=True))
        means[WHOLE] = float(self.sums[WHOLE]) / self.steps
        means["tokens_per_second"] = tokens / (time.perf_counter() - self.began)
        return {name: means[name] for name in (*self.sums, *counted, "tokens_per_second")}


def make_accelerator(config: TrainingConfig) -> Accelerator:
    """One process or many, whichever the launcher set up; bf16 where the GPU has it."""
    join_processes()
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
