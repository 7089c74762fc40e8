"""Images of pairs, wherever their bytes lie: in files, tar shards or Parquet tables."""

from __future__ import annotations

import io
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol, TypeAlias

from maskery.core.errors import DataError
from maskery.data.images.loading import load_image

if TYPE_CHECKING:
    from PIL.Image import Image

Place: TypeAlias = tuple[int, int, int]
"""Three numbers that say where bytes lie; what they mean is up to the reader that made them."""


class ByteStore(Protocol):
    """A container that images are read from."""

    def read(self, place: Place) -> bytes:
        """The bytes at a place.

        Raises:
            DataError: They cannot be read.
        """


class ImageRef(Protocol):
    """An image that has not been decoded.

    Attributes:
        name: What messages call it, and what its pair's id is made from.
    """

    @property
    def name(self) -> str:
        """What messages call it."""

    def load(self, near: tuple[int, int] | None = None) -> Image:
        """Decode it to RGB.

        Args:
            near: As in `maskery.data.images.loading.load_image`.

        Raises:
            DataError: It cannot be read.
        """


@dataclass(frozen=True)
class FileImage:
    """An image file below a root folder.

    Attributes:
        name: Path relative to the root.
        root: The folder that links may not lead out of.
        max_pixels: Larger images are refused.
    """

    name: str
    root: Path
    max_pixels: int

    @property
    def path(self) -> Path:
        """The file itself, links followed.

        Raises:
            DataError: It is missing, no regular file, or lies outside the root.
        """
        path = self.root / self.name
        try:
            resolved = path.resolve(strict=True)
            mode = resolved.stat().st_mode
        except (OSError, RuntimeError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "cannot be resolved"
            raise DataError(
                f"image {path} cannot be read ({reason}); restore it or correct its path"
            ) from error
        if not resolved.is_relative_to(self.root.resolve()):
            raise DataError(
                f"image {path} is a link that leads out of the image folder, to {resolved}; "
                f"copy the file into the folder"
            )
        if not stat.S_ISREG(mode):
            raise DataError(f"image {path} is not a file; correct its path")
        return resolved

    def load(self, near: tuple[int, int] | None = None) -> Image:
        """See `ImageRef.load`."""
        with _opened(self.path) as file:
            return load_image(
                file, name=str(self.root / self.name), max_pixels=self.max_pixels, near=near
            )


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise DataError(
            f"image {path} cannot be opened ({error.strerror}); correct its permissions"
        ) from error


@dataclass(frozen=True)
class StoredImage:
    """An image inside a container.

    Attributes:
        name: Of the member or row.
        store: The container.
        place: Where in the container.
        max_pixels: Larger images are refused.
    """

    name: str
    store: ByteStore
    place: Place
    max_pixels: int

    def load(self, near: tuple[int, int] | None = None) -> Image:
        """See `ImageRef.load`."""
        file = io.BytesIO(self.store.read(self.place))
        return load_image(file, name=self.name, max_pixels=self.max_pixels, near=near)
