"""Pictures of a folder: found by name, told apart by content."""

from __future__ import annotations

import errno
import io
import logging
import os
import stat
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from maskery.core.errors import DataError
from maskery.data.images.config import DEFAULT_MAX_PIXELS
from maskery.data.images.loading import load_image

if TYPE_CHECKING:
    from PIL.Image import Image

log = logging.getLogger(__name__)

SUFFIXES = frozenset(
    f".{name}"
    for name in (
        *("avif", "bmp", "gif", "j2k", "jp2", "jpe", "jpeg", "jpg", "mpo"),
        *("pgm", "png", "pnm", "ppm", "tga", "tif", "tiff", "webp"),
    )
)
# Enough that two of a million pictures are never taken for one.
DIGEST_BYTES = 16


class Stamp(NamedTuple):
    """Size and time of a file, which tell without reading that it changed."""

    size: int
    mtime_ns: int


@dataclass(frozen=True)
class PictureBytes:
    """A picture read from its file, not decoded yet."""

    name: str  # its name in messages
    content: bytes  # the file's bytes

    @property
    def digest(self) -> bytes:
        """A hash of the content, 16 bytes."""
        return blake2b(self.content, digest_size=DIGEST_BYTES).digest()

    def load(self, near: tuple[int, int] | None = None) -> Image:
        """Return the RGB picture; see `load_image`."""
        file = io.BytesIO(self.content)
        return load_image(file, name=self.name, max_pixels=DEFAULT_MAX_PIXELS, near=near)


def find_pictures(folder: Path) -> dict[str, Stamp]:
    """Return the pictures below a folder, sorted: relative path with slashes, and stamp.

    Regular files count by their suffix; names that start with a dot, and links to folders, are
    passed over.
    """
    if not folder.is_dir():
        what = "is a file" if folder.is_file() else "does not exist"
        raise DataError(f"the gallery '{folder}' {what}; name a folder of pictures")
    found: dict[str, Stamp] = {}
    special: list[str] = []

    def refuse(error: OSError) -> None:
        raise DataError(
            f"the gallery folder '{error.filename}' cannot be listed ({error.strerror}); correct "
            f"its permissions"
        ) from error

    for parent, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            path = Path(parent, name)
            if name.startswith(".") or path.suffix.lower() not in SUFFIXES:
                continue
            try:
                status = path.stat()
            except OSError as error:
                if error.errno == errno.ELOOP:
                    special.append(path.relative_to(folder).as_posix())
                continue  # gone since it was listed, or a link to nothing
            key = path.relative_to(folder).as_posix()
            if not stat.S_ISREG(status.st_mode):
                special.append(key)  # reading a FIFO or a device may wait for ever
                continue
            found[key] = Stamp(status.st_size, status.st_mtime_ns)
    if special:
        log.warning(
            "%d entries of the gallery are no regular files and are passed over, first '%s'",
            len(special),
            min(special),
        )
    return dict(sorted(found.items()))


def read_picture(folder: Path, name: str) -> PictureBytes:
    """Read the bytes of one picture."""
    path = folder / name
    try:
        name.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(f"image {path} has a name that is not UTF-8; rename it") from error
    try:
        if path.exists() and not path.is_file():
            raise DataError(f"image {path} is no regular file; replace or remove it")
        return PictureBytes(str(path), path.read_bytes())
    except OSError as error:
        raise DataError(
            f"image {path} cannot be read ({error.strerror}); correct its permissions"
        ) from error
