"""Train a run once for every combination of some settings, one after the other.

Each run has a folder named after its settings. A second call keeps finished runs and goes on with
an interrupted one from its newest checkpoint.
"""

from __future__ import annotations

import itertools
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from maskery.core.errors import ConfigError
from maskery.models.loading import anchored
from maskery.runs.frame.config_file import from_plain, load_config, open_run, read_settings
from maskery.runs.frame.run_folder import EVALUATION, default_folder, has_model
from maskery.runs.text.compare import course_of
from maskery.runs.text.config import TextRunConfig
from maskery.runs.text.run import train_text

log = logging.getLogger(__name__)

# All runs must be measured on the same text, and lie where the sweep puts them.
NOT_SWEPT = ("corpus", "eval_data", "held_out_share", "output", "resume", "cache_dir", "engine")


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """One run of a sweep."""

    config: TextRunConfig  # With its folder as `output`; it resumes what is there
    finished: bool  # True if the folder holds the whole run


def plan_sweep(path: Path, over: Sequence[str], output: Path | None = None) -> list[PlannedRun]:
    """Return the runs of a sweep, the last setting changing fastest.

    Args:
        path: The `config.yaml` of a text run.
        over: Settings with their values: `learning_rate=1e-4,3e-4`.
        output: The folder of the runs' folders. Default: that of the configuration's run, with
            `-sweep` after its name.

    Raises:
        ConfigError: A setting or a value is wrong, or a folder holds a run with other settings.
    """
    base = load_config(path, TextRunConfig)
    folder = base.output or default_folder(base.corpus[0], base.model)
    folder = output or folder.with_name(f"{folder.name}-sweep")
    axes = [_axis(one, base) for one in over]
    names = [name for name, _, _ in axes]
    if not axes or len(set(names)) < len(names):
        raise ConfigError("--over names each setting once, as in --over mask_rate=0.15,0.3")
    runs = [
        _planned(path, [place for _, place, _ in axes], names, values, folder)
        for values in itertools.product(*(values for _, _, values in axes))
    ]
    if len({run.config.output for run in runs}) < len(runs):
        raise ConfigError("two values of --over give folders of one name; change one of them")
    return runs


def run_sweep(runs: Sequence[PlannedRun], *, progress: bool = True) -> list[Path]:
    """Train the runs of a sweep that are not finished; returns the folders of all."""
    folders = []
    for number, run in enumerate(runs, 1):
        folder = run.config.output
        assert folder is not None
        done = "finished before, and kept" if run.finished else "training"
        log.info("%s of %s, '%s': %s", number, len(runs), folder, done)
        if not run.finished:
            train_text(run.config, progress=progress)
        folders.append(folder)
    return folders


def _axis(text: str, base: TextRunConfig) -> tuple[str, tuple[str, ...], list[str]]:
    """Return the name of a setting, the groups that it stands in with its name, and its values."""
    name, _, listed = text.partition("=")
    name = name.strip().replace("-", "_")
    values = [value.strip() for value in listed.split(",")]
    if "" in values or len({_value(value) for value in values}) < len(values):
        raise ConfigError(
            f"--over {text}: it needs a setting with its values, all different, as in "
            f"--over mask_rate=0.15,0.3"
        )
    place = _place_of(name, base)
    if place is None or name in NOT_SWEPT:
        raise ConfigError(
            f"--over {text}: there is no setting '{name}' to change; settings are the flags of "
            f"maskery train text, with underscores, but for {', '.join(NOT_SWEPT)}"
        )
    return name, place, values


def _value(text: str) -> Any:
    """Return a number, true, false or null as YAML reads it; anything else is text."""
    try:
        value = yaml.safe_load(text)
    except (ValueError, yaml.YAMLError):
        return text
    return value if value is None or isinstance(value, bool | int | float) else text


def _place_of(name: str, config: Any) -> tuple[str, ...] | None:
    """Return the names by which a setting is found within a configuration; None if it is not."""
    for one in fields(config):
        value = getattr(config, one.name)
        if one.name == name and not is_dataclass(value):
            return (name,)
        if is_dataclass(value) and (inside := _place_of(name, value)) is not None:
            return (one.name, *inside)
    return None


def _planned(
    path: Path,
    places: Sequence[Sequence[str]],
    names: Sequence[str],
    values: Sequence[str],
    output: Path,
) -> PlannedRun:
    settings = read_settings(path)
    settings.pop("kind", None)
    for (*groups, name), value in zip(places, values, strict=True):
        group = settings
        for inner in groups:
            group = group.setdefault(inner, {})
        group[name] = _value(value)
    named = [f"{name}-{value}" for name, value in zip(names, values, strict=True)]
    folder = output / re.sub(r"[^A-Za-z0-9._+-]+", "-", "-".join(named))
    config = from_plain(settings, TextRunConfig, f"{path} with {', '.join(named)}")
    config = replace(config.anchored(), output=folder, resume="auto")
    config = replace(config, model=anchored(config.model))
    finished = (folder / EVALUATION).is_file() and has_model(folder)
    if finished:
        found, wanted = map(course_of, (open_run(folder).config, config))
        changed = [name for name in wanted if found.get(name) != wanted[name]]
        if changed:
            raise ConfigError(
                f"'{folder}' holds a run with another {changed[0]} ({found.get(changed[0])}, not "
                f"{wanted[changed[0]]}); name another --output for this sweep"
            )
    return PlannedRun(config=config, finished=finished)
