from __future__ import annotations

import json
import logging
import math
from collections import deque
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker

from maskery.core.errors import ConfigError, MissingExtraError
from maskery.core.processes import Processes, join_processes
from maskery.core.system import METRICS, read_metrics
from maskery.training.journal import (
    HISTORY,
    Journal,
    Tracker,
    Window,
    check_trackers,
    usual_loss,
)

CPU = torch.device("cpu")


def journal(folder: Path, best: str | None = None) -> Journal:
    return Journal(Tracker(folder), Processes(), best)


def write(book: Journal, step: int, loss: float) -> dict[str, float]:
    book.window.add({"loss": torch.tensor(loss), "grad_norm": torch.tensor(loss)}, 1)
    return book.line(step, {"epoch": 0})


@pytest.mark.parametrize(
    ("metric", "values", "expected"),
    [
        (None, [{"loss": 3.0, "top1": 0.0}, {"loss": 2.0, "top1": 0.0}], [True, True]),
        (None, [{"loss": 3.0}, {"loss": 3.0}, {"loss": 4.0}, {"loss": 2.9}], [1, 0, 0, 1]),
        ("top1", [{"loss": 3.0, "top1": 0.2}, {"loss": 2.0, "top1": 0.1}], [True, False]),
        ("right_loss", [{"right_loss": 2.0}, {"right_loss": 1.0}], [True, True]),
        ("perplexity", [{"perplexity": 9.0}, {"perplexity": 11.0}], [True, False]),
        (None, [{"loss": math.nan}, {"loss": 1.0}], [False, True]),
        ("none", [{"loss": 3.0}, {"loss": 2.0}], [False, False]),
        (None, [{}, {}], [False, False]),
    ],
)
def test_the_best(
    tmp_path: Path, metric: str | None, values: list[dict[str, float]], expected: list[bool]
) -> None:
    book = journal(tmp_path, metric)
    found = [book.held_out(step, figures) for step, figures in enumerate(values, 1)]
    assert found == [bool(flag) for flag in expected]


class OtherProcess(Processes):
    """A process that is not the main one, which has decided already."""

    def on_main(self, work: Callable[[], str | None]) -> str | None:
        del work
        return self.decided

    decided: str | None = None


@pytest.mark.parametrize("decided", ["best", None])
def test_the_main_process_decides_what_is_best(tmp_path: Path, decided: str | None) -> None:
    other = OtherProcess(rank=1, world_size=2)
    object.__setattr__(other, "decided", decided)
    book = Journal(Tracker(tmp_path), other, None)
    # It has not read the lines of the run that goes on, so it would take anything for the best.
    assert book.held_out(4, {"loss": 3.0}) == (decided == "best")
    assert not (tmp_path / "metrics.jsonl").exists()


def test_the_start_is_never_the_best_and_no_bar(tmp_path: Path) -> None:
    book = journal(tmp_path)
    assert not book.held_out(0, {"loss": 1.0})
    assert book.held_out(4, {"loss": 5.0})


def test_a_figure_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"best_metric is 'top9'.*choose loss, top1, or none"):
        journal(tmp_path, "top9").held_out(0, {"loss": 1.0, "top1": 0.1})
    assert not (tmp_path / "metrics.jsonl").exists()


def test_a_rewound_journal_goes_on_as_the_one_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    book = journal(tmp_path)
    for step in range(1, 11):
        write(book, step, 2.0 + 0.01 * (step % 3))
    book.held_out(10, {"loss": 2.5})
    book.tracker.log("train", 11, {"loss": 99.0})
    book.held_out(11, {"loss": 0.1})
    again = journal(tmp_path)
    again.rewind(10, (), CPU)
    assert [line["step"] for line in again.tracker.lines()] == [*range(1, 11), 10]
    assert not again.held_out(12, {"loss": 2.6})
    assert again.held_out(13, {"loss": 2.4})
    with caplog.at_level(logging.WARNING):
        assert write(again, 14, 7.0)["loss_spike_above"] == pytest.approx(2.01)
    assert "the loss is 7.000 at step 14, and was about 2.010 before" in caplog.text


def test_skipped_steps_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    book = journal(tmp_path)
    with caplog.at_level(logging.WARNING):
        values = write(book, 3, math.nan)
    assert values["skipped_steps"] == 1
    assert "skipped up to step 3: 1 step," in caplog.text
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()


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
        b'{"kind": "train", "step": "three"}',
        b'{"kind": "train", "step": 3, "loss": [1]}',
        b'{"kind": "tr\xffin", "step"',
    ],
)
def test_a_damaged_line_is_left_out_and_told(
    tmp_path: Path, line: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = tracker_with_lines(tmp_path)
    path = tmp_path / METRICS
    whole = path.read_bytes()
    first, rest = whole.split(b"\n", 1)
    path.write_bytes(first + b"\n" + line + b"\n" + rest)
    assert read_metrics(path) == [json.loads(text) for text in whole.splitlines()]
    assert 30 in [line["step"] for line in tracker.lines()]
    assert not caplog.records
    tracker.rewind(30)
    assert path.read_bytes() == whole
    assert "metrics.jsonl' has 1 damaged lines" in caplog.text
    assert "the first is line 2" in caplog.text


def test_numbers_come_back_to_the_last_bit(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path)
    values = {"a": 0.1 + 0.2, "b": 1e-300, "c": 1 / 3, "d": float("inf")}
    tracker.log("train", 1, values)
    text = (tmp_path / METRICS).read_text()
    tracker.rewind(1)
    assert (tmp_path / METRICS).read_text() == text
    assert {k: v for k, v in read_metrics(tmp_path / METRICS)[0].items() if k in values} == values


def test_a_journal_knows_which_held_out_figures_it_has(tmp_path: Path) -> None:
    journal = Journal(tracker_with_lines(tmp_path), join_processes(), None)
    assert not journal.has_held_out(40)
    journal.held_out(40, {"loss": 1.5})
    assert journal.has_held_out(40)
    assert not journal.has_held_out(35)


def test_rewinding_nothing(tmp_path: Path) -> None:
    Tracker(tmp_path).rewind(5)
    assert list(tmp_path.iterdir()) == []


def test_tensorboard_gets_every_line(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    plain = Tracker(tmp_path)
    plain.log("train", 1, {"loss": 2.0})
    plain.close()
    assert [path.name for path in tmp_path.iterdir()] == [METRICS]
    tracker = Tracker(tmp_path, trackers=("tensorboard",))
    tracker.log("train", 2, {"loss": 2.5, "epoch": 0})
    tracker.log("held_out", 2, {"loss": 3.0})
    tracker.close()
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    found = {n: [(e.step, e.value) for e in events.Scalars(n)] for n in events.Tags()["scalars"]}
    assert found == {
        "train/loss": [(2, 2.5)],
        "train/epoch": [(2, 0.0)],
        "held_out/loss": [(2, 3.0)],
    }
    assert [line["step"] for line in read_metrics(tmp_path / METRICS)] == [1, 2, 2]


def test_other_trackers_get_lines_and_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[object, ...]] = []

    class Remote(GeneralTracker):  # type: ignore[misc]
        name, requires_logging_directory = "wandb", False

        def __init__(self, project: str) -> None:
            calls.append(("project", project))

        def start(self) -> None:
            calls.append(("start",))

        def store_init_configuration(self, values: dict[str, object]) -> None:
            calls.append(("settings", values["seed"]))

        def log(self, values: dict[str, float], step: int | None = None) -> None:
            calls.append((step, values))

        def finish(self) -> None:
            calls.append(("finish",))

    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "wandb", Remote)
    tracker = Tracker(tmp_path, trackers=("wandb",), settings={"seed": 3})
    tracker.log("train", 1, {"loss": 2.0})
    tracker.close()
    assert calls == [
        *(("project", "maskery"), ("start",), ("settings", 3)),
        *((1, {"train/loss": 2.0}), ("finish",)),
    ]


def test_the_start_of_a_branch_counts_for_no_patience(tmp_path: Path) -> None:
    book = Journal(Tracker(tmp_path), Processes(), None, 5)
    for step, loss, since in ((5, 1.0, 0), (6, 3.0, 0), (7, 4.0, 1), (8, 2.0, 0)):
        book.held_out(step, {"loss": loss})
        assert book.since_best == since
        again = Journal(Tracker(tmp_path), Processes(), None, 5)
        again.rewind(step, (), CPU)
        assert again.since_best == since


def test_a_tracker_without_its_package_is_told(tmp_path: Path) -> None:
    with pytest.raises(MissingExtraError, match=r"^wandb is needed to write to wandb .* wandb$"):
        check_trackers(("tensorboard", "wandb"))
    with pytest.raises(MissingExtraError, match=r"^wandb is needed to write to wandb .* wandb$"):
        Tracker(tmp_path, trackers=("wandb",))


def test_a_missing_tensorboard_names_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    for name in [name for name in sys.modules if name.partition(".")[0] == "tensorboard"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    monkeypatch.delattr(torch.utils, "tensorboard", raising=False)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(MissingExtraError, match=r"^tensorboard is needed .*maskery\[tensorboard\]"):
        Tracker(tmp_path, trackers=("tensorboard",))


ALONE = Processes()


def losses(*values: float) -> list[dict[str, torch.Tensor]]:
    return [{"loss": torch.tensor(v), "grad_norm": torch.tensor(2 * v)} for v in values]


def test_means_are_over_the_sound_steps() -> None:
    window = Window()
    for step in losses(1.0, 2.0, math.nan, 6.0):
        window.add(step, 10)
    means = window.means(ALONE)
    assert (means["loss"], means["grad_norm"], means["skipped_steps"]) == (3.0, 6.0, 1.0)
    assert list(means)[:2] == ["loss", "grad_norm"]


def test_a_window_without_a_sound_step_has_no_losses() -> None:
    window = Window()
    for step in losses(math.inf, math.nan):
        window.add(step, 10)
    assert window.means(ALONE).keys() == {"skipped_steps", "tokens_per_second"}


@pytest.mark.parametrize("cut", [0, 1, 4, 7])
def test_a_window_cut_by_a_checkpoint_is_the_same_to_the_last_bit(cut: int) -> None:
    steps = losses(*(math.sin(number) / 3 for number in range(6)), math.nan)
    whole, first = Window(), Window()
    for step in steps:
        whole.add(step, 3)
    for step in steps[:cut]:
        first.add(step, 3)
    state = tuple(json.loads(json.dumps(first.state(ALONE))))
    second = Window.restored(state, ALONE, CPU)
    for step in steps[cut:]:
        second.add(step, 3)
    assert (second.sums["steps"], second.sums["tokens"]) == (7, 21)
    expected, found = whole.means(ALONE), second.means(ALONE)
    for name in ("loss", "grad_norm", "skipped_steps"):
        assert found[name] == expected[name]


def test_another_number_of_processes_shares_the_sums_anew() -> None:
    row = {"loss": 1.5, "grad_norm": 4.0, "skipped_steps": 0.0, "steps": 2.0, "tokens": 10.0}
    state = (row, {**row, "loss": 0.5, "tokens": 6.0})
    alone = Window.restored(state, ALONE, CPU)
    assert float(alone.sums["loss"]) == 2.0
    assert float(alone.sums["grad_norm"]) == 4.0  # everyone's already
    assert (alone.sums["steps"], alone.sums["tokens"]) == (2, 16)
    third = Window.restored(state, Processes(rank=2, world_size=3), CPU)
    assert float(third.sums["loss"]) == 0.0
    assert [float(third.sums[n]) for n in ("steps", "tokens", "grad_norm")] == [2, 0, 4.0]
    second = Window.restored(state, Processes(rank=1, world_size=2), CPU)
    assert (float(second.sums["loss"]), second.sums["tokens"]) == (0.5, 6)


def test_spikes_stand_out_of_the_lines_before() -> None:
    generator = np.random.default_rng(0)
    quiet = [2.0 + 0.05 * float(x) for x in generator.normal(size=200)]
    lines = deque[float](maxlen=HISTORY)

    def usual_before(loss: float) -> float | None:
        usual = usual_loss(lines, loss)
        lines.append(loss)
        return usual

    assert [usual_before(loss) for loss in quiet] == [None] * 200
    usual = usual_before(4.0)
    assert usual is not None
    assert usual == pytest.approx(float(np.median(quiet[-32:])))
    # One spike does not make the next one usual.
    assert usual_before(4.0) is not None
    assert usual_before(2.0) is None
    # A fall is none, nor is a steady fall from high up.
    assert usual_before(0.1) is None
    falling = [10.0 * 0.9**step for step in range(40)][-HISTORY:]
    assert usual_loss(falling, 10.0 * 0.9**40) is None


def test_the_first_lines_are_no_spikes() -> None:
    assert [usual_loss([1.0] * count, 50.0) for count in (0, 1, 7)] == [None] * 3
    assert usual_loss([1.0] * 8, 50.0) == 1.0
    assert usual_loss([1.0] * 8, 1.05) is None
