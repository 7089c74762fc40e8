"""Checkpoints: written aside, flushed, checksummed and renamed into place; no pickle.

`checkpoints/step-00000500/` holds `model.safetensors`, `optimiser.safetensors`,
`extra.safetensors`, `state.json` and a `manifest.json` with the sha256 of each. A folder whose
files differ from its manifest is skipped, with a warning, for the one before it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from maskery.core.errors import CheckpointError
from maskery.core.processes import join_processes
from maskery.core.task import Task
from maskery.training.parallel import all_laid_out_like, laid_out_like, unwrapped, whole

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
MODEL, OPTIMISER, EXTRA = "model.safetensors", "optimiser.safetensors", "extra.safetensors"
STATE = "state.json"
FILES = (MODEL, OPTIMISER, EXTRA, STATE)
MOMENTS = ("exp_avg", "exp_avg_sq", "step", "momentum_buffer")


@dataclass(frozen=True, kw_only=True)
class Position:
    """Where a run stands: everything else about its next step follows from it.

    Attributes:
        step: Optimiser steps done.
        epoch: The epoch of the next step.
        epoch_step: Steps done in that epoch.
        identity: A hash of what must not change between a run and its continuation.
    """

    step: int
    epoch: int
    epoch_step: int
    identity: str


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


class Checkpoints:
    """The checkpoints of one run folder.

    Args:
        folder: `checkpoints/` of the run.
        keep: How many of the newest stay.
    """

    def __init__(self, folder: Path, *, keep: int = 2) -> None:
        self.folder = folder
        self.keep = keep

    def save(
        self, task: Task[Any, Any], optimiser: torch.optim.Optimizer, position: Position
    ) -> Path:
        """Write a checkpoint; what was there stays until it is complete.

        Raises:
            CheckpointError: It could not be written (disk full, no permission).
        """
        final = self.folder / f"step-{position.step:08d}"
        partial = final.with_name(f"{final.name}.partial")
        model = unwrapped(task.model)
        # Every process takes part, where each holds a part of the tensors.
        tensors = {
            MODEL: on_cpu(named_tensors(model)),
            OPTIMISER: on_cpu(optimiser_tensors(model, optimiser)),
            EXTRA: on_cpu(task.extra_state()),
        }
        if not join_processes().is_main:
            return final
        try:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            for name, content in tensors.items():
                save_file(content, partial / name)
            (partial / STATE).write_text(json.dumps(asdict(position)), "utf-8")
            _seal(partial)
            shutil.rmtree(final, ignore_errors=True)
            partial.rename(final)
            _flush(self.folder)
        except (OSError, RuntimeError, SafetensorError) as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise CheckpointError(
                f"the checkpoint '{final}' could not be written ({error}); free some space there "
                f"and continue with --resume auto"
            ) from error
        for old in self.complete()[: -self.keep]:
            shutil.rmtree(old, ignore_errors=True)
        return final

    def complete(self) -> list[Path]:
        """The finished checkpoints, oldest first; their content is not looked at."""
        found = self.folder.glob("step-*")
        return sorted(p for p in found if p.suffix == "" and (p / MANIFEST).is_file())

    def newest_sound(self) -> Path | None:
        """The newest checkpoint whose checksums hold; damaged ones are warned about."""
        for path in reversed(self.complete()):
            damage = find_damage(path)
            if damage is None:
                return path
            log.warning(
                "the checkpoint '%s' is damaged (%s); using the one before it", path, damage
            )
        return None


def restore(
    path: Path, task: Task[Any, Any], optimiser: torch.optim.Optimizer, identity: str
) -> Position:
    """Load a checkpoint into a task and its optimiser.

    Raises:
        CheckpointError: It belongs to another run or another model.
    """
    position = Position(**json.loads((path / STATE).read_text("utf-8")))
    if position.identity != identity:
        raise CheckpointError(
            f"the checkpoint '{path}' belongs to a run with another model, corpus or setting; "
            f"repeat that run's settings, or start afresh with another --output"
        )
    model = unwrapped(task.model)
    _copy_into(named_tensors(model), load_file(path / MODEL), path)
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
    task.load_extra_state(all_laid_out_like(load_file(path / EXTRA), task.extra_state()))
    return position


def find_damage(path: Path) -> str | None:
    """What is wrong with a checkpoint, or None."""
    try:
        manifest: dict[str, str] = json.loads((path / MANIFEST).read_text("utf-8"))
        for name in FILES:
            if _sha256(path / name) != manifest[name]:
                return f"{name} does not match its checksum"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return str(error)
    return None


def on_cpu(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The whole tensors, in the CPU's memory."""
    return {name: whole(tensor.detach()).cpu().contiguous() for name, tensor in tensors.items()}


def _seal(folder: Path) -> None:
    """Flush every file to disk and write the manifest last."""
    manifest = {}
    for file in sorted(folder.iterdir()):
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
        manifest[file.name] = _sha256(file)
    with (folder / MANIFEST).open("w", encoding="utf-8") as out:
        json.dump(manifest, out)
        out.flush()
        os.fsync(out.fileno())
    _flush(folder)


def _flush(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _copy_into(
    own: Mapping[str, torch.Tensor], saved: Mapping[str, torch.Tensor], path: Path
) -> None:
    if own.keys() != saved.keys() or any(own[n].shape != saved[n].shape for n in own):
        raise CheckpointError(
            f"the checkpoint '{path}' is of another model; resume with the model it was made from"
        )
    for name, tensor in own.items():
        tensor.copy_(laid_out_like(saved[name], tensor))
