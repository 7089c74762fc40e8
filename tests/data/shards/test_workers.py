"""The processes of `maskery tokenize` end with the command: at once, and without a word."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from tiny_text import lines, save_tiny_model

PATIENCE = 300.0
"""Seconds after which a command is taken to hang."""
# Workers run this file again. They never get past the moment that is asked for, and tell of it
# through a pipe of the command, which closes with it.
ENDLESS = """
import os, sys, threading
def stay(*arguments):
    with open(f"/proc/{os.getppid()}/fd/{os.environ['PIPE']}", "w") as out:
        print(os.getpid(), file=out)
    threading.Event().wait()
if __name__ == "__main__":
    from maskery.cli.main import main
    sys.exit(main(sys.argv[1:]))
if os.environ["MOMENT"] == "importing":
    stay()
from maskery.data.shards import workers
workers.do_piece = stay
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    (folder / "corpus.txt").write_text("\n".join(lines(100)))
    (folder / "endless.py").write_text(ENDLESS)
    save_tiny_model(folder / "model")
    return folder


@contextmanager
def endless(home: Path, moment: str) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """A command in a process group of its own, and the two workers that have come to a moment."""
    told, tells = os.pipe()
    command = [sys.executable, str(home / "endless.py"), "tokenize", str(home / "corpus.txt")]
    command += [str(home / "shards"), "--model", str(home / "model"), "--workers", "2"]
    more = {"PYTHONPATH": os.pathsep.join(sys.path), "MOMENT": moment, "PIPE": str(tells)}
    started = subprocess.Popen(
        [*command, "--shard-mb", "0.001"],
        env={**os.environ, **more},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        pass_fds=(tells,),
    )
    os.close(tells)
    try:
        with os.fdopen(told) as pipe:
            workers = [int(pipe.readline() or -1) for _ in range(2)]
            assert -1 not in workers, started.communicate()[0]
            yield started, workers
    finally:
        if started.poll() is None:
            os.killpg(started.pid, signal.SIGKILL)
            started.communicate()


def is_deaf(process: int, number: signal.Signals) -> bool:
    """Whether a process blocks a signal."""
    fields = dict(x.split(":\t") for x in Path(f"/proc/{process}/status").read_text().splitlines())
    return bool(int(fields["SigBlk"], 16) >> (number - 1) & 1)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("moment", ["importing", "working"])
def test_a_signal_ends_command_and_workers_with_one_line(
    home: Path, moment: str, number: signal.Signals
) -> None:
    with endless(home, moment) as (started, workers):
        # Else it depends on who is faster, the worker with its traceback or the command.
        assert all(is_deaf(worker, number) for worker in workers)
        # A terminal and Slurm send it to everyone, `kill` to the command alone.
        everyone = (moment == "importing") == (number == signal.SIGINT)
        (os.killpg if everyone else os.kill)(started.pid, number)
        printed, _ = started.communicate(timeout=PATIENCE)
    assert started.returncode == 128 + number
    # The progress bar overwrites itself, and is no line.
    said = [line for line in printed.splitlines() if line and not line.startswith("tokenising:")]
    assert said == [
        f"maskery tokenize: stopped by {number.name}; what is complete is kept: repeat the command "
        "to go on"
    ]
    assert not any(psutil.pid_exists(worker) for worker in workers)


def test_a_failure_does_not_wait_for_other_pieces(home: Path) -> None:
    with endless(home, "working") as (started, workers):
        os.kill(workers[0], signal.SIGKILL)
        printed, _ = started.communicate(timeout=PATIENCE)
    assert started.returncode == 2
    assert printed.splitlines()[-1].startswith("maskery tokenize: a tokenising process died")
    assert not psutil.pid_exists(workers[1])
