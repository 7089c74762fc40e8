from __future__ import annotations

import json
from pathlib import Path

import pytest

from maskery.core.errors import MissingExtraError
from maskery.training import tracking
from maskery.training.tracking import METRICS, Tracker, read_metrics


def tracker_with_lines(folder: Path) -> Tracker:
    tracker = Tracker(folder)
    tracker.log("held_out", 0, {"loss": 9.0})
    for step in (10, 20, 30):
        tracker.log("train", step, {"loss": 0.1 * step})
        tracker.log("held_out", step, {"loss": 0.3})
    return tracker


def test_lines_are_json_objects(tmp_path: Path) -> None:
    tracker_with_lines(tmp_path)
    lines = [json.loads(line) for line in (tmp_path / METRICS).read_text().splitlines()]
    assert lines[0] == {"kind": "held_out", "step": 0, "loss": 9.0}
    assert lines[1] == {"kind": "train", "step": 10, "loss": 1.0}
    assert read_metrics(tmp_path / METRICS) == lines


def test_rewinding_drops_what_came_after(tmp_path: Path) -> None:
    tracker = tracker_with_lines(tmp_path)
    before = (tmp_path / METRICS).read_text().splitlines(keepends=True)
    tracker.rewind(20)
    assert (tmp_path / METRICS).read_text() == "".join(before[:5])
    tracker.log("train", 30, {"loss": 0.5})
    assert read_metrics(tmp_path / METRICS)[-1] == {"kind": "train", "step": 30, "loss": 0.5}
    assert [path.name for path in tmp_path.iterdir()] == [METRICS]


@pytest.mark.parametrize("cut", range(1, 50, 7))
def test_a_line_cut_short_is_left_out_and_cut_off(tmp_path: Path, cut: int) -> None:
    tracker = tracker_with_lines(tmp_path)
    path = tmp_path / METRICS
    whole = path.read_text()
    path.write_text(whole + json.dumps({"kind": "train", "step": 40, "loss": 1.25e-05})[:cut])
    assert read_metrics(path) == [json.loads(line) for line in whole.splitlines()]
    tracker.rewind(40)
    assert path.read_text() == whole


@pytest.mark.parametrize(
    "line",
    [
        *(b"12", b"[]", b"{}", b"[" * 5000, b'{"kind": "train"}', b'{"step": 3}'),
        b'{"kind": "train", "step": "3"}',
        b'{"kind": "train", "step": 3, "loss": [1]}',
        b'{"kind": "tr\xffin", "step"',
    ],
)
def test_a_damaged_line_is_left_out(tmp_path: Path, line: bytes) -> None:
    tracker = tracker_with_lines(tmp_path)
    path = tmp_path / METRICS
    whole = path.read_bytes()
    first, rest = whole.split(b"\n", 1)
    path.write_bytes(first + b"\n" + line + b"\n" + rest)
    assert read_metrics(path) == [json.loads(text) for text in whole.splitlines()]
    assert tracker.has("train", 30)
    tracker.rewind(30)
    assert path.read_bytes() == whole


def test_numbers_come_back_to_the_last_bit(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path)
    values = {"a": 0.1 + 0.2, "b": 1e-300, "c": 1 / 3, "d": float("inf")}
    tracker.log("train", 1, values)
    text = (tmp_path / METRICS).read_text()
    tracker.rewind(1)
    assert (tmp_path / METRICS).read_text() == text
    assert {k: v for k, v in read_metrics(tmp_path / METRICS)[0].items() if k in values} == values


def test_has(tmp_path: Path) -> None:
    assert not Tracker(tmp_path).has("train", 10)
    tracker = tracker_with_lines(tmp_path)
    assert tracker.has("train", 10)
    assert not tracker.has("train", 0)
    assert not tracker.has("held_out", 40)


def test_rewinding_nothing(tmp_path: Path) -> None:
    Tracker(tmp_path).rewind(5)
    assert list(tmp_path.iterdir()) == []


def test_tensorboard_is_asked_for_by_flag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[object, ...]] = []

    class Writer:
        def __init__(self, folder: str) -> None:
            calls.append(("open", folder))

        def add_scalar(self, name: str, value: float, step: int) -> None:
            calls.append((name, value, step))

        def close(self) -> None:
            calls.append(("close",))

    class Module:
        SummaryWriter = Writer

    monkeypatch.setattr(tracking, "require", lambda *_, **__: Module)
    plain = Tracker(tmp_path)
    plain.log("train", 1, {"loss": 2.0})
    plain.close()
    assert calls == []
    tracker = Tracker(tmp_path, tensorboard=True)
    tracker.log("train", 1, {"loss": 2.0})
    tracker.close()
    assert calls == [("open", str(tmp_path / "tensorboard")), ("train/loss", 2.0, 1), ("close",)]


def test_a_missing_tensorboard_names_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    for name in [name for name in sys.modules if name.partition(".")[0] == "tensorboard"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(MissingExtraError, match=r"^tensorboard is needed .*maskery\[tensorboard\]"):
        Tracker(tmp_path, tensorboard=True)
