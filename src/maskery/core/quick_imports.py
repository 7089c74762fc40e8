"""Imports of heavy libraries without passes of the garbage collector."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quick_imports() -> Iterator[None]:
    """Import what a command needs in about two thirds of the time; for a process of ours.

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
