from __future__ import annotations

import io
import logging
from collections.abc import Callable

import pytest

from maskery.cli.main import set_up_logging
from maskery.core import bars
from maskery.core.bars import Bar, byte_bar

Stream = Callable[[io.StringIO], None]


class Terminal(io.StringIO):
    """Remembers what is written to it, and what a screen would show of that."""

    def isatty(self) -> bool:
        return True

    def screen(self) -> list[str]:
        """Return the lines, each as what was last written over it left it."""
        shown = []
        for line in self.getvalue().split("\n"):
            cells = ""
            for part in line.split("\r"):
                cells = part + cells[len(part) :]
            shown.append(cells.rstrip())
        return shown


class Clock:
    """Tells the time that a test sets."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(bars, "time", clock)
    return clock


@pytest.fixture
def stderr(monkeypatch: pytest.MonkeyPatch) -> Callable[[io.StringIO], None]:
    # A function: between a fixture and its test pytest puts its own stream there.
    return lambda stream: monkeypatch.setattr("sys.stderr", stream)


@pytest.fixture
def messages() -> logging.Logger:
    return logging.getLogger("maskery")


def test_a_log_file_gets_a_line_each_tenth_if_a_minute_has_passed(
    stderr: Stream, clock: Clock
) -> None:
    stderr(log_file := io.StringIO())
    with Bar(1000, "training", leave=True, mininterval=0, miniters=1) as bar:
        for step in range(1000):
            clock.now += 1.0  # 1,000 seconds: a tenth takes 100, more than a minute
            bar.set_postfix_str(f"loss {step}", refresh=False)
            bar.update()
    text = log_file.getvalue()
    assert "\r" not in text
    lines = text.splitlines()
    assert [line.partition(",")[0] for line in lines] == [
        f"training: {share}% ({share}0/1000)" for share in range(10, 101, 10)
    ]
    assert lines[0].endswith(", loss 99")


def test_a_log_file_gets_no_more_than_a_line_a_minute(stderr: Stream, clock: Clock) -> None:
    stderr(log_file := io.StringIO())
    with Bar(100, "training", mininterval=0, miniters=1) as bar:
        for _ in range(100):
            clock.now += 2.0  # a tenth takes 20 seconds
            bar.update()
    shares = [line.split()[1] for line in log_file.getvalue().splitlines()]
    assert shares == ["30%", "60%", "90%"]


def test_short_work_and_hidden_bars_leave_nothing_in_a_log_file(stderr: Stream) -> None:
    stderr(log_file := io.StringIO())
    for shown in (True, False):
        with byte_bar(None, "reading the alphabet", shown) as bar:
            bar.update(3)
    assert log_file.getvalue() == ""


def test_work_of_unknown_length_is_told_without_a_share(stderr: Stream, clock: Clock) -> None:
    stderr(log_file := io.StringIO())
    with byte_bar(None, "tokenising", True) as bar:
        clock.now += 61
        bar.update(5000)
        bar.refresh()
    assert log_file.getvalue().startswith("tokenising: 5.00k, ")


def test_a_message_stands_on_a_line_of_its_own_and_once(
    stderr: Stream, messages: logging.Logger
) -> None:
    stderr(terminal := Terminal())
    set_up_logging()
    with Bar(10, "training", leave=True, mininterval=0, miniters=1, ncols=80) as bar:
        bar.update(3)
        for _ in range(3):
            messages.info("rerank is 16 and there are 4 images")
        bar.update(7)
    messages.info("rerank is 16 and there are 4 images")
    messages.info("the end")
    screen = terminal.screen()
    assert screen[0] == "rerank is 16 and there are 4 images"
    assert screen[1].startswith("training: 100%|")
    assert screen[2:] == ["the end", ""]


def test_a_bar_that_does_not_stay_leaves_an_empty_line_for_the_message(
    stderr: Stream, messages: logging.Logger
) -> None:
    stderr(terminal := Terminal())
    set_up_logging()
    with byte_bar(None, "reading the alphabet", True):
        pass
    messages.warning("the run starts")
    assert terminal.screen() == ["the run starts", ""]


def test_a_bar_that_waits_is_not_drawn_by_a_message(
    stderr: Stream, messages: logging.Logger
) -> None:
    stderr(terminal := Terminal())
    set_up_logging()
    with Bar(10, "scoring", delay=1000.0) as bar:
        bar.update(3)
        messages.info("a line")
    assert terminal.getvalue().replace("\r", "").strip() == "a line"
