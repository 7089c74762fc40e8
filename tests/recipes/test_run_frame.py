"""What happens around a run: who has the folder, what a failure leaves, what is written when."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from maskery.core.errors import CheckpointError, DataError
from maskery.recipes.folder_lock import LOCK
from maskery.recipes.run_folder import CONFIG, TOKENIZER
from maskery.recipes.run_frame import run_in_folder


@dataclass(frozen=True, kw_only=True)
class Config:
    output: Path | None
    resume: str = "no"
    size: int = 1


@dataclass(frozen=True)
class Result:
    figures: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        return self.figures


def nothing(folder: Path) -> None:
    """Prepare a run that needs nothing."""


def fail(folder: Path) -> None:
    raise DataError("the corpus is empty")


def run(
    config: Config, default: Path = Path("unused"), prepare: Callable[[Path], None] = nothing
) -> list[str]:
    """Run something that does nothing; what its folder held while it ran."""
    seen: list[str] = []

    def fill(run: None, folder: Path) -> Result:
        seen.extend(path.name for path in folder.iterdir())
        return Result({"folder": str(folder)})

    run_in_folder(config, default, prepare=prepare, fill=fill)
    return seen


def test_a_run_has_its_folder_alone_and_leaves_no_lock(tmp_path: Path) -> None:
    config = Config(output=tmp_path / "run")
    assert sorted(run(config)) == [LOCK, CONFIG]
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        CONFIG,
        "evaluation.json",
    ]


@pytest.mark.parametrize("resume", ["no", "auto"])
def test_a_second_run_is_refused_and_harms_nothing(tmp_path: Path, resume: str) -> None:
    """The folder is still empty when the second one asks for it."""
    config = Config(output=tmp_path / "run")

    def prepare(folder: Path) -> None:
        with pytest.raises(CheckpointError, match="in use by another process; wait") as caught:
            run(Config(output=folder, resume=resume), prepare=fail)
        assert "\n" not in str(caught.value)

    run(config, prepare=prepare)
    assert (tmp_path / "run" / "evaluation.json").is_file()


def test_two_runs_with_a_default_folder_get_one_each(tmp_path: Path) -> None:
    default = tmp_path / "runs" / "text-model"

    def prepare(folder: Path) -> None:
        assert folder == default
        run(Config(output=None), default)

    run(Config(output=None), default, prepare)
    made = sorted(path.name for path in default.parent.iterdir())
    assert made == ["text-model", "text-model-2"]


@pytest.mark.parametrize("before", ["missing", "empty", "lock left by a kill"])
def test_a_run_that_cannot_be_prepared_leaves_things_as_they_were(
    tmp_path: Path, before: str
) -> None:
    folder = tmp_path / "run"
    if before != "missing":
        folder.mkdir()
    if before == "lock left by a kill":
        (folder / LOCK).touch()

    def prepare(folder: Path) -> None:
        (folder / TOKENIZER).mkdir()
        (folder / TOKENIZER / "vocab.txt").touch()
        fail(folder)

    with pytest.raises(DataError):
        run(Config(output=folder), prepare=prepare)
    assert folder.exists() == (before != "missing")
    if folder.exists():
        assert list(folder.iterdir()) == []


def test_what_somebody_put_into_the_folder_stays(tmp_path: Path) -> None:
    def prepare(folder: Path) -> None:
        (folder / "notes.txt").write_text("mine")
        fail(folder)

    with pytest.raises(DataError):
        run(Config(output=tmp_path / "run"), prepare=prepare)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["notes.txt"]


def test_without_locks_nothing_of_another_process_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cannot(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    def prepare(folder: Path) -> None:
        run(Config(output=folder, resume="auto"))
        fail(folder)

    monkeypatch.setattr(fcntl, "flock", cannot)
    with pytest.raises(DataError):
        run(Config(output=tmp_path / "run"), prepare=prepare)
    assert (tmp_path / "run" / "evaluation.json").is_file()
    assert (tmp_path / "run" / CONFIG).is_file()
