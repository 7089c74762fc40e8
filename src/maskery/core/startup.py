"""Settings of a command's own process, and its launcher's variables; all of it light to import.

Commands use these before anything heavy is loaded. They change the whole process, so the library
does not call them.
"""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# Parameters of `mallopt`, from glibc's <malloc.h>.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
# The heap grows by this much at a time, so that a step does not ask the system for each tensor.
TOP_PAD = 64 << 20


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
    """Let large tensors come from memory that this process has had before.

    By default glibc returns every tensor of more than 32 MB to the system when it is freed, and a
    step on a CPU waits while the same pages are given back and filled with zeros. Peak memory may
    grow.

    Returns:
        True if the allocator took the settings; only glibc does.
    """
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
    """Import what a command needs in about two thirds of the time.

    Importing torch and Transformers makes millions of objects that stay, and the collector goes
    over all of them again and again (`benchmarks/start_up.py` measures it). Here it waits, and what
    is there at the end of the first such block is left out of every later pass too.
    """
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
