from __future__ import annotations

import logging
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from maskery.core.errors import ConfigError
from maskery.core.processes import Processes
from maskery.training.journal import Journal
from maskery.training.tracking import Tracker

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
    assert "1 steps up to step 3 were skipped" in caplog.text
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()
