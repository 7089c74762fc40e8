"""Pictures of pairs: where their bytes lie (files, tar shards, tables), decoded and kept."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, TypeAlias

from maskery.core.errors import DataError
from maskery.data.images.loading import MAX_WORKERS, ImageRef, Skipped, decode_many

if TYPE_CHECKING:
    from PIL.Image import Image

    from maskery.data.pairs.pairs import Pairs

# Three numbers that say where bytes lie; their meaning is up to the reader that made them.
Place: TypeAlias = tuple[int, int, int]
# The second number of images that are files of their own, where others have a row or an offset.
IN_FILE = -1
FILE: Place = (0, IN_FILE, 0)
# Pillow's number of the filter that views resize with.
BICUBIC = 3
# Pillow pads red, green and blue to a word.
BYTES_PER_PIXEL = 4


def image_refs(
    root: Path, max_pixels: int, read: Callable[[Place], bytes] | None = None
) -> Callable[[str, Place], ImageRef]:
    """Return the function from name and place to image: a file of the root, or read bytes."""

    def stored(place: Place) -> BinaryIO:
        assert read is not None
        return io.BytesIO(read(place))

    def ref(name: str, place: Place) -> ImageRef:
        if place[1] == IN_FILE:
            return ImageRef.file(name, root, max_pixels)
        return ImageRef(name, partial(stored, place), max_pixels)

    return ref


def stored_bytes(value: Any, where: str, file: Callable[[Any], ImageRef]) -> bytes:
    """Return an image as tables store it: bytes, or a mapping of bytes or else a path."""
    if isinstance(value, Mapping):
        path, value = value.get("path"), value.get("bytes")
        if value is None and path:
            with file(path).open() as opened:
                return opened.read()
    if not isinstance(value, bytes):
        raise DataError(f"{where}: the image is null; remove the row")
    return value


class Pictures:
    """Decodes the pictures of pairs by index, in threads, and keeps them while there is room.

    A picture that cannot be read is None from then on; `skipped` is told of it once. `near` is the
    (width, height) that pictures are brought to before they are kept; None where they are still to
    be cropped.
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
            # Those that come first stay: every epoch comes back to them in another order.
            if size <= self._room:
                self._room -= size
                self._kept[index] = image
        return [decoded[i] if i in decoded else self._kept[i] for i in indices]
