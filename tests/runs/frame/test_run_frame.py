"""What happens around a run: who has the folder, what a failure leaves, what is written when."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import logging
import os
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError

from maskery.core.errors import CheckpointError, DataError, StoppedError
from maskery.runs.frame.config_file import CONFIG, load_config
from maskery.runs.frame.run_folder import LOCK, MODEL, SUMS, TOKENIZER
from maskery.runs.frame.run_frame import card_table, public_name, run_in_folder, save_model_folder
from maskery.training.checkpoint import FILES
from maskery.training.loop import Summary
from maskery.training.snapshot import Position


@dataclass(frozen=True, kw_only=True)
class Config:
    output: Path | None
    resume: str = "no"
    size: int = 1


@dataclass(frozen=True)
class Result:
    summary: Summary

    def to_json(self) -> dict[str, Any]:
        return {"training": asdict(self.summary)}


TEN_STEPS = Summary(steps=10, tokens=500, seconds=2.5, resumed_from=0)
NO_STEPS = Summary(steps=10, tokens=0, seconds=0.0, resumed_from=10)


@dataclass(frozen=True)
class Run:
    identity: str = "{}"


def nothing(folder: Path) -> Run:
    """Prepare a run that needs nothing."""
    return Run()


def fail(folder: Path) -> Run:
    raise DataError("the corpus is empty")


def run(
    config: Config,
    default: Path = Path("unused"),
    prepare: Callable[[Path], Run] = nothing,
    summary: Summary = TEN_STEPS,
) -> list[str]:
    """Run something that does nothing; what its folder held while it ran."""
    seen: list[str] = []

    def fill(run: Run, folder: Path) -> Result:
        seen.extend(path.name for path in folder.iterdir())
        return Result(summary)

    run_in_folder(config, default, prepare=prepare, train=fill)
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

    def prepare(folder: Path) -> Run:
        with pytest.raises(CheckpointError, match="in use by another process; wait") as caught:
            run(Config(output=folder, resume=resume), prepare=fail)
        assert "\n" not in str(caught.value)
        return Run()

    run(config, prepare=prepare)
    assert (tmp_path / "run" / "evaluation.json").is_file()


def test_two_runs_with_a_default_folder_get_one_each(tmp_path: Path) -> None:
    default = tmp_path / "runs" / "text-model"

    def prepare(folder: Path) -> Run:
        assert folder == default
        run(Config(output=None), default)
        return Run()

    run(Config(output=None), default, prepare)
    made = sorted(path.name for path in default.parent.iterdir())
    assert made == ["text-model", "text-model-2"]


def test_a_run_stopped_in_a_numbered_folder_is_found_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    default = tmp_path / "text-model"
    config, again = Config(output=None), Config(output=None, resume="auto")

    def stop(config: Config) -> None:
        def fill(run: Run, folder: Path) -> Result:
            raise StoppedError("stopped by SIGTERM")

        with pytest.raises(StoppedError):
            run_in_folder(config, default, prepare=nothing, train=fill)

    def resumed() -> str:
        caplog.clear()
        with caplog.at_level(logging.INFO, logger="maskery"):
            run(again, default)
        (line,) = caplog.messages
        return line

    run(config, default)
    assert resumed() == f"resuming '{default}'"  # there is no other
    for _ in range(10):
        stop(config)
    (tmp_path / "text-model-x").mkdir()
    (tmp_path / "text-model-99").touch()
    (tmp_path / "text-model-98").mkdir()
    for number in (11, 10, 9):  # by number, and not by name
        assert resumed() == f"resuming '{default}-{number}'"
    for _ in range(7):
        resumed()
    assert resumed() == f"resuming '{default}-11'"  # all are finished


@pytest.mark.parametrize("parent", ["there", "missing"])
def test_resuming_what_was_never_begun_begins_it(
    tmp_path: Path, parent: str, caplog: pytest.LogCaptureFixture
) -> None:
    default = (tmp_path if parent == "there" else tmp_path / "runs") / "text-model"
    with caplog.at_level(logging.INFO, logger="maskery"):
        run(Config(output=None, resume="auto"), default)
    assert (default / "evaluation.json").is_file()
    assert caplog.messages == []


@pytest.mark.parametrize("before", ["missing", "empty", "lock left by a kill"])
def test_a_run_that_cannot_be_prepared_leaves_things_as_they_were(
    tmp_path: Path, before: str
) -> None:
    folder = tmp_path / "run"
    if before != "missing":
        folder.mkdir()
    if before == "lock left by a kill":
        (folder / LOCK).touch()

    def prepare(folder: Path) -> Run:
        (folder / TOKENIZER).mkdir()
        (folder / TOKENIZER / "vocab.txt").touch()
        return fail(folder)

    with pytest.raises(DataError):
        run(Config(output=folder), prepare=prepare)
    assert folder.exists() == (before != "missing")
    if folder.exists():
        assert list(folder.iterdir()) == []


def test_what_somebody_put_into_the_folder_stays(tmp_path: Path) -> None:
    def prepare(folder: Path) -> Run:
        (folder / "notes.txt").write_text("mine")
        return fail(folder)

    with pytest.raises(DataError):
        run(Config(output=tmp_path / "run"), prepare=prepare)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["notes.txt"]


def test_without_locks_nothing_of_another_process_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cannot(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    def prepare(folder: Path) -> Run:
        run(Config(output=folder, resume="auto"))
        return fail(folder)

    monkeypatch.setattr(fcntl, "flock", cannot)
    with pytest.raises(DataError):
        run(Config(output=tmp_path / "run"), prepare=prepare)
    assert (tmp_path / "run" / "evaluation.json").is_file()
    assert (tmp_path / "run" / CONFIG).is_file()


FLIPPED = '{"rate": 0.3}'


def begun(folder: Path, *identities: str | None) -> Config:
    """A run with size 1 and checkpoints of these identities; None for one that was cut short."""
    run(Config(output=folder))
    for step, stored in enumerate(identities):
        checkpoint = folder / "checkpoints" / f"step-{step:08d}"
        checkpoint.mkdir(parents=True)
        position = Position(step=step, epoch=0, epoch_step=0, identity=stored or "")
        for name in FILES:
            (checkpoint / name).write_text(position.to_json())
        content = {name: (checkpoint / name).read_bytes() for name in FILES}
        manifest = {name: hashlib.sha256(data).hexdigest() for name, data in content.items()}
        (checkpoint / "manifest.json").write_text(json.dumps(manifest))
        if stored is None:
            (checkpoint / "state.json").write_text('{"st')
        elif stored == FLIPPED:  # its bytes are not those of its checksums
            (checkpoint / "model.safetensors").write_text("")
    return Config(output=folder, resume="auto", size=2)


@pytest.mark.parametrize(
    ("identities", "size"),
    [((), 2), (("{}",), 2), (("{}", None), 2), (("{}", FLIPPED), 2), ((None, FLIPPED), 1)],
    ids=["no checkpoint", "the same run", "the newest is cut", "is flipped", "all are damaged"],
)
def test_the_configuration_is_written_where_the_run_is_known_to_go_on(
    tmp_path: Path, identities: tuple[str | None, ...], size: int
) -> None:
    run(begun(tmp_path / "run", *identities))
    assert load_config(tmp_path / "run" / CONFIG, Config).size == size


def test_a_run_with_other_settings_is_refused_and_keeps_its_configuration(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    config = begun(folder, '{"rate": 0.5}', '{"rate": 0.1}', None, FLIPPED)
    before = (folder / CONFIG).read_bytes()
    with pytest.raises(CheckpointError, match=r"rate is 0\.2 here and 0\.1 in the run"):
        run(config, prepare=lambda folder: Run('{"rate": 0.2}'))
    assert (folder / CONFIG).read_bytes() == before


def test_what_a_run_leaves_is_on_disk_when_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: set[int] = set()
    unsafe: list[str] = []
    real = {name: getattr(os, name) for name in ("fsync", "replace", "rename")}

    def fsync(descriptor: int) -> None:
        flushed.add(os.fstat(descriptor).st_ino)
        real["fsync"](descriptor)

    def move(how: str) -> Callable[[Path, Path], None]:
        def moved(source: Path, target: Path) -> None:
            content = [source, *(source.rglob("*") if source.is_dir() else ())]
            unsafe.extend(str(path) for path in content if path.stat().st_ino not in flushed)
            real[how](source, target)

        return moved

    def write(folder: Path) -> None:
        folder.mkdir()
        (folder / "model.safetensors").write_text("weights")

    def fill(run: Run, folder: Path) -> Result:
        save_model_folder(folder / MODEL, write)
        return Result(TEN_STEPS)

    for name in ("replace", "rename"):
        monkeypatch.setattr(os, name, move(name))
    monkeypatch.setattr(os, "fsync", fsync)
    for resume in ("no", "auto"):
        config = Config(output=tmp_path / "run", resume=resume)
        run_in_folder(config, tmp_path, prepare=nothing, train=fill)
    assert unsafe == []
    assert (tmp_path / "run").stat().st_ino in flushed
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        CONFIG,
        "evaluation.json",
        MODEL,
        SUMS,
    ]


@pytest.mark.parametrize(
    ("stored", "summary", "tokens"),
    [
        ("whole", NO_STEPS, 500),
        ("damaged", NO_STEPS, 0),
        ("missing", NO_STEPS, 0),
        ("whole", replace(TEN_STEPS, tokens=200, resumed_from=6), 200),
    ],
)
def test_what_a_finished_run_came_to_stays(
    tmp_path: Path, stored: str, summary: Summary, tokens: int
) -> None:
    path = tmp_path / "run" / "evaluation.json"
    run(Config(output=tmp_path / "run"))
    if stored == "missing":
        path.unlink()
    elif stored == "damaged":
        path.write_text('{"training": {')
    run(Config(output=tmp_path / "run", resume="auto"), summary=summary)
    assert json.loads(path.read_text())["training"]["tokens"] == tokens


@pytest.mark.parametrize("error", [SafetensorError("disk"), Exception("disk"), OSError("disk")])
def test_a_model_that_cannot_be_saved_is_one_line_and_leaves_nothing(
    tmp_path: Path, error: Exception
) -> None:
    """Tokenizers raise a bare Exception where the disk is full, and weights an error of theirs."""

    def write(folder: Path) -> None:
        folder.mkdir()
        raise error

    with pytest.raises(CheckpointError, match="could not be written"):
        save_model_folder(tmp_path / MODEL, write)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("relative", [True, False])
def test_a_model_has_its_sums_wherever_its_folder_is_named_from(
    relative: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = Path("runs/one") if relative else tmp_path / "runs" / "one"
    run.mkdir(parents=True)

    def write(folder: Path) -> None:
        folder.mkdir()
        (folder / "config.json").write_bytes(b"{}")

    save_model_folder(run / MODEL, write)
    assert json.loads((run / SUMS).read_bytes()) == {
        "config.json": hashlib.sha256(b"{}").hexdigest()
    }


@pytest.mark.parametrize("name", ["a`<b>`", "a\n# b", "<img src=x onerror=a>", "a\x1b[2J"])
def test_a_name_in_a_card_is_text(name: str) -> None:
    shown = public_name(name)
    assert shown.isprintable()
    assert (shown[0], shown[-1], shown.count("`")) == ("`", "`", 2) or "\\`\\<b>" in shown
    (head, _, row) = card_table(["", "b"], [f"{name}|[a](b)", "c"]).splitlines()
    assert row.isprintable()
    assert len(re.findall(r"(?<!\\)\|", row)) == len(re.findall(r"(?<!\\)\|", head)) == 3
    assert not re.search(r"(?<!\\)[<`]|\]\(", row)
