"""Full disks, damaged files and folders that cannot be written: one clear line, nothing lost."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from fork_server import ForkServer

from maskery.training.checkpoint import Checkpoints, find_damage
from runs import assert_same_outcome, make_text, outcome


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def arguments(home: Path) -> list[str]:
    return [*make_text(home), "--resume", "auto", "--keep-checkpoints", "9"]


@pytest.fixture(scope="module")
def whole(home: Path, server: ForkServer, arguments: list[str]) -> Path:
    server.run([*arguments, "--output", str(home / "whole")], home / "log-whole")
    return home / "whole"


def begun(whole: Path, folder: Path) -> list[Path]:
    """A copy of a run that has not reached its end; returns its checkpoints, oldest first."""
    shutil.copytree(whole, folder)
    for name in ("model", "evaluation.json"):
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return Checkpoints(folder / "checkpoints").complete()


def one_line(text: str, part: str) -> None:
    assert "Traceback" not in text
    assert len([line for line in text.splitlines() if part in line]) == 1, text


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("damage", [cut, flip, Path.unlink])
@pytest.mark.parametrize("name", ["model.safetensors", "state.json", "manifest.json"])
def test_a_damaged_checkpoint_is_recognised(
    tmp_path: Path,
    server: ForkServer,
    arguments: list[str],
    whole: Path,
    name: str,
    damage: Callable[[Path], None],
) -> None:
    run = tmp_path / "run"
    earlier, newest = begun(whole, run)[-2:]
    damage(newest / name)
    again = [*arguments, "--output", str(run)]
    printed = server.run(again, tmp_path / "log", report=False)
    if (newest / "manifest.json").exists() and name != "manifest.json":
        one_line(printed, "is damaged")
    assert f'"resumed_from": {int(earlier.name.removeprefix("step-"))}' in printed
    assert_same_outcome(run, outcome(whole))


@pytest.mark.parametrize("damage", [cut, flip, Path.unlink])
def test_a_damaged_token_store_is_made_again(
    tmp_path: Path,
    home: Path,
    server: ForkServer,
    arguments: list[str],
    whole: Path,
    damage: Callable[[Path], None],
) -> None:
    run, cache = tmp_path / "run", tmp_path / "cache"
    begun(whole, run)
    shutil.copytree(home / "cache", cache)
    (tokens,) = cache.glob("tokens/*/tokens.bin")
    damage(tokens)
    again = [*arguments, "--output", str(run), "--cache-dir", str(cache)]
    one_line(server.run(again, tmp_path / "log", report=False), "tokenising again")
    assert_same_outcome(run, outcome(whole))


def test_a_model_that_was_exchanged_is_told_and_written_again(
    tmp_path: Path, server: ForkServer, arguments: list[str], whole: Path
) -> None:
    run, told = tmp_path / "run", "is not the model that the run saved"
    shutil.copytree(whole, run)
    assert told not in server.run(["evaluate", str(run)], tmp_path / "log-sound")
    weights = run / "model" / "model.safetensors"
    os.truncate(weights, weights.stat().st_size - 4)
    with weights.open("ab") as file:
        file.write(b"\0\0\0\0")
    one_line(server.run(["evaluate", str(run)], tmp_path / "log-other"), told)
    one_line(server.run([*arguments, "--output", str(run)], tmp_path / "log"), told)
    assert_same_outcome(run, outcome(whole))


def fill(disk: Path, left: int) -> Path:
    """Fill a disk but for `left` bytes."""
    ballast = disk / "ballast"
    ballast.write_bytes(b"\0" * max(shutil.disk_usage(disk).free - left, 0))
    return ballast


def test_a_full_disk_loses_no_checkpoint(
    tmp_path: Path, server: ForkServer, arguments: list[str], whole: Path, small_disk: Path
) -> None:
    run = small_disk / "run"
    newest = begun(whole, run)[-1]
    shutil.rmtree(newest)
    kept = Checkpoints(run / "checkpoints").complete()[-1]
    ballast = fill(small_disk, 30_000)
    full = server.start([*arguments, "--output", str(run)], tmp_path / "log")
    assert full.wait() == [2], full.text
    one_line(full.text, "free some space")
    assert find_damage(kept) is None
    ballast.unlink()
    server.run([*arguments, "--output", str(run)], tmp_path / "log-again")
    assert_same_outcome(run, outcome(whole))


def test_a_disk_with_room_for_lines_only_lets_the_run_go_on(
    tmp_path: Path, server: ForkServer, arguments: list[str], whole: Path, small_disk: Path
) -> None:
    """No checkpoint fits until the last step, which is tried all the same and needs no headroom."""
    run = small_disk / "run"
    kept = begun(whole, run)
    for checkpoint in kept[1:]:
        shutil.rmtree(checkpoint)
    fill(small_disk, 900_000)
    printed = server.run([*arguments, "--output", str(run)], tmp_path / "log")
    step = int(kept[0].name.removeprefix("step-"))
    assert printed.count("the run goes on, and could be resumed from") == (12 - step) // 2 - 1
    assert_same_outcome(run, outcome(whole))


def test_a_folder_that_cannot_be_written(
    tmp_path: Path, server: ForkServer, arguments: list[str], whole: Path, small_disk: Path
) -> None:
    run = small_disk / "run"
    checkpoints = begun(whole, run)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    stopped = server.start([*arguments, "--output", str(run)], tmp_path / "log")
    assert stopped.wait() == [2], stopped.text
    assert "Traceback" not in stopped.text
    assert "maskery train text: " in stopped.text
    assert all(find_damage(checkpoint) is None for checkpoint in checkpoints)
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    server.run([*arguments, "--output", str(run)], tmp_path / "log-again")
    assert_same_outcome(run, outcome(whole))
