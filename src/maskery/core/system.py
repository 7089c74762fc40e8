"""Ask the operating system: memory, launched processes, signals, files that are written whole.

Light to import. `keep_freed_memory` and `quick_imports` change the whole process, so commands call
them and the library does not.

SIGTERM, SIGINT and SIGHUP end a command in good order. `StopSignals` finishes the step that is
being computed, and the run ends with a checkpoint. `signals_stop` unwinds a command at once, and
`signals_held` keeps the signals from processes that it starts. SIGHUP (a terminal is closed) is
taken as SIGTERM, unless it is ignored (`nohup`).

Files and folders are written whole or not at all, even if the power fails. A name may reach the
disk before the content that it was given, so content is flushed before it is put in its place, and
the folder that holds the name after.
"""

import ctypes
import gc
import hashlib
import json
import logging
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Self

from maskery.core.errors import ConfigError, StoppedError

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # Of `mallopt`, from glibc's <malloc.h>
TOP_PAD = 64 << 20  # The heap grows by this much at a time, not for each tensor of a step
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
# A launcher passes on the Ctrl-C that the terminal has already sent to everyone: within these
# seconds a second signal is taken for an echo of the first.
ECHO_SECONDS = 2.0
NOTICE = b"\nstopping after this step, with a checkpoint; a second signal stops at once\n"
log = logging.getLogger(__name__)
METRICS = "metrics.jsonl"


def launched_world_size() -> int:
    """Return how many processes `torchrun` or `accelerate launch` started; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def launched_rank() -> int:
    """Return this process's number among them, from 0."""
    return int(os.environ["RANK"]) if launched_world_size() > 1 else 0


def is_main_process() -> bool:
    """Return True in the process that prints and writes."""
    return launched_rank() == 0


def keep_freed_memory() -> bool:
    """Let large tensors come from memory that this process has had before, where glibc can."""
    # Else glibc returns every tensor of more than 32 MB to the system when it is freed, and a step
    # on a CPU waits while its pages come back, filled with zeros. Peak memory may grow.
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    settings = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1), (M_TOP_PAD, TOP_PAD))
    return all(mallopt(name, value) == 1 for name, value in settings)


@contextmanager
def quick_imports() -> Iterator[None]:
    """Import what a command needs in about two thirds of the time (`benchmarks/start_up.py`)."""
    # Importing torch makes millions of objects that stay, and the collector goes over them again
    # and again. Here it waits, and leaves out for good what is there at the first block's end.
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        if gc.get_freeze_count() == 0:
            gc.freeze()
        gc.enable()


class Interrupted(KeyboardInterrupt):
    """A signal, by its number, ends work in its midst; whatever Ctrl-C undoes is undone."""


class StopSignals(ExitStack):
    """Remembers the first signal; a second one ends the process. A context manager."""

    def __init__(self) -> None:
        super().__init__()
        self.received: int | None = None  # the number of the first signal
        self._at, self._interrupts = 0.0, False

    def __enter__(self) -> Self:
        taken = [n for n in SIGNALS if n != signal.SIGHUP or signal.getsignal(n) != signal.SIG_IGN]
        self.enter_context(_handled(taken, self.handle))
        return self

    @contextmanager
    def interrupting(self) -> Iterator[None]:
        """Let a signal end the block by `Interrupted`, unless other processes wait for us."""
        self._interrupts = launched_world_size() == 1
        try:
            if self._interrupts and self.received is not None:
                raise Interrupted(self.received)
            yield
        finally:
            self._interrupts = False

    def handle(self, number: int, _frame: FrameType | None) -> None:
        """Handle a signal; Python calls this between two instructions."""
        now = time.monotonic()
        if self.received is None:
            self.received, self._at = number, now
            if is_main_process():
                os.write(2, NOTICE)  # not print: the signal may have interrupted one
            if self._interrupts:
                raise Interrupted(number)
        elif launched_world_size() == 1 or now - self._at > ECHO_SECONDS:
            # Not an exception: whoever asks twice waits for no clean-up.
            os._exit(128 + number)


@contextmanager
def signals_stop(how_to_go_on: str) -> Iterator[None]:
    """Unwind the block at a signal, as Ctrl-C does; its `StoppedError` says `how_to_go_on`."""

    def unwind(number: int, _frame: FrameType | None) -> None:
        raise Interrupted(number)

    # Somebody else's handler stays, and a signal that is ignored stays so.
    terms = (signal.SIGTERM, signal.SIGHUP)
    try:
        with _handled([n for n in terms if signal.getsignal(n) == signal.SIG_DFL], unwind):
            yield
    except KeyboardInterrupt as stop:
        number = stop.args[0] if isinstance(stop, Interrupted) else signal.SIGINT
        message = f"stopped by {signal.Signals(number).name}; {how_to_go_on}"
        raise StoppedError(message, exit_code=128 + number) from None


@contextmanager
def signals_held() -> Iterator[None]:
    """Hold signals back in the block, and for good from the processes that are started in it."""
    # Such a process must be ended with SIGKILL, or end by itself.
    held: list[int] = []
    # Blocking alone would not do: any other thread may get the signal, and this one act on it.
    taken = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    with _handled(taken, lambda number, _frame: held.append(number)):
        # A process inherits what is blocked, so it is protected from its first instruction on.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    if held:
        signal.raise_signal(held[0])


@contextmanager
def _handled(numbers: Iterable[int], handler: Callable[[int, Any], None]) -> Iterator[None]:
    """Let `handler` take signals in the block; Python allows that in the main thread alone."""
    in_main_thread = threading.current_thread() is threading.main_thread()
    before = {n: signal.signal(n, handler) for n in numbers if in_main_thread}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def flush(path: Path) -> None:
    """Bring a file, or the names in a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file's content, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def flush_tree(path: Path) -> None:
    """Bring a file, or a folder with everything in it, to disk."""
    for inside in sorted(path.iterdir()) if path.is_dir() else ():
        flush_tree(inside)
    flush(path)


def write_whole(path: Path, data: bytes, *, aside: str = "partial") -> None:
    """Write a file; until it is whole, what was there stays. After an OSError nothing is left."""
    # Processes that may write the same file at once each name a suffix of their own as `aside`.
    partial = path.with_name(f"{path.name}.{aside}")
    try:
        partial.write_bytes(data)
        flush(partial)
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    flush(path.parent)


def require_empty(folder: Path) -> None:
    """Refuse a folder to write that holds something already."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"'{folder}' exists and is not an empty folder; name another")


def replace_folder(new: Path, final: Path) -> None:
    """Put a folder in its place; the one that was there goes only when the new one stands."""
    flush_tree(new)
    old = final.with_name(f"{final.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        final.rename(old)
    new.rename(final)
    flush(final.parent)
    shutil.rmtree(old, ignore_errors=True)


def read_metrics(path: Path, *, tell: bool = False) -> list[dict[str, Any]]:
    """Return the lines of a `metrics.jsonl` but damaged ones, which `tell` warns of."""
    # A line that was cut within a character is a damaged one, not an error.
    read = list(map(_metric, path.read_text("utf-8", errors="replace").splitlines()))
    damaged = [number for number, line in enumerate(read, 1) if line is None]
    if damaged and tell:
        told = (
            "'%s' has %d damaged lines, which are left out (the first is line %d): each must be a "
            "JSON object with a kind, a whole number as step, and numbers"
        )
        log.warning(told, path, len(damaged), damaged[0])
    return [line for line in read if line is not None]


def _metric(text: str) -> dict[str, Any] | None:
    """Read a line; None if it has anything but a kind, a step and numbers."""
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(line, dict) or not isinstance(line.get("kind"), str):
        return None
    numbers = all(isinstance(line[name], int | float) for name in line if name != "kind")
    return line if numbers and isinstance(line.get("step"), int) else None
