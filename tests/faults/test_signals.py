"""SIGTERM and SIGINT: the step is finished, a checkpoint written, and the run can go on."""

from __future__ import annotations

import signal
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from fork_server import ForkServer, Run

from maskery.core import system
from maskery.core.system import StopSignals
from runs import assert_same_outcome, make_text, outcome


def wait_for_steps(run: Run, metrics: Path) -> None:
    """Wait until the first steps are logged."""
    while not metrics.exists() or '"train"' not in metrics.read_text():
        assert not run.ended(within=0.01), run.text


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Only signals and the end write checkpoints."""
    more = ["--resume", "auto", "--checkpoint-every", "500", "--max-steps", "60"]
    return [*make_text(tmp_path_factory.mktemp("home")), *more, "--eval-every", "500"]


@pytest.fixture(scope="module")
def whole(
    tmp_path_factory: pytest.TempPathFactory, server: ForkServer, arguments: list[str]
) -> Callable[[int], dict[str, Any]]:
    """What a run on so many processes leaves that nothing has ended."""

    @cache
    def trained(ranks: int) -> dict[str, Any]:
        folder = tmp_path_factory.mktemp("whole")
        server.run([*arguments, "--output", str(folder / "run")], folder, ranks=ranks)
        return outcome(folder / "run")

    return trained


@pytest.mark.parametrize(
    ("number", "code", "ranks"),
    [
        (signal.SIGTERM, 143, 1),
        (signal.SIGTERM, 143, 2),
        (signal.SIGINT, 130, 2),
        (signal.SIGHUP, 129, 1),
    ],
)
def test_a_signal_ends_a_run_that_goes_on_as_if_nothing_had_happened(
    tmp_path: Path,
    server: ForkServer,
    arguments: list[str],
    whole: Callable[[int], dict[str, Any]],
    number: signal.Signals,
    code: int,
    ranks: int,
) -> None:
    cut = tmp_path / "cut"
    run = server.start([*arguments, "--output", str(cut)], tmp_path / "log", ranks=ranks)
    wait_for_steps(run, cut / "metrics.jsonl")
    run.kill(number)
    assert run.wait() == [code] * ranks, run.text
    assert "Traceback" not in run.text
    assert run.text.count("stopping after this step") == 1
    assert run.text.count(f"stopped by {number.name} after step") == 1
    (checkpoint,) = (cut / "checkpoints").glob("step-*")
    assert 0 < int(checkpoint.name.removeprefix("step-")) < 60
    server.run([*arguments, "--output", str(cut)], tmp_path / "log-again", ranks=ranks)
    assert_same_outcome(cut, whole(ranks))


def test_a_second_signal_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []
    monkeypatch.setattr(system.os, "_exit", ended.append)
    monkeypatch.setattr(system.os, "write", lambda *_: 0)
    before = signal.getsignal(signal.SIGTERM)
    with StopSignals() as stop:
        signal.raise_signal(signal.SIGTERM)
        assert stop.received == signal.SIGTERM
        assert ended == []
        signal.raise_signal(signal.SIGINT)
        assert ended == [130]
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_launchers_echo_is_no_second_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []
    clock = iter([100.0, 100.5, 103.0])
    monkeypatch.setattr(system.os, "_exit", ended.append)
    monkeypatch.setattr(system.os, "write", lambda *_: 0)
    monkeypatch.setattr(system.time, "monotonic", lambda: next(clock))
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    stop = StopSignals()
    stop.handle(signal.SIGINT, None)
    stop.handle(signal.SIGTERM, None)
    assert ended == []
    stop.handle(signal.SIGTERM, None)
    assert ended == [143]
