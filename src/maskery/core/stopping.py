"""SIGTERM and Ctrl-C end a command that works in processes: it unwinds, and they hear nothing."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from maskery.core.errors import StoppedError

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class TerminatedError(KeyboardInterrupt):
    """SIGTERM, to everything that Ctrl-C passes through."""


@contextmanager
def signals_stop(how_to_go_on: str) -> Iterator[None]:
    """What is done within is undone at SIGTERM as at Ctrl-C, and both end as a `StoppedError`.

    Args:
        how_to_go_on: What is kept, and what the user does next.

    Raises:
        StoppedError: One of them came.
    """
    # Somebody else's handler stays, and a signal that is ignored stays so.
    takes = _in_main_thread() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    if takes:
        signal.signal(signal.SIGTERM, _unwind)
    try:
        yield
    except KeyboardInterrupt as stop:
        number = signal.SIGTERM if isinstance(stop, TerminatedError) else signal.SIGINT
        raise StoppedError(
            f"stopped by {number.name}; {how_to_go_on}", exit_code=128 + number
        ) from None
    finally:
        if takes:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def signals_held() -> Iterator[None]:
    """Start processes within: no signal comes between, and they never get one of these themselves.

    They must be ended by whoever started them, with SIGKILL, or end by themselves.
    """
    held: list[int] = []
    before: dict[signal.Signals, Any] = {}
    if _in_main_thread():
        # Blocking alone would not do: any other thread may get the signal, and this one act on it.
        before = {n: signal.signal(n, lambda number, _: held.append(number)) for n in SIGNALS}
    # What is blocked is inherited, and so it is from the first instruction of the process on.
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


def _unwind(number: int, frame: FrameType | None) -> None:
    del number, frame
    raise TerminatedError
