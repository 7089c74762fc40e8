"""Room for arrays that may be larger than the memory one wants to spend on them."""

from __future__ import annotations

import errno
import math
import os
import shutil
import tempfile

import numpy as np
import numpy.typing as npt

from maskery.core.errors import DataError, reason_of

CHUNK_BYTES = 1 << 20
NOT_OFFERED = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)
"""What a file system answers that cannot reserve space."""


def room(shape: tuple[int, ...], memory_bytes: int) -> npt.NDArray[np.float32]:
    """An array in memory, or in a nameless temporary file where it would be too large.

    Args:
        shape: Of the array; what is in it at first is not defined.
        memory_bytes: The most bytes that may be kept in memory.

    Raises:
        DataError: The folder of temporary files has too little space.
    """
    size = 4 * math.prod(shape)
    if size <= memory_bytes:
        return np.empty(shape, np.float32)
    _need_space(size)
    try:
        with tempfile.TemporaryFile() as file:
            # A file with holes would kill the process at the first page that finds no space.
            _reserve(file.fileno(), size)
            return np.memmap(file, np.float32, "r+", shape=shape)
    except OSError as error:
        raise _too_little(size, error.strerror or reason_of(error)) from error


def _need_space(size: int) -> None:
    """Refuse what will not fit before anything is written; some file systems do not tell."""
    try:
        usage = shutil.disk_usage(tempfile.gettempdir())
    except OSError:
        return
    if usage.total and usage.free < size:
        raise _too_little(size, f"{usage.free // 1_000_000:,} MB are free")


def _reserve(file: int, size: int) -> None:
    """Give a file its whole size on the disk, not only in name.

    Raises:
        OSError: There is too little space.
    """
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(file, 0, size)
        except OSError as error:
            if error.errno not in NOT_OFFERED:
                raise
        else:
            return
    _write_zeros(file, size)


def _write_zeros(file: int, size: int) -> None:
    zeros = memoryview(bytes(CHUNK_BYTES))
    done = 0
    while done < size:
        done += os.write(file, zeros[: size - done])


def _too_little(size: int, why: str) -> DataError:
    megabytes = math.ceil(size / 1_000_000)
    try:
        folder = f"'{tempfile.gettempdir()}' has no room"
    except OSError:  # no folder can be written to at all
        folder = "there is no room"
    return DataError(
        f"the image tokens take {megabytes:,} MB in a temporary file, for which {folder} "
        f"({why}); set TMPDIR to a folder with room, raise "
        f"--memory-mb to {megabytes} to keep them in memory, or turn the "
        f"re-ranking off with --rerank 0"
    )
