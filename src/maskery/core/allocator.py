"""The C library's allocator, told to keep what a training step frees for the next step."""

from __future__ import annotations

import ctypes
import sys

# glibc's <malloc.h>.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
TOP_PAD = 64 << 20


def keep_freed_memory() -> bool:
    """Let large tensors come from memory that this process has had before; for a process of ours.

    By default glibc returns every tensor of more than 32 MB to the system when it is freed, and a
    step on a CPU waits while the same pages are given back and filled with zeros. It changes the
    whole process, so commands call it and the library does not. Peak memory may grow.

    Returns:
        Whether the allocator took it; only glibc does.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    settings = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1), (M_TOP_PAD, TOP_PAD))
    return all(mallopt(name, value) == 1 for name, value in settings)
