"""Files and folders that are being written, known by a lock to have somebody who writes them.

A process that is killed leaves what it had begun. Its locks go with it, so whoever comes next can
tell that from what another process is writing now; a process number could be somebody else's.
"""

from __future__ import annotations

import platform
import secrets
from collections.abc import Iterator
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import IO

from filelock import lock_descriptor


def partial_of(path: Path) -> Path:
    """Return a new name beside a file or folder, to write it by before it is moved to its place.

    The name tells the machine: on some shared file systems, locks are seen on one machine alone.
    """
    return path.with_name(f"{path.name}.partial-{_machine()}-{secrets.token_hex(4)}")


def create_owned(path: Path) -> IO[bytes]:
    """Create a file that is owned until it is closed or its process ends, however it ends.

    Raises:
        OSError: It cannot be created.
    """
    nameless = path.with_name(f"{path.name}.new")
    stream = nameless.open("xb")
    try:
        with suppress(OSError):  # without locks, it is owned for ever
            lock_descriptor(stream.fileno(), blocking=False)
        nameless.rename(path)  # so that nobody finds it before it is locked
    except OSError:
        stream.close()
        raise
    return stream


def ownerless(folder: Path, inside: str = "") -> Iterator[Path]:
    """Find names from `partial_of` in a folder that a process of this machine left behind.

    Args:
        folder: Where to look; not below it.
        inside: The file from `create_owned` in each, where they are folders.
    """
    for path in folder.glob(f"*.partial-{_machine()}-*"):
        if not _is_owned(path / inside):
            yield path


def _is_owned(path: Path) -> bool:
    try:
        # Some shared file systems lock only what is open for writing.
        with path.open("r+b") as stream:
            return not lock_descriptor(stream.fileno(), blocking=False)
    except OSError:  # gone by now, or it cannot be told
        return True


def _machine() -> str:
    return blake2b(platform.node().encode(), digest_size=4).hexdigest()
