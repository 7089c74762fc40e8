"""SIGTERM, SIGINT and SIGHUP end a command in good order.

`StopSignals` finishes the step that is being computed, and the run ends with a checkpoint.
`signals_stop` unwinds a command at once, and `signals_held` keeps the signals from processes that
it starts. SIGHUP (a terminal is closed) is taken as SIGTERM, unless it is ignored (`nohup`).
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Self

from maskery.core.errors import StoppedError
from maskery.core.startup import is_main_process, launched_world_size

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
# A launcher passes on the Ctrl-C that the terminal has already sent to everyone: within these
# seconds a second signal is taken for an echo of the first.
ECHO_SECONDS = 2.0
NOTICE = b"\nstopping after this step, with a checkpoint; a second signal stops at once\n"


class Interrupted(BaseException):
    """A signal asks for the end in the middle of work that need not be finished."""


class StopSignals:
    """Remembers the first signal; a second one ends the process at once.

    Use as a context manager around the steps. Outside the main thread, where Python allows no
    handlers, it does nothing.

    Attributes:
        received: The number of the first signal, or None.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._at = 0.0
        self._before: dict[int, Any] = {}
        self._interrupts = False

    def __enter__(self) -> Self:
        if _in_main_thread():
            taken = [n for n in SIGNALS if n != signal.SIGHUP or not _is_ignored(n)]
            self._before = {number: signal.signal(number, self.handle) for number in taken}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def interrupting(self) -> Iterator[None]:
        """Let a signal end the block at once, unless other processes wait for this one.

        Raises:
            Interrupted: A signal came, in the block or before.
        """
        self._interrupts = launched_world_size() == 1
        try:
            if self._interrupts and self.received is not None:
                raise Interrupted
            yield
        finally:
            self._interrupts = False

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal; Python calls this between two instructions."""
        del frame
        now = time.monotonic()
        if self.received is None:
            self.received, self._at = number, now
            if is_main_process():
                os.write(2, NOTICE)  # not print: the signal may have interrupted one
            if self._interrupts:
                raise Interrupted
        elif launched_world_size() == 1 or now - self._at > ECHO_SECONDS:
            os._exit(128 + number)


class TerminatedError(KeyboardInterrupt):
    """SIGTERM or SIGHUP, raised so that whatever Ctrl-C undoes is undone by them too.

    Attributes:
        number: The signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


@contextmanager
def signals_stop(how_to_go_on: str) -> Iterator[None]:
    """Unwind the block at a signal, as Ctrl-C does, and end it with a `StoppedError`.

    Args:
        how_to_go_on: Ends the message: what is kept, and what the user does next.

    Raises:
        StoppedError: A signal came.
    """
    # Somebody else's handler stays, and a signal that is ignored stays so.
    own = [
        number
        for number in (signal.SIGTERM, signal.SIGHUP)
        if _in_main_thread() and signal.getsignal(number) == signal.SIG_DFL
    ]
    for number in own:
        signal.signal(number, _unwind)
    try:
        yield
    except KeyboardInterrupt as stop:
        number = signal.Signals(getattr(stop, "number", signal.SIGINT))
        raise StoppedError(
            f"stopped by {number.name}; {how_to_go_on}", exit_code=128 + number
        ) from None
    finally:
        for number in own:
            signal.signal(number, signal.SIG_DFL)


@contextmanager
def signals_held() -> Iterator[None]:
    """Hold signals back in the block, and from the processes that are started in it for good.

    Whoever starts such a process must end it with SIGKILL, or it must end by itself.
    """
    held: list[int] = []
    before: dict[signal.Signals, Any] = {}
    if _in_main_thread():
        # Blocking alone would not do: any other thread may get the signal, and this one act on it.
        taken = [number for number in SIGNALS if not _is_ignored(number)]
        before = {n: signal.signal(n, lambda number, _: held.append(number)) for n in taken}
    # A process inherits what is blocked, so it is protected from its first instruction on.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for one, handler in before.items():
            signal.signal(one, handler)
    if held:
        signal.raise_signal(held[0])


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _is_ignored(number: int) -> bool:
    return signal.getsignal(number) == signal.SIG_IGN


def _unwind(number: int, frame: FrameType | None) -> None:
    del frame
    raise TerminatedError(number)
