"""The state of a run: copied to the CPU's memory for a checkpoint, and restored from one.

Tensors are whole here, however many processes share them, so that a run may go on with another
number of processes and with another way of spreading its model.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from maskery.core.errors import CheckpointError, explained, listed
from maskery.core.task import Task
from maskery.training.parallel import laid_out_like, unwrapped, whole

MODEL, OPTIMISER, EXTRA = "model.safetensors", "optimiser.safetensors", "extra.safetensors"
STATE = "state.json"
MOMENTS = ("exp_avg", "exp_avg_sq", "step", "momentum_buffer")
MOST_TOLD = 3  # Differences between two runs that a message lists
# Errors of loading a file whose checksum is right, but which something else than a run has written.
UNSOUND = (
    OSError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RuntimeError,
    SafetensorError,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Position:
    """The place of a run from which everything else about its next step follows."""

    step: int  # Optimiser steps done
    epoch: int = 0  # The epoch of the next step
    epoch_step: int = 0  # Steps done in that epoch
    identity: str  # Settings and data that a resumed run must share, as JSON
    window: tuple[Mapping[str, float], ...] = ()  # Each process's sums since the last line, by name
    bad_steps: int = 0  # How many of the last steps in a row were skipped for not being finite

    def to_json(self) -> str:
        """Return the text of `state.json`."""
        return json.dumps(asdict(self))

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read the position of a checkpoint."""
        values = json.loads((folder / STATE).read_text("utf-8"))
        return cls(**{**values, "window": tuple(values.get("window", ()))})


BEGINNING = Position(step=0, identity="")  # Of a run that no checkpoint goes before


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """The state of a run after a step, which no later step changes."""

    position: Position  # The step it was taken after
    files: Mapping[str, Mapping[str, Tensor]]  # By file name; empty but on the main process


class SnapshotMaker:
    """Takes snapshots into memory that it keeps: write the last before you take the next."""

    def __init__(self, *, keeps: bool = True) -> None:
        self.keeps = keeps  # False where only parts of shared tensors are given
        self._memory: dict[tuple[str, str], Tensor] = {}

    def take(self, task: Task[Any, Any], optimiser: Optimizer, position: Position) -> Snapshot:
        """Copy the state after `position`; every process must call this, to give its parts."""
        model = unwrapped(task.model)
        state = {
            MODEL: named_tensors(model),
            OPTIMISER: optimiser_tensors(model, optimiser),
            EXTRA: task.extra_state(),
        }
        files: dict[str, dict[str, Tensor]] = {name: {} for name in state if self.keeps}
        for file, tensors in state.items():
            for name, tensor in tensors.items():
                full = whole(tensor.detach())
                if self.keeps:
                    files[file][name] = self._copy((file, name), full)
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            torch.cuda.synchronize()
        return Snapshot(position=position, files=files)

    def _copy(self, key: tuple[str, str], tensor: Tensor) -> Tensor:
        kept = self._memory.get(key)
        if kept is None or kept.shape != tensor.shape or kept.dtype != tensor.dtype:
            # Pinned, so that copies from a GPU overlap.
            kept = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
            self._memory[key] = kept
        return kept.copy_(tensor, non_blocking=True)


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return parameters and persistent buffers by name, tied ones once.

    A module with `start_is_kept` has its frozen weights, and all its buffers, from where it starts.
    """
    persistent = model.state_dict().keys()
    tensors: dict[str, Tensor] = dict(model.named_parameters())
    tensors |= {name: b for name, b in model.named_buffers() if name in persistent}
    kept = (m for m in model.modules() if getattr(m, "start_is_kept", False))
    given = {id(t) for m in kept for t in (*m.parameters(), *m.buffers()) if not t.requires_grad}
    return {name: tensor.detach() for name, tensor in tensors.items() if id(tensor) not in given}


def optimiser_tensors(model: nn.Module, optimiser: Optimizer) -> dict[str, Tensor]:
    """Return the optimiser's moments as `moment.parameter name`."""
    states = [(name, optimiser.state.get(p, {})) for name, p in model.named_parameters()]
    return {f"{m}.{name}": state[m] for name, state in states for m in MOMENTS if m in state}


def restore(path: Path, task: Task[Any, Any], optimiser: Optimizer, identity: str) -> Position:
    """Load a checkpoint of the same run into a task and its optimiser."""
    problem = f"the checkpoint '{path}' cannot be loaded"
    fix = "remove it to go on from the one before it"
    with explained(problem, fix, *UNSOUND, kind=CheckpointError):
        position = Position.read(path)
        require_same_run(path, position.identity, identity)
        _restore_task(path, task)
        moments = load_file(path / OPTIMISER)
        for name, parameter in unwrapped(task.model).named_parameters():
            own = {m: moments[f"{m}.{name}"] for m in MOMENTS if f"{m}.{name}" in moments}
            if own and parameter.requires_grad:  # a branch may freeze more than its origin
                # The count of steps is a scalar, which is never sharded.
                optimiser.state[parameter] = {
                    m: t.to(parameter.device) if m == "step" else laid_out_like(t, parameter)
                    for m, t in own.items()
                }
        return position


def restore_task(path: Path, task: Task[Any, Any]) -> int:
    """Load the weights of a checkpoint into a task, to use it; returns the checkpoint's step."""
    problem = f"the checkpoint '{path}' cannot be loaded"
    fix = "restore it, or remove it to do with another"
    with explained(problem, fix, *UNSOUND, kind=CheckpointError):
        _restore_task(path, task)
        return Position.read(path).step


def _restore_task(path: Path, task: Task[Any, Any]) -> None:
    own, saved = named_tensors(unwrapped(task.model)), load_file(path / MODEL)
    if own.keys() != saved.keys() or any(own[n].shape != saved[n].shape for n in own):
        fix = "resume with the model it was made from"
        raise CheckpointError(f"the checkpoint '{path}' is of another model; {fix}")
    for name, tensor in own.items():
        tensor.copy_(laid_out_like(saved[name], tensor))
    # What is whole here stays where it is: the task moves it.
    extra, here = load_file(path / EXTRA), task.extra_state()
    sharded = {
        n: laid_out_like(t, o) for n, t in extra.items() if isinstance(o := here.get(n), DTensor)
    }
    task.load_extra_state(extra | sharded)


def stored_identity(path: Path) -> str | None:
    """Return the identity of the run that a checkpoint belongs to; None if it cannot be read."""
    try:
        return str(Position.read(path).identity)
    except UNSOUND:
        return None


def require_same_run(checkpoint: Path, stored: str, own: str) -> None:
    """Refuse to go on from the checkpoint of a run whose identity differs; name the settings."""
    if stored == own:
        return
    found = differences(stored, own)
    told = f": {listed(found, MOST_TOLD)}" if found else ""
    other = f"a run with another model, corpus or setting{told}"
    again = "repeat that run's settings, as its config.yaml has them"
    fix = f"{again}, or start afresh with another --output"
    raise CheckpointError(f"the checkpoint '{checkpoint}' belongs to {other}; {fix}")


def differences(stored: str, own: str) -> list[str]:
    """Return a phrase for each setting that differs; nothing if an identity is no JSON object."""
    try:
        there, here = dict(flat(json.loads(stored))), dict(flat(json.loads(own)))
    except (ValueError, AttributeError, RecursionError):
        return []

    def shown(value: Any) -> str:
        return "not set" if value is None else repr(value)

    return [
        f"{path[-1]} is {shown(here.get(path))} here and {shown(there.get(path))} in the run"
        for path in sorted(there.keys() | here.keys())
        if there.get(path) != here.get(path)
    ]


def flat(
    values: Mapping[str, Any], parents: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield every setting, also of settings within settings, by the names that lead to it."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from flat(value, (*parents, name))
        else:
            yield (*parents, name), value
