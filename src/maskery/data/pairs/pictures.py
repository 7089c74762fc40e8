"""Pictures of pairs: where their bytes lie (files, tar shards, tables), decoded and kept."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

from maskery.core.errors import DataError
from maskery.data.images.loading import MAX_WORKERS, Loadable, Skipped, decode_many, load_image

if TYPE_CHECKING:
    from PIL.Image import Image

    from maskery.data.pairs.pairs import Pairs

# Three numbers that say where bytes lie; their meaning is up to the reader that made them.
Place: TypeAlias = tuple[int, int, int]
# In place of a row or offset: the image is a file of its own.
IN_FILE = -1
# Pillow's number of the filter that views resize with.
BICUBIC = 3
# Pillow pads red, green and blue to a word.
BYTES_PER_PIXEL = 4


class ImageRef(Loadable, Protocol):
    """An image that has not been decoded."""

    @property
    def name(self) -> str:
        """Its name in messages, from which its pair's id is made."""


@dataclass(frozen=True)
class FileImage:
    """An image file below a root folder."""

    name: str  # path relative to the root
    root: Path  # the folder that links may not lead out of
    max_pixels: int  # larger images are refused

    @property
    def path(self) -> Path:
        """The file itself, links followed."""
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
        # Opening a FIFO would wait for a writer for ever.
        if not stat.S_ISREG(mode):
            raise DataError(f"image {path} is not a file; correct its path")
        return resolved

    def load(self, near: tuple[int, int] | None = None) -> Image:
        """See `Loadable.load`."""
        path = self.path
        try:
            file = path.open("rb")
        except OSError as error:
            raise DataError(
                f"image {path} cannot be opened ({error.strerror}); correct its permissions"
            ) from error
        with file:
            name = str(self.root / self.name)
            return load_image(file, name=name, max_pixels=self.max_pixels, near=near)


@dataclass(frozen=True)
class StoredImage:
    """An image inside a container."""

    name: str  # of the member or row
    read: Callable[[Place], bytes]  # reads the bytes at a place of the container
    place: Place  # its place in the container
    max_pixels: int  # larger images are refused

    def load(self, near: tuple[int, int] | None = None) -> Image:
        """See `Loadable.load`."""
        file = io.BytesIO(self.read(self.place))
        return load_image(file, name=self.name, max_pixels=self.max_pixels, near=near)


def image_refs(
    root: Path, max_pixels: int, read: Callable[[Place], bytes] | None = None
) -> Callable[[str, Place], ImageRef]:
    """Return the function that makes an image of its name and place.

    Without `read`, and at places `IN_FILE`, it is a file below the root; else `read` has its bytes.
    """

    def ref(name: str, place: Place) -> ImageRef:
        if read is None or place[1] == IN_FILE:
            return FileImage(name, root, max_pixels)
        return StoredImage(name, read, place, max_pixels)

    return ref


class Pictures:
    """Decodes the pictures of pairs by index, in threads, and keeps them while there is room.

    A picture that cannot be read is None from then on; `skipped` is told of it once.

    Args:
        near: (width, height) that will be asked of them: they are brought to it once, before they
            are kept. None where they are still to be cropped.
        cache_bytes: Memory for decoded pictures; those that come first stay, because every epoch
            comes back to them in another order.
    """

    def __init__(
        self,
        pairs: Pairs,
        on_bad_image: Literal["skip", "fail"],
        *,
        near: tuple[int, int] | None,
        cache_bytes: int = 0,
    ) -> None:
        self.skipped = Skipped("image", on_bad_image)
        self._pairs, self._near = pairs, near
        self._room = cache_bytes
        self._kept: dict[int, Image | None] = {}
        self._pool = ThreadPoolExecutor(min(MAX_WORKERS, os.cpu_count() or 1), "decode")

    def load(self, indices: Sequence[int]) -> list[Image | None]:
        """Return the RGB pictures of some pairs, None for those that were skipped."""
        wanted = [i for i in dict.fromkeys(indices) if i not in self._kept]
        refs = [self._pairs[i].image for i in wanted]
        images = decode_many(refs, self.skipped, near=self._near, pool=self._pool)
        if self._near is not None:  # at the size of a view, so that no epoch resizes it again
            images = [image and image.resize(self._near, BICUBIC) for image in images]
        decoded = dict(zip(wanted, images, strict=True))
        for index, image in decoded.items():
            size = 0 if image is None else image.width * image.height * BYTES_PER_PIXEL
            if size <= self._room:
                self._room -= size
                self._kept[index] = image
        return [decoded[i] if i in decoded else self._kept[i] for i in indices]
