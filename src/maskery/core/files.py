"""Files and folders that are there whole or not at all, a loss of power included.

A name may reach the disk before the content that it was given, so content is flushed before it is
put in its place, and the folder that holds the name after.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def flush(path: Path) -> None:
    """Bring a file, or the names in a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_tree(folder: Path) -> None:
    """Bring a folder with everything in it to disk."""
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            flush_tree(path)
        else:
            flush(path)
    flush(folder)


def write_whole(path: Path, data: bytes) -> None:
    """Write a file; until it is whole, what was there stays.

    Raises:
        OSError: It cannot be written; nothing is left of it.
    """
    partial = path.with_name(f"{path.name}.partial")
    try:
        partial.write_bytes(data)
        flush(partial)
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    flush(path.parent)


def replace_folder(new: Path, final: Path) -> None:
    """Put a folder in its place; the one that was there goes only when the new one stands.

    Raises:
        OSError: It cannot be done.
    """
    flush_tree(new)
    old = final.with_name(f"{final.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        final.rename(old)
    new.rename(final)
    flush(final.parent)
    shutil.rmtree(old, ignore_errors=True)
