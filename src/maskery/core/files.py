"""Files and folders that are written whole or not at all, even if the power fails.

A name may reach the disk before the content that it was given, so content is flushed before it is
put in its place, and the folder that holds the name after.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

METRICS = "metrics.jsonl"


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


def read_metrics(path: Path, *, tell: bool = False) -> list[dict[str, Any]]:
    """Return the lines of a `metrics.jsonl`; those that were cut short or damaged are left out.

    Args:
        path: The file.
        tell: True to warn of damaged lines.

    Raises:
        OSError: It cannot be read.
    """
    lines, damaged = [], []
    for number, text in enumerate(path.read_text("utf-8", errors="replace").splitlines(), 1):
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            line = None
        if _is_metric(line):
            lines.append(line)
        else:
            damaged.append(number)
    if damaged and tell:
        log.warning(
            "'%s' has %d damaged lines, which are left out (the first is line %d): each must be a "
            "JSON object with a kind, a whole number as step, and numbers",
            path,
            len(damaged),
            damaged[0],
        )
    return lines


def _is_metric(line: Any) -> bool:
    """Return True if a line has a kind, a step, and nothing but numbers beside them."""
    if not isinstance(line, dict) or not isinstance(line.get("kind"), str):
        return False
    numbers = [value for name, value in line.items() if name != "kind"]
    return isinstance(line.get("step"), int) and all(
        isinstance(number, int | float) for number in numbers
    )
