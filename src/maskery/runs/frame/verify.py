"""Recompute steps of a run, in a copy and from a kept checkpoint; certify what is the same."""

import json
import math
import re
import shutil
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import load_file

from maskery.core.errors import CheckpointError, ConfigError, StoppedError
from maskery.core.system import sha256_of
from maskery.runs.frame.config_file import KINDS, SAMPLES, environment, open_run, with_settings
from maskery.runs.frame.run_folder import LOCK
from maskery.runs.frame.run_frame import CHECKPOINTS
from maskery.training.checkpoint import Checkpoints, find_damage
from maskery.training.journal import EVENTS, SPEEDS, TRAIN, Tracker
from maskery.training.snapshot import EXTRA, MODEL, OPTIMISER, stored_identity

MACHINE = ("torch", "system", "device", "threads")  # where all are the same, every bit must be
# On another machine: the largest difference of a loss or weight, over its size if that is above 1.
OTHER_MACHINE = 1e-3
LEFT_OUT = (CHECKPOINTS, "model*", LOCK, "tensorboard", "report*", "*.png")
# Held-out figures take time and change no step; every checkpoint is to be compared.
CHANGED = {
    **{"resume": "auto", "eval_every": None, "patience": None, "keep_checkpoints": 1_000_000},
    **{"checkpoint_minutes": None, "tensorboard": False, "trackers": ()},
}


def verify(
    folder: Path, steps: str | None = None, *, tolerance: float | None = None, progress: bool = True
) -> dict[str, Any]:
    """Recompute steps, FIRST..LAST, and compare; returns the certificate, `verified` or not.

    Raises:
        ConfigError: No kept checkpoint comes before the steps, or none after them.
    """
    run, kept, here = open_run(folder), kept_checkpoints(folder), environment()
    start, first, last = chosen(steps, folder, list(kept))
    try:
        there = json.loads((folder / SAMPLES).read_text("utf-8"))["environment"]
        same = all(here[name] == there[name] for name in MACHINE)
    except (OSError, ValueError, LookupError, TypeError):  # the run has no report
        there = same = None
    allowed = tolerance if tolerance is not None else OTHER_MACHINE if same is False else 0.0
    used = {step: path for step, path in kept.items() if start <= step <= last}
    problems = [f"{path.name}: {found}" for path in used.values() if (found := find_damage(path))]
    results: dict[str, Any] = {}
    with TemporaryDirectory(prefix="maskery-verify-") as place:
        copy = Path(place) / folder.resolve().name
        try:
            if not problems:
                recompute(run.config, folder, copy, used[start], last, progress=progress)
                results["losses"] = compared(*(losses(one, start, last) for one in (folder, copy)))
                for step, path in kept_checkpoints(copy).items():
                    if step > start and step in used:
                        results[path.name] = compared(tensors(used[step]), tensors(path))
        except CheckpointError as error:  # settings or data are not those of the checkpoint
            problems.append(str(error).replace(str(copy), str(folder)).partition("; ")[0])
    problems += [
        f"{name}: {found['different']} of {found['values']} differ, {found['where']} the most"
        for name, found in results.items()
        if found["different"] and not 0.0 < found["largest_difference"] <= allowed
    ]
    settings = json.loads(stored_identity(used[start]) or "{}")
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
        "seed": settings.get("training", {}).get("seed"),
        "data": {name: value for name, value in settings.items() if "fingerprint" in name},
        "weights_sha256": {path.name: sha256_of(path / MODEL) for path in used.values()},
        "settings": settings,
    }


def chosen(steps: str | None, folder: Path, kept: list[int]) -> tuple[int, int, int]:
    """Return the step of the checkpoint to start from, and the first and the last step."""
    told = f"'{folder}' keeps checkpoints of {', '.join(map(str, kept)) or 'no step'}"
    if len(kept) < 2:
        problem = f"{told}, and steps are recomputed from one to the next"
        raise ConfigError(f"{problem}; train with a smaller --checkpoint-every")
    if steps is None:
        return kept[-2], kept[-2] + 1, kept[-1]
    # So many digits fit into 64 bits; Python takes long over very many.
    found = re.fullmatch(r"(\d{1,18})\.\.(\d{1,18})", steps)
    first, last = map(int, found.groups()) if found else (0, 0)
    if not 1 <= first <= last:
        raise ConfigError(f"{told}, and --steps is {steps}: give FIRST..LAST, such as 101..120")
    start = max((step for step in kept if step < first), default=None)
    if start is None or last > kept[-1]:
        raise ConfigError(f"{told}: --steps begin after one of them and end at the last or before")
    if not losses(folder, start, last) and not any(start < step <= last for step in kept):
        raise ConfigError(f"nothing was written in steps {first} to {last}; end --steps later")
    return start, first, last


def recompute(
    config: Any, folder: Path, copy: Path, start: Path, last: int, *, progress: bool
) -> None:
    """Go on with a copy of a run from a checkpoint to a step."""

    def stop(step: int, _: Any) -> None:
        if step >= last:
            raise StoppedError(f"step {step} is recomputed", exit_code=0)

    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns(*LEFT_OUT))
    shutil.copytree(start, copy / CHECKPOINTS / start.name)
    again = with_settings(config, {**CHANGED, "output": copy})
    callback = SimpleNamespace(**{**dict.fromkeys(EVENTS, lambda *_: None), "on_step": stop})
    try:
        KINDS[config.kind].load("train")(again, progress=progress, callbacks=[callback])
    except StoppedError as end:
        if end.exit_code:  # a signal's
            raise


def compared(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Return how many tensors differ by a bit, and the largest difference and where it is."""
    names = sorted(one.keys() | other.keys())
    apart = {name: _difference(one.get(name), other.get(name)) for name in names}
    differ = {name: value for name, value in apart.items() if value is not None}
    where, largest = max(differ.items(), key=lambda pair: pair[1], default=(None, 0.0))
    counts = {"values": len(names), "different": len(differ)}
    return {**counts, "largest_difference": largest, "where": where}


def _difference(one: torch.Tensor | None, other: torch.Tensor | None) -> float | None:
    """Return the largest difference over the size; None if every bit is the same."""
    if one is None or other is None or one.shape != other.shape or one.dtype != other.dtype:
        return math.inf
    if torch.equal(one.flatten().view(torch.uint8), other.flatten().view(torch.uint8)):
        return None
    apart = (one.double() - other.double()).abs() / one.double().abs().clamp(min=1.0)
    return float(apart.nan_to_num(nan=math.inf).max())


def losses(folder: Path, start: int, last: int) -> dict[str, torch.Tensor]:
    """Return what the lines of training after one step and until another say but of speed."""
    return {
        f"{name} of step {line['step']}": torch.tensor(line[name], dtype=torch.float64)
        for line in Tracker(folder).lines()
        if line["kind"] == TRAIN and start < line["step"] <= last
        for name in line.keys() - {"kind", "step", *SPEEDS}
    }


def kept_checkpoints(folder: Path) -> dict[int, Path]:
    """Return the complete checkpoints of a run by their step, in order."""
    found = Checkpoints(folder / CHECKPOINTS).complete()
    return {int(path.name.removeprefix("step-")): path for path in found}


def tensors(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Return the weights, moments and other state of a checkpoint by file and name."""
    files = {name: load_file(checkpoint / name) for name in (MODEL, OPTIMISER, EXTRA)}
    return {f"{file}: {name}": one for file, held in files.items() for name, one in held.items()}
