"""A run killed at random instants and resumed is, in the end, the run that was never killed.

Every second kill waits for a checkpoint that is half written, the first, second or third.
`MASKERY_KILLS` says how often each kind of run is killed (1; `make kills`: 100).
"""

from __future__ import annotations

import contextlib
import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from fork_server import ForkServer, Run

from runs import assert_same_outcome, make_pairs, make_persons, make_text, outcome

KILLS = int(os.environ.get("MASKERY_KILLS", "1"))
SEED = int(os.environ.get("MASKERY_KILLS_SEED", "0"))


def half_written(checkpoints: Path) -> set[tuple[str, int]]:
    """Checkpoints that are not complete, by name and time."""
    found = set()
    for path in checkpoints.glob("*.partial"):
        with contextlib.suppress(FileNotFoundError):  # complete by now
            found.add((path.name, path.stat().st_mtime_ns))
    return found


def until_writing(run: Run, checkpoints: Path, left: set[tuple[str, int]], number: int) -> None:
    """Wait until that many checkpoints have lain half written, not `left` ones, or the run ends."""
    seen: set[str] = set()
    while len(seen) < number and not run.ended():
        seen |= {name for name, _ in half_written(checkpoints) - left}


@pytest.mark.parametrize(
    "make", [make_text, make_pairs, make_persons], ids=["text", "pairs", "persons"]
)
def test_killed_runs_end_as_if_nothing_had_happened(
    tmp_path: Path, server: ForkServer, make: Callable[[Path], list[str]]
) -> None:
    arguments = [*make(tmp_path), "--resume", "auto"]
    began = time.monotonic()
    server.run([*arguments, "--output", str(tmp_path / "whole")], tmp_path / "log-whole")
    duration = time.monotonic() - began
    expected = outcome(tmp_path / "whole")
    chance = random.Random(SEED)
    kills, runs, while_writing = 0, 0, 0
    while kills < KILLS:
        runs += 1
        folder, log = tmp_path / f"run-{runs}", tmp_path / f"log-{runs}"
        ended = False
        while not ended and kills < KILLS:
            checkpoints = folder / "checkpoints"
            left, aimed = half_written(checkpoints), kills % 2 == 1
            run = server.start([*arguments, "--output", str(folder)], log)
            if aimed:
                until_writing(run, checkpoints, left, chance.randint(1, 3))
            else:
                # The instant is the point of the test: no waiting for anything makes it shorter.
                wait = chance.uniform(0.0, 1.1 * duration)
                time.sleep(wait)
            run.kill()
            codes = run.wait()
            ended = codes == [0]
            if ended and not aimed:  # the first run was slower than this one
                duration = min(duration, wait)
            assert codes in ([0], [-9]), run.text
            if not ended:
                kills += 1
                while_writing += bool(half_written(checkpoints) - left)
        if not ended:
            server.run([*arguments, "--output", str(folder)], log)
        assert_same_outcome(folder, expected)
    print(f"{kills} kills of {runs} runs, {while_writing} of them while a checkpoint was written")
