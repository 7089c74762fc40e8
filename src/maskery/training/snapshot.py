"""What a checkpoint holds: the state of a run, copied to the CPU's memory, and put back from it.

Tensors are whole here, however many processes share them, so that a run may go on with another
number of processes and with another way of spreading its model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from maskery.core.errors import CheckpointError, reason_of
from maskery.core.task import Task
from maskery.training.identity import require_same_run
from maskery.training.parallel import all_laid_out_like, laid_out_like, unwrapped, whole

MODEL, OPTIMISER, EXTRA = "model.safetensors", "optimiser.safetensors", "extra.safetensors"
STATE = "state.json"
MOMENTS = ("exp_avg", "exp_avg_sq", "step", "momentum_buffer")
# What loading raises where the checksums are right and something else wrote the file.
UNSOUND = (
    OSError,
    ArithmeticError,
    AttributeError,
    LookupError,
    TypeError,
    ValueError,
    RuntimeError,
    SafetensorError,
)


@dataclass(frozen=True, kw_only=True)
class Position:
    """Where a run stands: everything else about its next step follows from it.

    Attributes:
        step: Optimiser steps done.
        epoch: The epoch of the next step.
        epoch_step: Steps done in that epoch.
        identity: What must not change between a run and its continuation, as JSON.
        window: For each process, its sums since the last line of `metrics.jsonl`, by name.
        bad_steps: How many of the last steps in a row were skipped for not being finite.
    """

    step: int
    epoch: int
    epoch_step: int
    identity: str
    window: tuple[Mapping[str, float], ...] = ()
    bad_steps: int = 0

    def to_json(self) -> str:
        """As `state.json` holds it."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Position:
        """The reverse of `to_json`."""
        values = json.loads(text)
        return cls(**{**values, "window": tuple(values.get("window", ()))})


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """The state of a run after a step, which no later step changes.

    Attributes:
        position: Where the run stands.
        files: By file name, its tensors; on the main process only.
    """

    position: Position
    files: Mapping[str, Mapping[str, torch.Tensor]]

    @property
    def num_bytes(self) -> int:
        """What its tensors take on disk."""
        tensors = (tensor for content in self.files.values() for tensor in content.values())
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


class SnapshotMaker:
    """Takes snapshots; its memory is used again for the next, so one must be written before.

    On a GPU that memory is pinned, and the copies overlap.
    """

    def __init__(self) -> None:
        self._memory: dict[tuple[str, str], torch.Tensor] = {}

    def take(
        self,
        task: Task[Any, Any],
        optimiser: torch.optim.Optimizer,
        position: Position,
        *,
        keeps: bool = True,
    ) -> Snapshot:
        """Copy the state of a run.

        Where processes share tensors, every one of them must call this.

        Args:
            task: What is trained.
            optimiser: Of its model.
            position: Where the run stands.
            keeps: Whether this process keeps the copy; the others only give their parts.
        """
        model = unwrapped(task.model)
        state = {
            MODEL: named_tensors(model),
            OPTIMISER: optimiser_tensors(model, optimiser),
            EXTRA: task.extra_state(),
        }
        files: dict[str, dict[str, torch.Tensor]] = {name: {} for name in state} if keeps else {}
        for file, tensors in state.items():
            for name, tensor in tensors.items():
                full = whole(tensor.detach())
                if keeps:
                    files[file][name] = self._copy((file, name), full)
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            torch.cuda.synchronize()
        return Snapshot(position=position, files=files)

    def _copy(self, key: tuple[str, str], tensor: torch.Tensor) -> torch.Tensor:
        kept = self._memory.get(key)
        if kept is None or kept.shape != tensor.shape or kept.dtype != tensor.dtype:
            kept = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
            self._memory[key] = kept
        return kept.copy_(tensor, non_blocking=True)


def named_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and persistent buffers by name, tied ones once."""
    persistent = model.state_dict().keys()
    tensors: dict[str, torch.Tensor] = dict(model.named_parameters())
    tensors |= {name: b for name, b in model.named_buffers() if name in persistent}
    return {name: tensor.detach() for name, tensor in tensors.items()}


def optimiser_tensors(
    model: nn.Module, optimiser: torch.optim.Optimizer
) -> dict[str, torch.Tensor]:
    """The optimiser's moments as `moment.parameter name`."""
    return {
        f"{moment}.{name}": optimiser.state[parameter][moment]
        for name, parameter in model.named_parameters()
        if parameter in optimiser.state
        for moment in MOMENTS
        if moment in optimiser.state[parameter]
    }


def restore(
    path: Path, task: Task[Any, Any], optimiser: torch.optim.Optimizer, identity: str
) -> Position:
    """Load a checkpoint into a task and its optimiser.

    Raises:
        CheckpointError: It belongs to another run or another model, or is no checkpoint at all.
    """
    try:
        return _restore(path, task, optimiser, identity)
    except UNSOUND as error:
        raise CheckpointError(
            f"the checkpoint '{path}' cannot be loaded ({reason_of(error)}); remove it to go on "
            f"from the one before it"
        ) from error


def _restore(
    path: Path, task: Task[Any, Any], optimiser: torch.optim.Optimizer, identity: str
) -> Position:
    position = _position_in(path)
    require_same_run(path, position.identity, identity)
    _restore_task(path, task)
    model = unwrapped(task.model)
    moments = load_file(path / OPTIMISER)
    for name, parameter in model.named_parameters():
        kept = [moment for moment in MOMENTS if f"{moment}.{name}" in moments]
        if kept:
            optimiser.state[parameter] = {
                moment: moments[f"{moment}.{name}"].to(parameter.device)
                if moment == "step"
                else laid_out_like(moments[f"{moment}.{name}"], parameter)
                for moment in kept
            }
    return position


def restore_task(path: Path, task: Task[Any, Any]) -> int:
    """Load what a task is after a checkpoint's step, to use it and not to train on.

    Args:
        path: The checkpoint.
        task: Of the run that wrote it.

    Returns:
        The step.

    Raises:
        CheckpointError: It is of another model, or is no checkpoint at all.
    """
    try:
        _restore_task(path, task)
        return _position_in(path).step
    except UNSOUND as error:
        raise CheckpointError(
            f"the checkpoint '{path}' cannot be loaded ({reason_of(error)}); restore it, or remove "
            f"it to do with another"
        ) from error


def _restore_task(path: Path, task: Task[Any, Any]) -> None:
    _copy_into(named_tensors(unwrapped(task.model)), load_file(path / MODEL), path)
    task.load_extra_state(all_laid_out_like(load_file(path / EXTRA), task.extra_state()))


def stored_identity(path: Path) -> str | None:
    """The identity of the run that a checkpoint belongs to; None where it cannot be read."""
    try:
        return str(_position_in(path).identity)
    except UNSOUND:
        return None


def _position_in(path: Path) -> Position:
    return Position.from_json((path / STATE).read_text("utf-8"))


def _copy_into(
    own: Mapping[str, torch.Tensor], saved: Mapping[str, torch.Tensor], path: Path
) -> None:
    if own.keys() != saved.keys() or any(own[n].shape != saved[n].shape for n in own):
        raise CheckpointError(
            f"the checkpoint '{path}' is of another model; resume with the model it was made from"
        )
    for name, tensor in own.items():
        tensor.copy_(laid_out_like(saved[name], tensor))
