"""Pictures of a folder: found by name, told apart by content."""

from __future__ import annotations

import errno
import logging
import os
import stat
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

from maskery.core.errors import DataError
from maskery.data.images.loading import SUFFIXES, ImageRef, open_file

log = logging.getLogger(__name__)

# Enough that two of a million pictures are never taken for one.
DIGEST_BYTES = 16


class Stamp(NamedTuple):
    """Size and time of a file, which tell without reading that it changed."""

    size: int
    mtime_ns: int


def find_pictures(folder: Path) -> dict[str, Stamp]:
    """Return the pictures below a folder, sorted: relative path with slashes, and stamp.

    A file without an ending may be one. Hidden names and links to folders are passed over.
    """
    if not folder.is_dir():
        what = "is a file" if folder.is_file() else "does not exist"
        raise DataError(f"the gallery '{folder}' {what}; name a folder of pictures")
    found: dict[str, Stamp] = {}
    special: list[str] = []
    others: list[str] = []

    def refuse(error: OSError) -> None:
        raise DataError(
            f"the gallery folder '{error.filename}' cannot be listed ({error.strerror}); correct "
            f"its permissions"
        ) from error

    for parent, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            path = Path(parent, name)
            if name.startswith("."):
                continue
            key = path.relative_to(folder).as_posix()
            if path.suffix and path.suffix[1:].lower() not in SUFFIXES:
                others.append(key)
                continue
            try:
                status = path.stat()
            except OSError as error:
                if error.errno == errno.ELOOP:
                    special.append(key)
                continue  # gone since it was listed, or a link to nothing
            if stat.S_ISREG(status.st_mode):
                found[key] = Stamp(status.st_size, status.st_mtime_ns)
            else:
                special.append(key)  # reading a FIFO or a device may wait for ever
    for passed, what in ((special, "are no regular files"), (others, "have no picture's ending")):
        if passed:
            told = "%d entries of the gallery %s and are passed over, first '%s'"
            log.warning(told, len(passed), what, min(passed))
    return dict(sorted(found.items()))


def read_picture(folder: Path, name: str) -> ImageRef:
    """Read a picture's bytes, once, to be hashed and decoded."""
    path = folder / name
    try:
        name.encode("utf-8")  # the index keeps names as text
    except UnicodeEncodeError as error:
        raise DataError(f"image {path} has a name that is not UTF-8; rename it") from error
    try:
        with open_file(path) as file:
            return ImageRef.held(str(path), file.read())
    except OSError as error:
        raise DataError(f"image {path} cannot be read ({error.strerror}); restore it") from error


def digest_of(picture: ImageRef) -> bytes:
    """Return a hash of a picture's bytes."""
    with picture.open() as file:
        return blake2b(file.read(), digest_size=DIGEST_BYTES).digest()
