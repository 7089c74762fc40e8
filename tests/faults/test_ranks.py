"""One of two processes is killed, stopped or slow: one line, in time, and nothing is lost."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fork_server import ForkServer, Run

from maskery.core.system import METRICS, read_metrics
from runs import assert_same_outcome, make_text, outcome

# Seconds of silence that end a run here; half an hour by default.
TIMEOUT = 20


def in_a_step(folder: Path) -> bool:
    """Steps have begun, and none has been measured since."""
    lines = read_metrics(folder / METRICS) if (folder / METRICS).exists() else []
    return any(line["kind"] == "train" for line in lines)


def in_an_evaluation(folder: Path) -> bool:
    """The line is written that comes just before the figures of step 4, and they are not."""
    lines = read_metrics(folder / METRICS) if (folder / METRICS).exists() else []
    return any((line["kind"], line["step"]) == ("train", 4) for line in lines)


def in_a_save(folder: Path) -> bool:
    return any((folder / "checkpoints").glob("*.partial"))


PLACES = [in_a_step, in_an_evaluation, in_a_save]
CASES = [(how, place) for how in ("killed", "stopped", "slow") for place in PLACES]
QUICK = [("killed", in_a_save), ("stopped", in_an_evaluation), ("slow", in_a_step)]


def harm(run: Run, how: str, rank: int) -> None:
    """Kill or stop one rank, or stop it for a moment again and again."""
    pid = run.pids[rank]
    if how != "slow":
        os.kill(pid, signal.SIGKILL if how == "killed" else signal.SIGSTOP)
        return
    for _ in range(20):
        os.kill(pid, signal.SIGSTOP)  # for as long as an answer of the server takes
        if run.ended():
            return
        os.kill(pid, signal.SIGCONT)


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return [*make_text(tmp_path_factory.mktemp("home")), "--resume", "auto"]


@pytest.fixture(scope="module")
def expected(
    tmp_path_factory: pytest.TempPathFactory, server: ForkServer, arguments: list[str]
) -> dict[str, Any]:
    """What a run leaves that nothing befell."""
    folder = tmp_path_factory.mktemp("whole")
    server.run([*arguments, "--output", str(folder / "run")], folder, ranks=2)
    return outcome(folder / "run")


@pytest.mark.parametrize("rank", [0, 1], ids=["main", "other"])
@pytest.mark.parametrize(
    ("how", "place"), CASES, ids=[f"{how}-{place.__name__}" for how, place in CASES]
)
def test_what_befalls_one_process_loses_nothing(
    tmp_path: Path,
    server: ForkServer,
    arguments: list[str],
    request: pytest.FixtureRequest,
    how: str,
    place: Callable[[Path], bool],
    rank: int,
) -> None:
    if "MASKERY_KILLS" not in os.environ and not ((how, place) in QUICK and rank == 1):
        pytest.skip("`make kills` tries all of them")
    expected = request.getfixturevalue("expected")  # trained where a case is not skipped
    cut, patience = tmp_path / "cut", {"MASKERY_TIMEOUT": str(TIMEOUT)} if how != "slow" else {}
    again = [*arguments, "--output", str(cut)]
    run = server.start(again, tmp_path / "log", ranks=2, environment=patience)
    while not place(cut):
        assert not run.ended(), run.text
    harm(run, how, rank)
    if how == "slow":
        assert run.wait() == [0, 0], run.text
    else:
        run.wait_for(1 - rank)
        with contextlib.suppress(ProcessLookupError):
            os.kill(run.pids[rank], signal.SIGKILL)  # as a launcher does now
        codes = run.wait()
        assert (codes[rank], codes[1 - rank]) == (-signal.SIGKILL, 2), run.text
        told = [line for line in run.text.splitlines() if "another process of the run" in line]
        assert len(told) == 1, run.text
        assert "Traceback" not in run.text
        server.run(again, tmp_path / "log-again", ranks=2, environment=patience)
    assert_same_outcome(cut, expected)
