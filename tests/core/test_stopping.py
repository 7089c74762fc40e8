from __future__ import annotations

import signal
import subprocess
import sys
import threading

import pytest

from maskery.core.errors import StoppedError
from maskery.core.stopping import SIGNALS, signals_held, signals_stop

PRINT_BLOCKED = "import signal; print(*sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])))"


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)]
)
def test_a_signal_unwinds_and_has_its_code(number: signal.Signals, code: int) -> None:
    undone = []

    def interrupted() -> None:
        with signals_stop("go on so"):
            try:
                signal.raise_signal(number)
            finally:
                undone.append(True)

    with pytest.raises(StoppedError, match=f"stopped by {number.name}; go on so") as stopped:
        interrupted()
    assert (undone, stopped.value.exit_code) == ([True], code)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with signals_stop(""):
            signal.raise_signal(signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_waits_until_the_processes_are_started(number: signal.Signals) -> None:
    reached = []

    def interrupted() -> None:
        with signals_held():
            signal.raise_signal(number)
            # Another thread, which blocks nothing, may be the one that gets it.
            begun.set()
            sender.join()
            reached.append("started")
        reached.append("not reached")

    def send() -> None:
        begun.wait()
        signal.raise_signal(number)

    begun, sender = threading.Event(), threading.Thread(target=send)
    sender.start()
    with pytest.raises(StoppedError, match=number.name), signals_stop(""):
        interrupted()
    assert reached == ["started"]


def test_what_is_started_while_signals_are_held_never_gets_them() -> None:
    command = [sys.executable, "-c", PRINT_BLOCKED]
    with signals_held():
        started = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    printed, _ = started.communicate()
    assert printed.split() == [str(int(number)) for number in sorted(SIGNALS)]
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, []) & set(SIGNALS)
