"""One process at a time in a folder: a lock that ends with the process that holds it.

The lock is the kernel's (`flock`), on a hidden file. A process that is killed lets go of it at that
instant, so no lock is ever left behind; the file itself means nothing.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
from pathlib import Path

log = logging.getLogger(__name__)

LOCK = ".lock"
# What a file system without locks answers.
NO_LOCKS = frozenset({errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.ENOSYS})


class FolderLock:
    """A lock that is held until `release`, or until this process ends.

    Attributes:
        exclusive: False where the file system has no locks, and others may be at work too.
    """

    def __init__(self, path: Path, descriptor: int, *, exclusive: bool) -> None:
        self.exclusive = exclusive
        self._path, self._descriptor = path, descriptor

    def release(self) -> None:
        """Let others in, and remove the file."""
        # Removed while it is held: another process that has it open sees that it is gone.
        self._path.unlink(missing_ok=True)
        os.close(self._descriptor)


def lock_folder(folder: Path) -> FolderLock | None:
    """Lock a folder; None where another process holds its lock. Never waits.

    Raises:
        OSError: The file cannot be made.
    """
    path = folder / LOCK
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in NO_LOCKS:
                log.warning(
                    "the file system of '%s' has no locks (%s): make sure that no other process "
                    "trains there",
                    folder,
                    error.strerror,
                )
                return FolderLock(path, descriptor, exclusive=False)
            os.close(descriptor)
            if isinstance(error, BlockingIOError):
                return None
            raise
        if _is_still(path, descriptor):
            return FolderLock(path, descriptor, exclusive=True)
        os.close(descriptor)  # whoever held it has removed it in between


def _is_still(path: Path, descriptor: int) -> bool:
    """Whether a file that was opened is the one that has its name now."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
