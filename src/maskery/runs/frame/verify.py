"""Recompute steps of a run from a kept checkpoint, and certify what came out the same.

The run is resumed in a folder of its own, and stopped after the last of the steps by a callback;
the run's own folder is only read.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import load_file

from maskery.core.errors import CheckpointError, ConfigError, StoppedError
from maskery.core.system import METRICS, read_metrics, sha256_of
from maskery.runs.frame.config_file import KINDS, SAMPLES, environment, open_run, with_settings
from maskery.runs.frame.run_folder import LOCK
from maskery.runs.frame.run_folder import MODEL as MODEL_FOLDER
from maskery.runs.frame.run_frame import CHECKPOINTS
from maskery.training.checkpoint import Checkpoints, find_damage
from maskery.training.journal import SPEEDS, TRAIN, Callback
from maskery.training.snapshot import EXTRA, MODEL, OPTIMISER, flat, stored_identity

# They decide the last digits: where all are the same, every bit must be.
MACHINE = ("torch", "system", "device", "threads")
# On another machine: the largest difference of a loss or weight, over its size if that is above 1.
OTHER_MACHINE = 1e-3
Values = Mapping[str, torch.Tensor]


class StopAfter(Callback):
    """Ends a run after a step; the loop then writes a checkpoint of it."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, step: int, figures: Mapping[str, torch.Tensor]) -> None:  # noqa: ARG002
        """End the run if this is the step."""
        if step >= self.step:
            raise StoppedError(f"step {step} is recomputed", exit_code=0)


def verify(
    folder: Path, steps: str | None = None, *, tolerance: float | None = None, progress: bool = True
) -> dict[str, Any]:
    """Recompute steps of a run and compare; returns the certificate, `verified` or not.

    Args:
        folder: The run folder; nothing is written there.
        steps: FIRST..LAST, counted from 1. Default: those between the two newest checkpoints.
        tolerance: Largest difference. Default: 0 on a machine like the run's, or where that is not
            known, else `OTHER_MACHINE`.
        progress: Draw progress bars.

    Raises:
        ConfigError: No kept checkpoint comes before the steps, or the run did not get so far.
    """
    run, kept = open_run(folder), kept_checkpoints(folder)
    start, first, last = chosen(steps, folder, kept)
    here, there = environment(), run_environment(folder)
    same = None if there is None else all(here[name] == there.get(name) for name in MACHINE)
    allowed = tolerance if tolerance is not None else OTHER_MACHINE if same is False else 0.0
    identity = json.loads(stored_identity(kept[start]) or "{}")
    used = {step: path for step, path in kept.items() if start <= step <= last}
    problems = [f"{path.name}: {found}" for path in used.values() if (found := find_damage(path))]
    results: dict[str, Any] = {}
    if not problems:
        with TemporaryDirectory(prefix="maskery-verify-") as place:
            copy = Path(place) / folder.resolve().name
            try:
                recompute(run.config, folder, copy, used[start], last, progress=progress)
                results = results_of(folder, copy, start, last)
            except CheckpointError as error:  # settings or data are not those of the checkpoint
                problems.append(str(error).replace(str(copy), str(folder)).partition("; ")[0])
    problems += [
        f"{name}: {found['different']} of {found['values']} differ, {found['where']} the most"
        for name, found in results.items()
        if found["different"] and not 0.0 < found["largest_difference"] <= allowed
    ]
    return {
        "verified": not problems,
        "problems": problems,
        "run": folder.resolve().name,
        "steps": [first, last],
        "recomputed_from": start,
        "compared": results,
        "tolerance": allowed,
        "same_machine": same,
        "environment": here,
        "run_environment": there,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "seed": identity.get("training", {}).get("seed"),
        "data": {path[-1]: one for path, one in flat(identity) if "fingerprint" in path[-1]},
        "weights_sha256": {path.name: sha256_of(path / MODEL) for path in used.values()},
        "settings": identity,
    }


def chosen(steps: str | None, folder: Path, kept: Mapping[int, Path]) -> tuple[int, int, int]:
    """Return the step of the checkpoint to start from, and the first and the last step."""
    names = ", ".join(map(str, kept)) or "no step"
    told = f"'{folder}' keeps checkpoints of {names}"
    if steps is None:
        if len(kept) < 2:
            raise ConfigError(f"{told}, and two are compared; name some --steps FIRST..LAST")
        before, last = sorted(kept)[-2:]
        return before, before + 1, last
    found = re.fullmatch(r"(\d{1,18})\.\.(\d{1,18})", steps)
    first, last = map(int, found.groups()) if found else (0, 0)
    if not 1 <= first <= last:
        raise ConfigError(f"--steps is '{steps}': it must be FIRST..LAST, such as 101..120")
    start = max((step for step in kept if step < first), default=None)
    if start is None:
        raise ConfigError(f"{told}, and none comes before step {first}; begin --steps after one")
    written = {*kept, *losses_of(folder)}
    if last > max(written):
        raise ConfigError(f"the run got to step {max(written)}; end --steps there or before")
    if not any(start < step <= last for step in written):
        after = min(step for step in written if step > last)
        raise ConfigError(
            f"nothing was written in steps {start + 1} to {last} that could be compared; end "
            f"--steps at {after} or later"
        )
    return start, first, last


def recompute(
    config: Any, folder: Path, copy: Path, start: Path, last: int, *, progress: bool
) -> None:
    """Go on with a copy of a run from a checkpoint to a step."""
    left_out = (CHECKPOINTS, f"{MODEL_FOLDER}*", LOCK, "tensorboard", "report*", "*.png")
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns(*left_out))
    (copy / CHECKPOINTS).mkdir()
    shutil.copytree(start, copy / CHECKPOINTS / start.name)
    changed = {
        "output": copy,
        "resume": "auto",
        # Held-out figures take time and change no step; every checkpoint is to be compared.
        "eval_every": None,
        "patience": None,
        "keep_checkpoints": 1_000_000,
        "checkpoint_minutes": None,
        "tensorboard": False,
        "trackers": (),
    }
    again = with_settings(config, changed)
    callbacks = [StopAfter(last)]  # type: ignore[abstract]
    try:
        KINDS[config.kind].load("train")(again, progress=progress, callbacks=callbacks)
    except StoppedError as end:
        if end.exit_code:  # a signal's
            raise


def results_of(folder: Path, copy: Path, start: int, last: int) -> dict[str, Any]:
    """Return what is equal of the losses, and of each checkpoint that both have, after a step."""
    losses, again = (
        {
            f"{name} of step {step}": torch.tensor(value, dtype=torch.float64)
            for step, line in losses_of(one).items()
            if start < step <= last
            for name, value in line.items()
        }
        for one in (folder, copy)
    )
    results = {"losses": compared(losses, again)} if losses else {}
    kept, made = kept_checkpoints(folder), kept_checkpoints(copy)
    for step in sorted(kept.keys() & made.keys()):
        if step > start:
            results[kept[step].name] = compared(tensors(kept[step]), tensors(made[step]))
    return results


def compared(one: Values, other: Values) -> dict[str, Any]:
    """Return how many tensors differ by a bit, and the largest difference and where it is."""
    found = {
        name: _difference(one.get(name), other.get(name)) for name in one.keys() | other.keys()
    }
    differing = {name: value for name, value in found.items() if value is not None}
    where = max(sorted(differing), key=lambda name: differing[name], default=None)
    return {
        "values": len(found),
        "different": len(differing),
        "largest_difference": 0.0 if where is None else differing[where],
        "where": where,
    }


def _difference(one: torch.Tensor | None, other: torch.Tensor | None) -> float | None:
    """Return the largest difference over the size; None if every bit is the same."""
    if one is None or other is None or one.shape != other.shape or one.dtype != other.dtype:
        return math.inf
    if torch.equal(one.flatten().view(torch.uint8), other.flatten().view(torch.uint8)):
        return None
    apart = (one.double() - other.double()).abs() / one.double().abs().clamp(min=1.0)
    return float(apart.nan_to_num(nan=math.inf).max())


def losses_of(folder: Path) -> dict[int, dict[str, float]]:
    """Return the lines of training by their step, without what depends on the time."""
    path = folder / METRICS
    lines = read_metrics(path) if path.is_file() else []
    left_out = {"kind", "step", *SPEEDS}
    return {
        line["step"]: {name: value for name, value in line.items() if name not in left_out}
        for line in lines
        if line["kind"] == TRAIN
    }


def kept_checkpoints(folder: Path) -> dict[int, Path]:
    """Return the complete checkpoints of a run by their step."""
    found = Checkpoints(folder / CHECKPOINTS).complete()
    return {int(path.name.removeprefix("step-")): path for path in found}


def tensors(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Return the weights, moments and other state of a checkpoint by file and name."""
    files = {name: load_file(checkpoint / name) for name in (MODEL, OPTIMISER, EXTRA)}
    return {f"{file}: {name}": one for file, held in files.items() for name, one in held.items()}


def run_environment(folder: Path) -> dict[str, str] | None:
    """Return versions and machine of a run, as its report has them; None if they are not known."""
    try:
        found: dict[str, str] = json.loads((folder / SAMPLES).read_text("utf-8"))["environment"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found
