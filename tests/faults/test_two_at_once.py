"""Two commands for one run folder: one trains, the other is told so and touches nothing."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from fork_server import ForkServer

from maskery.core.system import METRICS, read_metrics
from runs import assert_same_outcome, make_text, outcome


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_second_process_is_refused_while_the_first_trains(
    tmp_path: Path, server: ForkServer, ranks: int
) -> None:
    arguments = [*make_text(tmp_path), "--resume", "auto"]
    whole, run = tmp_path / "whole", tmp_path / "run"
    server.run([*arguments, "--output", str(whole)], tmp_path / "log-whole", ranks=ranks)
    first = server.start([*arguments, "--output", str(run)], tmp_path / "log-first", ranks=ranks)
    while not (run / METRICS).exists():
        assert not first.ended(within=0.01), first.text
    first.kill(signal.SIGSTOP)  # it does not end before the second has looked
    second = server.start([*arguments, "--output", str(run)], tmp_path / "log-second", ranks=ranks)
    assert second.wait() == [2] * ranks, second.text
    assert second.text.count("in use by another process") == 1
    assert "Traceback" not in second.text
    first.kill(signal.SIGCONT)
    assert first.wait() == [0] * ranks, first.text
    places = [(line["kind"], line["step"]) for line in read_metrics(run / METRICS)]
    assert len(places) == len(set(places))
    assert_same_outcome(run, outcome(whole))
