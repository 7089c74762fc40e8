"""What every training run does around its training: its folder, its files, its identity."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

from maskery.core.errors import CheckpointError
from maskery.core.processes import join_processes
from maskery.recipes.held_folder import held_run_folder
from maskery.recipes.run_folder import EVALUATION, save_config, write_json
from maskery.training.config import TrainingConfig


class RunConfig(Protocol):
    """What the frame reads of a run's configuration."""

    @property
    def output(self) -> Path | None:
        """The run folder."""

    @property
    def resume(self) -> str:
        """`auto` or `no`."""


class Result(Protocol):
    """What a run comes to."""

    def to_json(self) -> dict[str, Any]:
        """For `evaluation.json`."""


RunT = TypeVar("RunT")
ResultT = TypeVar("ResultT", bound=Result)


def run_in_folder(
    config: RunConfig,
    default: Path,
    *,
    prepare: Callable[[Path], RunT],
    fill: Callable[[RunT, Path], ResultT],
) -> ResultT:
    """Open the run folder, prepare the run, let it fill the folder, and write what it came to.

    A run that fails while it is prepared leaves nothing behind. With several processes the main one
    chooses the folder, keeps other runs out of it and writes; all of them prepare and fill.

    Args:
        config: A dataclass with `output` and `resume`.
        default: The folder where the config names none.
        prepare: From the folder to everything that the run consists of.
        fill: Trains and saves.
    """
    processes = join_processes()
    with held_run_folder(processes, config.output, default, resume=config.resume == "auto") as held:
        folder = held.path
        try:
            # The others find what the main process leaves on disk: tokenizer, tokens.
            with processes.main_first():
                run = prepare(folder)
            if processes.is_main:
                save_config(folder, replace(config, output=folder))  # type: ignore[type-var]
        except BaseException:
            held.discard()
            raise
        result = fill(run, folder)
        if processes.is_main:
            write_json(folder / EVALUATION, result.to_json())
    return result


def save_model_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Write a model folder: whole, or not at all.

    Args:
        folder: What it is to be called; what is there is replaced.
        write: Writes its files into the folder that it is given.

    Raises:
        CheckpointError: It could not be written.
    """
    partial = folder.with_name(f"{folder.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        write(partial)
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    except (OSError, RuntimeError) as error:
        raise CheckpointError(
            f"the model could not be written to '{folder}' ({error}); free some space and repeat "
            f"the command with --resume auto: the training itself is in the last checkpoint"
        ) from error


def identity(training: TrainingConfig, described: Mapping[str, Any]) -> str:
    """A hash of everything that decides the course of a run, but not how it is computed.

    Args:
        training: Its bookkeeping is left out.
        described: Everything else, as JSON has it.
    """
    text = json.dumps({**described, "training": training.course()}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
