"""What is being written, and is known by a lock to have somebody who writes it.

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


def partial_of(path: Path) -> Path:
    """A new name beside a file or folder, to write it by before it is moved to its place.

    It tells the machine: on some shared file systems a lock is seen on its own machine alone.
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
            _lock(stream, exclusive=True)
        nameless.rename(path)  # so that nobody finds it before it is locked
    except OSError:
        stream.close()
        raise
    return stream


def ownerless(folder: Path, inside: str = "") -> Iterator[Path]:
    """Names from `partial_of` in a folder that a process of this machine left behind.

    Args:
        folder: Where to look; not below it.
        inside: The file from `create_owned` in each, where they are folders.
    """
    for path in folder.glob(f"*.partial-{_machine()}-*"):
        if not _is_owned(path / inside):
            yield path


def _is_owned(path: Path) -> bool:
    try:
        with path.open("rb") as stream:
            _lock(stream, exclusive=False)
    except OSError:  # locked, or gone by now, or it cannot be told
        return True
    return False


def _lock(stream: IO[bytes], *, exclusive: bool) -> None:
    try:
        import fcntl
    except ImportError as error:
        raise OSError("this system has no such locks") from error
    fcntl.flock(stream, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)


def _machine() -> str:
    return blake2b(platform.node().encode(), digest_size=4).hexdigest()
