"""The contract between training and what is trained.

A task is the unit of change: it wires a model, a masking policy and objectives. The loop in
`training/` knows nothing else. A step runs so:

    prepared = task.prepare(batch, epoch=..., progress=...)  # random decisions; in a thread
    task.before_step()                                       # once per optimiser step
    sums = task.loss_sums(prepared)                          # once per micro-batch
    loss = sum(task.loss_weights[n] * sums[n] / counts[n])   # counts: whole step, all processes

so gradients do not depend on how a step is cut into micro-batches and processes.
"""

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, Self, TypeVar, runtime_checkable

import torch
from torch import nn

from maskery.core.errors import PluginError

EXTRA_STATE = "extra_state.safetensors"  # In a model folder, what `Task.extra_state` returned

BatchT_contra = TypeVar("BatchT_contra", contravariant=True)
BatchT_co = TypeVar("BatchT_co", covariant=True)
BatchT = TypeVar("BatchT")
DataclassT = TypeVar("DataclassT")
PreparedT = TypeVar("PreparedT", bound="Prepared")


@runtime_checkable
class Prepared(Protocol):
    """A batch whose random decisions are taken: masks, negatives, samples."""

    @property
    def counts(self) -> Mapping[str, int]:
        """Return how many things each loss term sums over, by name; other names are logged."""

    @property
    def num_tokens(self) -> int:
        """Return the number of tokens in the batch that are not padding, for the speed."""

    def to(self, device: torch.device) -> Self:
        """Return a copy with its tensors on `device`."""


@dataclass(frozen=True)
class StandIn(Generic[BatchT]):
    """A batch that counts for nothing: a process computes it when a step is too small for all."""

    batch: BatchT  # Every process must take part in every forward and backward pass


@dataclass(frozen=True)
class Uncounted:
    """Wraps a prepared stand-in, so that all its counts are 0."""

    prepared: Prepared
    num_tokens: int = field(default=0, init=False)

    @property
    def counts(self) -> Mapping[str, int]:
        """Return 0 for every name that the other processes count."""
        return dict.fromkeys(self.prepared.counts, 0)

    def to(self, device: torch.device) -> "Uncounted":
        """Return a copy with its tensors on `device`."""
        return Uncounted(self.prepared.to(device))


class BatchSource(Protocol[BatchT_co]):
    """Gives the batches of a run, as a pure function of the epoch and the step."""

    def num_steps(self, epoch: int) -> int:
        """Return the number of optimiser steps of an epoch."""

    def micro_batches(
        self, epoch: int, step: int, *, rank: int, world_size: int
    ) -> Sequence[BatchT_co | StandIn[Any]]:
        """Return one process's share of a step; every process gets equally many batches."""


class Task(Protocol[BatchT_contra, PreparedT]):
    """Wires a model, a masking policy and objectives; implement it for a method of your own."""

    model: nn.Module  # What is trained; the stepper may replace it by a wrapped one (DDP)
    loss_weights: Mapping[str, float]  # The weight of each loss term in the total, by its name

    def prepare(self, batch: BatchT_contra, *, epoch: int, progress: float) -> PreparedT:
        """Take the step's random decisions about examples that are not masked yet.

        `epoch` counts from 0; `progress` is the share of the run that is done, in [0, 1).
        """

    def loss_sums(self, prepared: PreparedT) -> Mapping[str, torch.Tensor]:
        """Return each loss term as a sum over its `counts`: scalar tensors with gradients."""

    def before_step(self) -> None:
        """Do what is due once per optimiser step, before its micro-batches (momentum updates)."""

    def extra_state(self) -> Mapping[str, torch.Tensor]:
        """Return tensors beyond the model that a checkpoint must hold (momentum twin, queues)."""

    def load_extra_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Restore what `extra_state` returned."""


def prepare_all(
    task: Task[Any, Any], batches: Sequence[Any], *, epoch: int, progress: float
) -> list[Prepared]:
    """Prepare the micro-batches of a step, stand-ins too; what is no `Prepared` is refused."""
    prepared: list[Prepared] = []
    for batch in batches:
        stands_in = isinstance(batch, StandIn)
        one = task.prepare(batch.batch if stands_in else batch, epoch=epoch, progress=progress)
        if not isinstance(one, Prepared):
            problem = f"prepare returned {type(one).__name__}; it must be a Prepared"
            parts = "(maskery.core.task), with counts, num_tokens and to(device)"
            raise PluginError(f"{name_of(task)}: {problem} {parts}")
        prepared.append(Uncounted(one) if stands_in else one)
    return prepared


def loss_sums_of(task: Task[Any, Any], prepared: Prepared) -> Mapping[str, torch.Tensor]:
    """Return the loss terms of a micro-batch; those of a stand-in are 0, with gradients of 0."""
    inner = prepared.prepared if isinstance(prepared, Uncounted) else prepared
    sums = task.loss_sums(inner)
    named: dict[str, torch.Tensor] = dict(sums) if isinstance(sums, Mapping) else {}
    for name, value in named.items():
        places = {"loss_weights": task.loss_weights, "counts": inner.counts}
        missing = [place for place, names in places.items() if name not in names]
        if missing or not isinstance(value, torch.Tensor) or value.numel() != 1:
            shape = tuple(getattr(value, "shape", ()))
            found = f"is not in {missing[0]}" if missing else f"has shape {shape}"
            problem = f"{name_of(task)}: the loss term '{name}' {found}"
            rule = "each named in the task's loss_weights and in the batch's counts"
            raise PluginError(f"{problem}; loss_sums must return scalar tensors, {rule}")
    if torch.is_grad_enabled() and not any(value.requires_grad for value in named.values()):
        problem = f"loss_sums returned nothing with a gradient (a {type(sums).__name__})"
        rule = "it must return scalar tensors by name, computed by the model"
        raise PluginError(f"{name_of(task)}: {problem}; {rule}")
    return named if inner is prepared else {name: 0.0 * value for name, value in named.items()}


def name_of(task: Task[Any, Any]) -> str:
    """Return a task's class with the file that defines it, for messages."""
    kind = type(task)
    file = getattr(sys.modules.get(kind.__module__), "__file__", None)
    return f"{Path(file).name}:{kind.__qualname__}" if file else kind.__qualname__


def part_of(state: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """Return the entries of an `extra_state` whose name starts with `prefix`, without it."""
    return {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}


def moved(prepared: DataclassT, device: torch.device) -> DataclassT:
    """Return a frozen dataclass with its tensors, nested ones too, on `device`."""
    changes: dict[str, object] = {}
    for entry in dataclasses.fields(prepared):  # type: ignore[arg-type]
        value = getattr(prepared, entry.name)
        if isinstance(value, torch.Tensor):
            changes[entry.name] = value.to(device, non_blocking=True)
        elif dataclasses.is_dataclass(value):
            own = getattr(value, "to", None)  # it may hold tensors in other places, too
            changes[entry.name] = moved(value, device) if own is None else own(device)
    return dataclasses.replace(prepared, **changes)  # type: ignore[type-var]
