"""SIGTERM and SIGINT end a run in good order: after the step, with a checkpoint."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any, Self

from maskery.core.launcher import is_main_process, launched_world_size
from maskery.core.stopping import SIGNALS

# A launcher passes on the Ctrl-C that the terminal has already sent to everyone.
ECHO_SECONDS = 2.0
NOTICE = b"\nstopping after this step, with a checkpoint; a second signal stops at once\n"


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is to happen after a step beside what the config says.

    Attributes:
        signal: The signal that asked for the end, or None.
        saves: Whether it is time for a checkpoint.
    """

    signal: int | None
    saves: bool

    @property
    def stops(self) -> bool:
        """Whether the run is to end."""
        return self.signal is not None


class Interrupted(BaseException):
    """A signal has asked for the end in the middle of what need not be finished."""


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
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self.handle) for number in SIGNALS}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def interrupting(self) -> Iterator[None]:
        """Let a signal end the block at once, where no other process waits for this one.

        Raises:
            Interrupted: It came, in the block or before.
        """
        self._interrupts = launched_world_size() == 1
        try:
            if self._interrupts and self.received is not None:
                raise Interrupted
            yield
        finally:
            self._interrupts = False

    def handle(self, number: int, frame: FrameType | None) -> None:
        """What Python calls between two instructions."""
        del frame
        now = time.monotonic()
        if self.received is None:
            self.received, self._at = number, now
            if is_main_process():
                os.write(2, NOTICE)  # printing may be what was interrupted
            if self._interrupts:
                raise Interrupted
        elif launched_world_size() == 1 or now - self._at > ECHO_SECONDS:
            os._exit(128 + number)
