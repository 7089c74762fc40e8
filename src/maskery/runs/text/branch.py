"""Begin a run at a checkpoint of another: `--from RUN@STEP`."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import safe_open

from maskery.core.errors import ConfigError
from maskery.core.system import replace_folder
from maskery.runs.frame.config_file import OpenRun, open_run
from maskery.runs.frame.run_folder import TOKENIZER
from maskery.runs.frame.run_frame import CHECKPOINTS
from maskery.runs.text.config import TextRunConfig
from maskery.training.checkpoint import Checkpoints, find_damage
from maskery.training.snapshot import OPTIMISER, Position, differences

log = logging.getLogger(__name__)

# What of a run's identity decides which text comes when, beside the seed and the tokens of a step.
DATA = (
    "corpus_fingerprint", "eval_data_fingerprint", "other_fingerprints", "held_out_share",
    "group_column", "shuffle_shards", "layout", "max_length",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Branch:
    """The checkpoint that a run begins at."""

    path: Path  # Of the other run, or this run's own copy
    first: Position  # Where this run begins, with its own identity

    def has_trained(self, new: Collection[str]) -> bool:
        """Return True if the other run has trained more than new parameters of the model."""
        with safe_open(self.path / OPTIMISER, "pt") as moments:
            return any(not name.endswith(tuple(new)) for name in moments.keys())  # noqa: SIM118


def origin(text: str) -> tuple[Path, int | None]:
    """Return the run folder and the step of RUN or RUN@STEP; None for the newest."""
    folder, _, step = text.rpartition("@")
    if not folder or Path(text).is_dir():
        return Path(text), None
    if not step.isdecimal():
        raise ConfigError(f"--from {text}: a step follows the @, as in {folder}@500")
    return Path(folder), int(step)


def open_origin(text: str) -> OpenRun:
    """Read the text run that RUN or RUN@STEP names."""
    run = open_run(origin(text)[0])
    if run.kind != TextRunConfig.kind:
        raise ConfigError(f"--from {text}: a run of kind {run.kind} has no text to go on with")
    return run


def resolved(config: TextRunConfig) -> TextRunConfig:
    """Return a copy whose `from_run` names an absolute folder and a step that is there."""
    assert config.from_run is not None
    folder, step = origin(config.from_run)
    if step is None or config.output is None or _own(config.output, step) is None:
        step = int(_checkpoint(folder, step).name.rpartition("-")[2])
    return replace(config, from_run=f"{folder.resolve()}@{step}")


def require_another_folder(config: TextRunConfig, folder: Path) -> None:
    """Refuse to train in the folder of the run that is branched from."""
    if origin(config.from_run or "")[0].resolve() == folder.resolve():
        raise ConfigError(
            f"--from {config.from_run}: a branch never changes the run that it begins at; name "
            f"another folder with --output"
        )


def kept_tokenizer(config: TextRunConfig) -> Path:
    """Return the folder of the other run's tokenizer, copied into this run's."""
    theirs = origin(config.from_run or "")[0] / TOKENIZER
    if config.output is None:
        return theirs
    own = config.output / TOKENIZER
    if theirs.is_dir() and not own.is_dir():
        replace_folder(Path(shutil.copytree(theirs, own.with_name(f"{TOKENIZER}.partial"))), own)
    return own


def branch_of(config: TextRunConfig, identity: str) -> Branch:
    """Return where a run begins: in the other's data if its own is read alike, else anew."""
    folder, step = origin(config.from_run or "")
    own = config.output and _own(config.output, step)
    if own is not None:
        return Branch(path=own, first=Position.read(own))
    path = _checkpoint(folder, step)
    there = Position.read(path)
    told = f"beginning at step {there.step:,} of '{folder}'"
    _require_fitting(there.identity, identity, f"--from {config.from_run}")
    found = differences(_order(there.identity), _order(identity))
    if found:
        log.info("%s; the data starts anew, for %s", told, found[0])
        return Branch(path=path, first=Position(step=there.step, identity=identity))
    log.info("%s", told)
    return Branch(path=path, first=replace(there, identity=identity))


def _require_fitting(theirs: str, own: str, where: str) -> None:
    there, here = (_settings(one) for one in (theirs, own))
    if there["tokenizer_fingerprint"] != here["tokenizer_fingerprint"]:
        raise ConfigError(f"{where}: that run has another tokenizer; repeat its --model")
    if "lora" in here and there.get("model_fingerprint") != here["model_fingerprint"]:
        raise ConfigError(
            f"{where}: that run has no adapters like these on this start; repeat its --model and "
            f"--lora, or begin at its model/ with --model"
        )
    kinds = [one["training"]["optimiser"] for one in (there, here)]
    if "muon" in kinds and kinds[0] != kinds[1]:
        raise ConfigError(
            f"{where}: that run has the moments of {kinds[0]}, and not of {kinds[1]}; give "
            f"--optimiser {kinds[0]}"
        )


def _settings(identity: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(identity)
    return found


def _order(identity: str) -> str:
    """Return the part of an identity that decides which text comes when."""
    settings = _settings(identity)
    training = {name: settings["training"][name] for name in ("seed", "batch_tokens")}
    return json.dumps({**{name: settings.get(name) for name in DATA}, **training})


def _own(folder: Path, step: int | None) -> Path | None:
    """Return this run's copy of the checkpoint that it began at, if there is a sound one."""
    path = Checkpoints(folder / CHECKPOINTS).path_of(step or 0)
    return path if path.is_dir() and find_damage(path) is None else None


def _checkpoint(folder: Path, step: int | None) -> Path:
    """Return a sound checkpoint of a run folder: of a step, or the newest."""
    open_origin(str(folder))
    checkpoints = Checkpoints(folder / CHECKPOINTS)
    kept = {int(path.name.rpartition("-")[2]): path for path in checkpoints.complete()}
    path = checkpoints.newest_sound() if step is None else kept.get(step)
    if path is None:
        has = f"steps {', '.join(map(str, kept))}" if kept else "none"
        raise ConfigError(
            f"'{folder}' has kept no {'sound ' if step is None else ''}checkpoint"
            f"{'' if step is None else f' of step {step}'}: it has {has}; --keep-at keeps more"
        )
    if (damage := find_damage(path)) is not None:
        raise ConfigError(f"the checkpoint '{path}' is damaged ({damage}); choose another step")
    return path
