"""One optimiser step of a task, and `Prefetch`; the loop, or a loop of your own, takes steps here.

    stepper = Stepper(task, TrainingConfig(learning_rate=1e-3), total_steps=100)
    for number in range(100):
        batches = source.micro_batches(0, number, rank=0, world_size=1)
        losses = stepper.step(number, stepper.prepare(number, batches))
        print(number, float(losses["loss"]))

The loss of a step is `sum over terms of weight * (sum of the term / its count)`, with counts taken
over every micro-batch of every process, so it does not depend on how the step is cut up.
"""

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar

import torch
from accelerate import PartialState
from torch import nn
from torch.distributed.tensor import DTensor

from maskery.core.processes import join_processes
from maskery.core.task import Prepared, Task, loss_sums_of, prepare_all
from maskery.training.config import BaseTrainingConfig, TrainingConfig
from maskery.training.optimiser import (
    STARTS_AT,
    build_optimiser,
    exact_sums,
    learning_rate_factor,
    set_learning_rate,
    take_precision,
)
from maskery.training.parallel import clip_gradients, explain_unused, last_backward, spread

ItemT = TypeVar("ItemT")
PATIENCE = 5.0  # Seconds to wait for the thread at the end, which may hang in a read


class Stepper:
    """Takes optimiser steps.

    It moves the task's model to this process's device and spreads it over the processes of the run
    (`maskery.training.parallel.gather` undoes that).

    Args:
        config: Rates, schedule, clipping, precision, sharding and seed. Default: `TrainingConfig`'s
            own defaults.
        total_steps: Optimiser steps of the run, which the learning rate's schedule ends with.
        optimiser: Made by `build_optimiser`, or any whose groups have their peak learning rate
            under `peak_lr`, and under `starts_at` the step before which they stay as they are.
            Default: the one that `config` describes.
        new_parameters: Names of parameters that start from nothing; only for the default optimiser.
    """

    def __init__(
        self,
        task: Task[Any, Any],
        config: BaseTrainingConfig | None = None,
        *,
        total_steps: int,
        optimiser: torch.optim.Optimizer | None = None,
        new_parameters: Collection[str] = (),
    ) -> None:
        self.task, self.total_steps = task, total_steps
        self.config: BaseTrainingConfig = config or TrainingConfig()
        self.optimiser = optimiser or build_optimiser(task.model, self.config, new_parameters)
        for group in self.optimiser.param_groups:
            group.setdefault(STARTS_AT, 0)
        self.processes = join_processes()
        self.device: torch.device = PartialState().device
        self.half = take_precision(self.config, task.model) == "bf16"
        spread(task, self.optimiser, self.config.sharding, self.device)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Parameters that are trained."""
        return [p for group in self.optimiser.param_groups for p in group["params"]]

    @property
    def starts(self) -> set[int]:
        """Steps after the first at which groups of parameters begin to be trained."""
        return {int(group[STARTS_AT]) for group in self.optimiser.param_groups} - {0}

    def prepare(self, number: int, batches: Sequence[Any], *, epoch: int = 0) -> list[Prepared]:
        """Take the random decisions of a step, from 0; may run in another thread than `step`."""
        return prepare_all(self.task, batches, epoch=epoch, progress=number / self.total_steps)

    def step(
        self, number: int, prepared: Sequence[Prepared], *, flags: Sequence[float] = ()
    ) -> dict[str, torch.Tensor]:
        """Take one optimiser step; a step whose gradient is not finite changes nothing.

        Args:
            number: The step, from 0: learning rate and dropout follow from it.
            prepared: This process's micro-batches.
            flags: More numbers to sum over the processes in the message that sums the counts; the
                sums are in `flags` afterwards. As many on every process.

        Returns:
            Scalars on the device, detached: the total as `loss`, each term, and the norm of the
            gradient before it is clipped as `grad_norm`. With several processes, `loss` and terms
            are shares of sums.
        """
        self.task.model.train()
        # Dropout follows from (seed, step, process) alone, so that resuming repeats it.
        torch.manual_seed(step_seed(self.config.seed, number, self.processes.rank))
        set_learning_rate(self.optimiser, lambda start: self._rate_factor(number, start))
        self.task.before_step()
        names = sorted(self.task.loss_weights)
        own = [float(sum(micro.counts.get(name, 0) for micro in prepared)) for name in names]
        # One message a step, through the CPU: a device is not waited for.
        total = self.processes.sum([*own, *flags])
        self.flags, counts = total[len(names) :], dict(zip(names, total, strict=False))
        losses: dict[str, torch.Tensor] = {}
        with exact_sums(self.device), self._holding_back(number):
            for index, micro in enumerate(prepared):
                with last_backward(self.task.model, last=index + 1 == len(prepared)):
                    terms = self._micro_step(micro, counts)
                for name, term in terms.items():
                    losses[name] = losses.get(name, torch.zeros_like(term)) + term
        # Those that are held back have no gradients any more, which the norm would count.
        with exact_sums(self.device):
            limit = self.config.clip_norm or float("inf")
            losses["grad_norm"] = clip_gradients(self.parameters, limit)
            update_if_finite(self.optimiser, self.parameters, losses["grad_norm"])
        return losses

    @contextlib.contextmanager
    def _holding_back(self, number: int) -> Iterator[None]:
        """Give no gradients to the parameters of groups that start at a later step."""
        groups = [group for group in self.optimiser.param_groups if number < group[STARTS_AT]]
        waiting: list[nn.Parameter] = [p for group in groups for p in group["params"]]
        # Without gradients the backward pass ends early. DDP and FSDP have counted the parameters
        # that get some when they wrapped the model, so there gradients are computed and dropped.
        frozen = waiting if self.processes.world_size == 1 else []
        for parameter in frozen:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in frozen:
                parameter.requires_grad_(True)
            for parameter in waiting:
                parameter.grad = None

    def _rate_factor(self, number: int, start: int) -> float:
        """Return the factor of a group that starts at a step, which its warm-up is counted from."""
        return learning_rate_factor(max(number - start, 0), self.total_steps - start, self.config)

    def _micro_step(self, prepared: Prepared, counts: Mapping[str, float]) -> dict[str, Any]:
        """Add the gradients of one micro-batch; returns its share of the loss and its terms."""
        try:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
                sums = loss_sums_of(self.task, prepared.to(self.device))
        except RuntimeError as error:
            raise explain_unused(error, self.task.model) from error
        terms = {name: value / max(counts[name], 1) for name, value in sums.items()}
        weighted = (self.task.loss_weights[name] * term for name, term in terms.items())
        total = sum(weighted, start=torch.zeros((), device=self.device))
        # The processes' gradients are averaged; ours are shares of a sum.
        (poison_if_not_finite(total) * self.processes.world_size).backward()
        return {"loss": total.detach(), **{name: term.detach() for name, term in terms.items()}}


def step_seed(*numbers: int) -> int:
    """Mix several numbers into a 63-bit seed."""
    mixed = 0
    for number in numbers:
        # The constants of SplitMix64, so that neighbouring steps get seeds that are unlike.
        mixed = (mixed ^ number) * 0x9E3779B97F4A7C15 + 0x7F4A7C15
        mixed = (mixed ^ (mixed >> 31)) & ((1 << 63) - 1)
    return mixed


def poison_if_not_finite(loss: torch.Tensor) -> torch.Tensor:
    """Return a loss whose gradients are all NaN if it is not finite; else the loss, to the bit."""
    # So the gradient's norm, which all processes know, tells if the step is sound.
    nan = torch.full_like(loss, float("nan")).detach()
    return loss * torch.where(torch.isfinite(loss.detach()), torch.ones_like(nan), nan)


def update_if_finite(
    optimiser: torch.optim.Optimizer, parameters: Iterable[nn.Parameter], norm: torch.Tensor
) -> None:
    """Update the parameters, unless the gradient's norm is not finite; gradients are cleared."""
    # Fused AdamW decides on the device, so that nothing waits for the norm; for others it is read.
    adamw: Any = optimiser
    sharded = any(isinstance(parameter, DTensor) for parameter in parameters)
    fused = all(group.get("fused") for group in optimiser.param_groups)
    if type(optimiser) is torch.optim.AdamW and fused and not sharded:
        adamw.grad_scale, adamw.found_inf = None, (~torch.isfinite(norm)).float()
        optimiser.step()
        del adamw.grad_scale, adamw.found_inf
    elif torch.isfinite(norm):
        optimiser.step()
    optimiser.zero_grad(set_to_none=True)


class BadSteps:
    """Counts how many of the last steps in a row were skipped; `limit` of them are too many."""

    def __init__(self, limit: int, in_a_row: int = 0) -> None:
        self.limit = limit
        self._in_a_row: torch.Tensor | float = float(in_a_row)

    def add(self, norm: torch.Tensor) -> None:
        """Add a step, without waiting for its norm."""
        self._in_a_row = (self._in_a_row + 1.0) * (~torch.isfinite(norm)).float()

    @property
    def in_a_row(self) -> int:
        """Return the count; waits for a GPU."""
        return int(self._in_a_row)

    @property
    def too_many(self) -> bool:
        """Return True if the limit is reached; waits for a GPU."""
        return self.in_a_row >= self.limit

    @property
    def free_to_ask(self) -> bool:
        """Return True if asking does not wait for a device."""
        return not isinstance(self._in_a_row, torch.Tensor) or self._in_a_row.device.type == "cpu"


class Prefetch(Generic[ItemT]):
    """Iterates over `items` one ahead, in a thread.

    An exception of the thread is raised where the item would have come, with a note of where it
    came from. Use as a context manager, so that the thread ends with the loop. At most two items
    wait to be taken. `gives_up` is called about once a second while an item is waited for, and ends
    the iteration if it returns True.
    """

    def __init__(
        self, items: Iterator[ItemT], *, gives_up: Callable[[], bool] = lambda: False
    ) -> None:
        self._items, self._gives_up, self._left = items, gives_up, threading.Event()
        self._ready: queue.Queue[tuple[ItemT | None, BaseException | None]] = queue.Queue(2)
        self._thread = threading.Thread(target=self._fill, name="prefetch", daemon=True)

    def __enter__(self) -> Iterator[ItemT]:
        self._thread.start()
        return self._take()

    def __exit__(self, *exception: object) -> None:
        self._left.set()
        # A thread that still waits, as for a server that does not answer, is left behind.
        until = time.monotonic() + PATIENCE
        while self._thread.is_alive() and time.monotonic() < until:
            while not self._ready.empty():  # else it would wait for room
                self._ready.get_nowait()
            self._thread.join(0.1)

    def _fill(self) -> None:
        end: BaseException | None = None
        try:
            for item in self._items:
                self._ready.put((item, None))
                if self._left.is_set():
                    return
        except BaseException as error:
            error.add_note("raised in the thread that prepares the next steps")
            end = error
        self._ready.put((None, end))

    def _take(self) -> Iterator[ItemT]:
        while True:
            try:
                item, error = self._ready.get(timeout=1.0)
            except queue.Empty:
                if self._gives_up():
                    return
                continue
            if error is not None:
                raise error
            if item is None:
                return
            yield item
