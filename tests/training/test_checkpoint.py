from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from maskery.core.errors import CheckpointError
from maskery.training.checkpoint import MANIFEST, Checkpoints, find_damage
from maskery.training.config import TrainingConfig
from maskery.training.optimiser import build_optimiser, set_learning_rate
from maskery.training.snapshot import (
    Position,
    SnapshotMaker,
    differences,
    named_tensors,
    require_same_run,
    restore,
)

MakeTask = Callable[..., Any]
CONFIG = TrainingConfig(learning_rate=1e-2)


def position(step: int, identity: str = "run") -> Position:
    return Position(step=step, epoch=1, epoch_step=step % 3, identity=identity)


def trained(task: Any, steps: int = 3) -> torch.optim.Optimizer:
    optimiser = build_optimiser(task.model, CONFIG)
    set_learning_rate(optimiser, lambda _: 1.0)
    for step in range(steps):
        torch.manual_seed(step)
        task.before_step()
        task.model(torch.randn(4, 6)).square().sum().backward()
        optimiser.step()
        optimiser.zero_grad()
    return optimiser


def test_what_is_saved_is_restored_to_the_last_bit(tmp_path: Path, make_task: MakeTask) -> None:
    task = make_task()
    optimiser = trained(task)
    path = Checkpoints(tmp_path).write(SnapshotMaker().take(task, optimiser, position(3)))
    assert path.name == "step-00000003"
    other = make_task()
    fresh = build_optimiser(other.model, CONFIG)
    assert restore(path, other, fresh, "run") == position(3)
    for name, tensor in named_tensors(task.model).items():
        assert torch.equal(named_tensors(other.model)[name], tensor)
    assert torch.equal(other.twin, task.twin)
    assert other.model.steps_seen == 3
    for old, new in zip(task.model.parameters(), other.model.parameters(), strict=True):
        for moment in ("exp_avg", "exp_avg_sq", "step"):
            saved, read = optimiser.state[old][moment], fresh.state[new][moment]
            assert torch.equal(saved, read)
            assert saved.dtype == read.dtype
    # And the next step is the same.
    set_learning_rate(fresh, lambda _: 1.0)
    for model, chosen in ((task.model, optimiser), (other.model, fresh)):
        model(torch.ones(2, 6)).sum().backward()
        chosen.step()
    for old, new in zip(task.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(old, new)


def test_a_checkpoint_before_the_first_step(tmp_path: Path, make_task: MakeTask) -> None:
    task = make_task()
    path = Checkpoints(tmp_path).write(
        SnapshotMaker().take(task, build_optimiser(task.model, CONFIG), position(0))
    )
    fresh = build_optimiser(task.model, CONFIG)
    restore(path, task, fresh, "run")
    assert not fresh.state


def test_tied_weights_are_saved_once_and_stay_tied(tmp_path: Path, make_task: MakeTask) -> None:
    def tied() -> Any:
        task = make_task()
        task.model = nn.Sequential(nn.Embedding(5, 6), nn.Linear(6, 5))
        task.model[1].weight = task.model[0].weight
        return task

    task, other = tied(), tied()
    assert list(named_tensors(task.model)) == ["0.weight", "1.bias"]
    path = Checkpoints(tmp_path).write(
        SnapshotMaker().take(task, build_optimiser(task.model, CONFIG), position(1))
    )
    restore(path, other, build_optimiser(other.model, CONFIG), "run")
    assert other.model[0].weight is other.model[1].weight
    assert torch.equal(other.model[0].weight, task.model[0].weight)


def test_buffers_that_are_not_persistent_are_left_out(make_task: MakeTask) -> None:
    task = make_task()
    task.model.register_buffer("cache", torch.zeros(3), persistent=False)
    assert set(named_tensors(task.model)) == {"1.weight", "1.bias", "steps_seen"}


@pytest.mark.parametrize("keep", [1, 2, 5])
def test_the_newest_are_kept(tmp_path: Path, make_task: MakeTask, keep: int) -> None:
    task = make_task()
    optimiser = trained(task)
    checkpoints = Checkpoints(tmp_path, keep=keep)
    for step in (2, 9, 10, 100):
        checkpoints.write(SnapshotMaker().take(task, optimiser, position(step)))
    steps = [int(path.name.removeprefix("step-")) for path in checkpoints.complete()]
    assert steps == [2, 9, 10, 100][-keep:]


@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimiser.safetensors", "extra.safetensors", "state.json"]
)
@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    tmp_path: Path,
    make_task: MakeTask,
    name: str,
    damage: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    task = make_task()
    optimiser = trained(task)
    checkpoints = Checkpoints(tmp_path)
    first = checkpoints.write(SnapshotMaker().take(task, optimiser, position(1)))
    second = checkpoints.write(SnapshotMaker().take(task, optimiser, position(2)))
    assert checkpoints.newest_sound() == second
    file = second / name
    if damage == "flip":
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(bytes(data))
    elif damage == "cut":
        os.truncate(file, file.stat().st_size - 1)
    else:
        file.unlink()
    with caplog.at_level(logging.WARNING):
        assert checkpoints.newest_sound() == first
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert f"'{second}' is damaged" in caplog.text
    assert name in caplog.text


@pytest.mark.parametrize("text", ["", "{", "[]", '"x"', "{}"])
def test_a_damaged_manifest_is_damage(tmp_path: Path, make_task: MakeTask, text: str) -> None:
    task = make_task()
    path = Checkpoints(tmp_path).write(SnapshotMaker().take(task, trained(task), position(1)))
    assert find_damage(path) is None
    (path / MANIFEST).write_text(text)
    assert find_damage(path) is not None


def test_nothing_sound_is_none(tmp_path: Path, make_task: MakeTask) -> None:
    assert Checkpoints(tmp_path / "nowhere").newest_sound() is None
    task = make_task()
    path = Checkpoints(tmp_path).write(SnapshotMaker().take(task, trained(task), position(1)))
    (path / "state.json").write_text("{}")
    assert Checkpoints(tmp_path).newest_sound() is None


def test_unfinished_folders_are_ignored(tmp_path: Path, make_task: MakeTask) -> None:
    task = make_task()
    checkpoints = Checkpoints(tmp_path)
    path = checkpoints.write(SnapshotMaker().take(task, trained(task), position(1)))
    # A stop in the middle of writing leaves either of these.
    (tmp_path / "step-00000007.partial").mkdir()
    (tmp_path / "step-00000007.partial" / MANIFEST).write_text("{}")
    (tmp_path / "step-00000008").mkdir()
    assert checkpoints.complete() == [path]
    assert checkpoints.newest_sound() == path
    # And the step can be saved when the run comes by again.
    optimiser = trained(task)
    assert checkpoints.write(SnapshotMaker().take(task, optimiser, position(7))).is_dir()
    assert checkpoints.write(SnapshotMaker().take(task, optimiser, position(8))).is_dir()
    assert checkpoints.newest_sound() == tmp_path / "step-00000008"


def test_saving_a_step_again_replaces_it(tmp_path: Path, make_task: MakeTask) -> None:
    task = make_task()
    checkpoints = Checkpoints(tmp_path)
    checkpoints.write(SnapshotMaker().take(task, trained(task), position(4)))
    path = checkpoints.write(SnapshotMaker().take(task, trained(task), position(4)))
    assert find_damage(path) is None
    assert json.loads((path / "state.json").read_text())["step"] == 4


def test_another_run_is_refused(tmp_path: Path, make_task: MakeTask) -> None:
    task = make_task()
    optimiser = trained(task)
    path = Checkpoints(tmp_path).write(SnapshotMaker().take(task, optimiser, position(1)))
    with pytest.raises(CheckpointError, match=r"belongs to a run with another model"):
        restore(path, task, optimiser, "another run")


@pytest.mark.parametrize("change", ["shape", "name"])
def test_another_model_is_refused(tmp_path: Path, make_task: MakeTask, change: str) -> None:
    task = make_task()
    path = Checkpoints(tmp_path).write(SnapshotMaker().take(task, trained(task), position(1)))
    other = make_task(width=7)
    if change == "name":
        other = make_task()
        other.model.register_buffer("more", torch.zeros(1))
    before = {name: tensor.clone() for name, tensor in named_tensors(other.model).items()}
    with pytest.raises(CheckpointError, match=r"is of another model"):
        restore(path, other, build_optimiser(other.model, CONFIG), "run")
    for name, tensor in named_tensors(other.model).items():
        assert torch.equal(tensor, before[name])


def test_a_full_disk_keeps_the_checkpoint_before(
    tmp_path: Path, make_task: MakeTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = make_task()
    optimiser = trained(task)
    checkpoints = Checkpoints(tmp_path)
    path = checkpoints.write(SnapshotMaker().take(task, optimiser, position(1)))

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match=r"No space left on device.*--resume auto"):
        checkpoints.write(SnapshotMaker().take(task, optimiser, position(2)))
    assert list(tmp_path.iterdir()) == [path]
    assert checkpoints.newest_sound() == path


def test_a_disk_that_fills_while_weights_are_written(
    tmp_path: Path, make_task: MakeTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    resource = pytest.importorskip("resource")
    task = make_task()
    optimiser = trained(task)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(CheckpointError, match=r"could not be written.*--resume auto"):
            Checkpoints(tmp_path).write(SnapshotMaker().take(task, optimiser, position(1)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path, make_task: MakeTask) -> None:
    (tmp_path / "file").write_text("")
    task = make_task()
    with pytest.raises(CheckpointError, match=r"could not be written"):
        Checkpoints(tmp_path / "file" / "checkpoints").write(
            SnapshotMaker().take(task, trained(task), position(1))
        )


RUN: dict[str, Any] = {
    "model": "bert",
    "dropout": [0.1, 0.2],
    "training": {"seed": 0, "max_steps": None},
    "masking": {"policy": "word"},
}


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"model": "roberta"}, ["model is 'roberta' here and 'bert' in the run"]),
        ({"dropout": [0.1, 0]}, ["dropout is [0.1, 0] here and [0.1, 0.2] in the run"]),
        (
            {"training": {"seed": 3, "max_steps": 9}},
            [
                "max_steps is 9 here and not set in the run",
                "seed is 3 here and 0 in the run",
            ],
        ),
        ({"masking": {}}, ["policy is not set here and 'word' in the run"]),
        ({"layout": "padded"}, ["layout is 'padded' here and not set in the run"]),
        ({}, []),
    ],
)
def test_every_difference_is_named(changed: dict[str, Any], told: list[str]) -> None:
    assert differences(json.dumps(RUN), json.dumps({**RUN, **changed})) == told


def test_the_same_run_is_let_through() -> None:
    require_same_run(Path("x"), json.dumps(RUN), json.dumps(RUN))


def test_a_refusal_is_one_line_and_tells_three_differences() -> None:
    own = {"a": 1, "b": 2, "c": 3, "d": 4, "e": 5}
    with pytest.raises(CheckpointError) as caught:
        require_same_run(Path("run/checkpoints/step-1"), "{}", json.dumps(own))
    message = str(caught.value)
    assert "\n" not in message
    assert "c is 3 here and not set in the run and 2 more; repeat" in message
    assert "d is" not in message


@pytest.mark.parametrize("stored", ["a" * 64, "[1]", "7", ""])
def test_an_identity_that_is_no_settings_is_refused_all_the_same(stored: str) -> None:
    with pytest.raises(CheckpointError, match="corpus or setting; repeat"):
        require_same_run(Path("x"), stored, json.dumps(RUN))
