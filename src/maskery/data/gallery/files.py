"""The pictures of a folder: found by name, told apart by content."""

from __future__ import annotations

import io
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

SUFFIXES = frozenset(
    f".{name}"
    for name in (
        *("avif", "bmp", "gif", "j2k", "jp2", "jpe", "jpeg", "jpg", "mpo"),
        *("pgm", "png", "pnm", "ppm", "tga", "tif", "tiff", "webp"),
    )
)
DIGEST_BYTES = 16


class Stamp(NamedTuple):
    """What changes with a file, as far as can be told without reading it."""

    size: int
    mtime_ns: int


@dataclass(frozen=True)
class PictureBytes:
    """A picture read from its file, not decoded yet.

    Attributes:
        name: What messages call it.
        content: The file's bytes.
    """

    name: str
    content: bytes

    @property
    def digest(self) -> bytes:
        """16 bytes that stand for the content."""
        return blake2b(self.content, digest_size=DIGEST_BYTES).digest()

    def load(self, near: tuple[int, int] | None = None) -> Image:
        """The RGB picture; see `load_image`."""
        file = io.BytesIO(self.content)
        return load_image(file, name=self.name, max_pixels=DEFAULT_MAX_PIXELS, near=near)


def find_pictures(folder: Path) -> dict[str, Stamp]:
    """The pictures below a folder, sorted: relative path with slashes, and stamp.

    Regular files count by their suffix; names that start with a dot, and links to folders, are
    passed over.

    Raises:
        DataError: There is no such folder, or it cannot be listed.
    """
    if not folder.is_dir():
        what = "is a file" if folder.is_file() else "does not exist"
        raise DataError(f"the gallery '{folder}' {what}; name a folder of pictures")
    found: dict[str, Stamp] = {}

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
            except OSError:
                continue  # gone since it was listed, or a link to nothing
            key = path.relative_to(folder).as_posix()
            if not stat.S_ISREG(status.st_mode):
                continue
            found[key] = Stamp(status.st_size, status.st_mtime_ns)
    return dict(sorted(found.items()))


def read_picture(folder: Path, name: str) -> PictureBytes:
    """The bytes of one picture.

    Args:
        folder: The gallery.
        name: Relative to it.

    Raises:
        DataError: It cannot be read, or its name is not UTF-8: the index and JSON keep text.
    """
    path = folder / name
    try:
        name.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(f"image {path} has a name that is not UTF-8; rename it") from error
    try:
        return PictureBytes(str(path), path.read_bytes())
    except OSError as error:
        raise DataError(
            f"image {path} cannot be read ({error.strerror}); correct its permissions"
        ) from error
