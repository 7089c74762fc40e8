"""The contract between training and what is trained.

A task is the unit of change: it wires a model, a masking policy and objectives. The loop in
`training/` knows nothing else. A step runs so:

    prepared = task.prepare(batch, epoch=..., progress=...)  # random decisions; in a thread
    task.before_step()                                       # once per optimiser step
    sums = task.loss_sums(prepared)                          # once per micro-batch
    loss = sum(task.loss_weights[n] * sums[n] / counts[n])   # counts: whole step, all processes

so gradients do not depend on how a step is cut into micro-batches and processes.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, Self, TypeVar, runtime_checkable

import torch
from torch import nn

from maskery.core.errors import PluginError

# In a model folder, beside the model: what `Task.extra_state` gave.
EXTRA_STATE = "extra_state.safetensors"

BatchT_contra = TypeVar("BatchT_contra", contravariant=True)
BatchT_co = TypeVar("BatchT_co", covariant=True)
BatchT = TypeVar("BatchT")
DataclassT = TypeVar("DataclassT")
PreparedT = TypeVar("PreparedT", bound="Prepared")


@runtime_checkable
class Prepared(Protocol):
    """A batch with every random decision of its step taken."""

    @property
    def counts(self) -> Mapping[str, int]:
        """By loss term, how many things its sum runs over (masked tokens, pairs).

        Names that are no loss terms are counted and logged.
        """

    @property
    def num_tokens(self) -> int:
        """Real tokens in the batch, for the speed shown."""

    def to(self, device: torch.device) -> Self:
        """The same with its tensors on `device`."""


@dataclass(frozen=True)
class StandIn(Generic[BatchT]):
    """A batch for a process that a small step leaves without one: computed, counted for nothing.

    Every process must take part in every forward and backward pass.
    """

    batch: BatchT


@dataclass(frozen=True)
class Uncounted:
    """A prepared stand-in."""

    prepared: Prepared

    @property
    def counts(self) -> Mapping[str, int]:
        """Nothing, by the same names as the other processes'."""
        return dict.fromkeys(self.prepared.counts, 0)

    @property
    def num_tokens(self) -> int:
        """None."""
        return 0

    def to(self, device: torch.device) -> Uncounted:
        """The same with its tensors on `device`."""
        return Uncounted(self.prepared.to(device))


class BatchSource(Protocol[BatchT_co]):
    """Where a run's batches come from: a pure function of the epoch and the step."""

    def num_steps(self, epoch: int) -> int:
        """How many optimiser steps an epoch has."""

    def micro_batches(
        self, epoch: int, step: int, *, rank: int, world_size: int
    ) -> Sequence[BatchT_co | StandIn[Any]]:
        """One process's share of a step; every process gets equally many."""


class Task(Protocol[BatchT_contra, PreparedT]):
    """What the training loop asks of a task.

    Attributes:
        model: The module that is trained; the loop may replace it by a wrapped one (DDP).
        loss_weights: By loss term, its weight in the total.
    """

    model: nn.Module
    loss_weights: Mapping[str, float]

    def prepare(self, batch: BatchT_contra, *, epoch: int, progress: float) -> PreparedT:
        """Take the step's random decisions.

        Args:
            batch: Examples, not masked yet.
            epoch: From 0.
            progress: The share of the run that is done, in [0, 1), for schedules.
        """

    def loss_sums(self, prepared: PreparedT) -> Mapping[str, torch.Tensor]:
        """Each loss term as a sum over its `counts`, scalar tensors with gradients."""

    def before_step(self) -> None:
        """Called once per optimiser step, before its first micro-batch (momentum updates)."""

    def extra_state(self) -> Mapping[str, torch.Tensor]:
        """Tensors beyond the model that a checkpoint must hold (momentum twin, queues)."""

    def load_extra_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Restore what `extra_state` gave."""


def prepare_all(
    task: Task[Any, Any], batches: Sequence[Any], *, epoch: int, progress: float
) -> list[Prepared]:
    """Prepare the micro-batches of a step, stand-ins too.

    Raises:
        PluginError: The task returns something that is no `Prepared`.
    """
    prepared: list[Prepared] = []
    for batch in batches:
        stands_in = isinstance(batch, StandIn)
        one = task.prepare(batch.batch if stands_in else batch, epoch=epoch, progress=progress)
        if not isinstance(one, Prepared):
            raise PluginError(
                f"{name_of(task)}: prepare returned {type(one).__name__}; it must be a Prepared "
                f"(maskery.core.task), with counts, num_tokens and to(device)"
            )
        prepared.append(Uncounted(one) if stands_in else one)
    return prepared


def loss_sums_of(task: Task[Any, Any], prepared: Prepared) -> Mapping[str, torch.Tensor]:
    """Return the loss terms of a micro-batch; those of a stand-in are 0, with gradients of 0.

    Raises:
        PluginError: They are no scalar tensors, or lack a weight or a count.
    """
    inner = prepared.prepared if isinstance(prepared, Uncounted) else prepared
    sums = task.loss_sums(inner)
    for name, value in sums.items():
        missing = [
            where
            for where, names in (("loss_weights", task.loss_weights), ("counts", inner.counts))
            if name not in names
        ]
        if missing or not isinstance(value, torch.Tensor) or value.numel() != 1:
            shape = tuple(getattr(value, "shape", ()))
            found = f"is not in {missing[0]}" if missing else f"has shape {shape}"
            raise PluginError(
                f"{name_of(task)}: the loss term '{name}' {found}; loss_sums must return scalar "
                f"tensors, each named in the task's loss_weights and in the batch's counts"
            )
    if inner is prepared:
        return sums
    return {name: 0.0 * value for name, value in sums.items()}


def name_of(task: Task[Any, Any]) -> str:
    """Return a task's class with the file that defines it, for messages."""
    kind = type(task)
    file = getattr(sys.modules.get(kind.__module__), "__file__", None)
    return f"{Path(file).name}:{kind.__qualname__}" if file else kind.__qualname__


def part_of(state: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """The entries of an `extra_state` whose name starts with `prefix`, without it."""
    return {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}


def moved(prepared: DataclassT, device: torch.device) -> DataclassT:
    """Return a frozen dataclass with its tensors, nested ones too, on `device`."""
    changes: dict[str, object] = {}
    for entry in dataclasses.fields(prepared):  # type: ignore[arg-type]
        value = getattr(prepared, entry.name)
        if isinstance(value, torch.Tensor):
            changes[entry.name] = value.to(device, non_blocking=True)
        elif dataclasses.is_dataclass(value):
            changes[entry.name] = moved(value, device)
    return dataclasses.replace(prepared, **changes)  # type: ignore[type-var]
