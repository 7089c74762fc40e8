"""Opening pictures that nobody has checked, one or many at once.

Whatever a file holds, the result is an RGB image or one `DataError`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import Executor
from functools import lru_cache
from typing import TYPE_CHECKING, BinaryIO, Literal, Protocol

import numpy as np

from maskery.core.errors import DataError, MissingExtraError, reason_of
from maskery.core.registry import require
from maskery.data.images.config import DEFAULT_MAX_PIXELS

if TYPE_CHECKING:
    from PIL.Image import Image

# Only what Pillow decodes by itself: its EPS reader, for one, would start another program.
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF", "TGA")
DEEP_GREY_MODES = ("I", "I;16", "I;16L", "I;16B", "I;16N")
# The colour behind transparent pixels.
PAPER = (255, 255, 255)
# Threads that decode; more only wait for the disk.
MAX_WORKERS = 8


@lru_cache(maxsize=1)
def _formats() -> list[str]:
    """Return those of `FORMATS` that this build of Pillow can read."""
    module = require("PIL.Image", extra="vision", purpose="read pictures")
    module.init()
    return [name for name in FORMATS if name in module.OPEN]


def load_image(
    file: BinaryIO,
    *,
    name: str,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    near: tuple[int, int] | None = None,
) -> Image:
    """Decode a picture to RGB.

    Of an animation the first frame is taken; EXIF orientation is applied; transparent pixels show
    white; 16-bit grey is scaled to 8 bits; CMYK and palettes are converted.

    Args:
        name: Its name in messages.
        max_pixels: Larger pictures are refused before they are decoded.
        near: (width, height) in pixels that will be asked of the result. A JPEG of at least twice
            that size is decoded at a half, a quarter or an eighth, several times faster.

    Raises:
        DataError: It is empty, no picture, damaged, too large or of an odd pixel type.
        MissingExtraError: Pillow is not installed.
    """
    module = require("PIL.Image", extra="vision", purpose="read pictures")
    if not file.seek(0, os.SEEK_END):
        raise DataError(f"image {name} is empty (0 bytes); restore or remove it")
    file.seek(0)
    try:
        with module.open(file, formats=_formats()) as image:
            _check_pixels(image, name, max_pixels)
            if near is not None:
                # An EXIF turn may exchange the sides.
                image.draft(None, (max(near), max(near)))
            return _as_rgb(_upright(image), name)
    except (DataError, MissingExtraError):
        raise
    except module.UnidentifiedImageError as error:
        raise DataError(
            f"image {name} is not a picture of a known format ({', '.join(_formats())}); "
            f"convert or remove it"
        ) from error
    except (module.DecompressionBombError, module.DecompressionBombWarning) as error:
        raise DataError(
            f"image {name} has far more than {max_pixels} pixels and may be a decompression bomb; "
            f"shrink or remove it"
        ) from error
    except Exception as error:
        # Pillow's decoders raise nearly every built-in exception on damaged input.
        why = reason_of(error, most=200)
        raise DataError(f"image {name} is damaged ({why}); restore or remove it") from error


def _check_pixels(image: Image, name: str, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise DataError(
            f"image {name} has {width} x {height} pixels, more than the {max_pixels} allowed; "
            f"shrink it or raise max_pixels"
        )
    if not width * height:
        raise DataError(f"image {name} has {width} x {height} pixels; remove it")


def _upright(image: Image) -> Image:
    """Turn the picture as its EXIF orientation says; unreadable EXIF data turns nothing."""
    operations = require("PIL.ImageOps", extra="vision", purpose="read pictures")
    image.load()
    try:
        turned: Image = operations.exif_transpose(image)
    except Exception:
        # Cameras and editors write broken EXIF blocks into sound pictures.
        return image
    return turned


def _as_rgb(image: Image, name: str) -> Image:
    """Return a picture of any mode as RGB, detached from its file."""
    if image.mode in DEEP_GREY_MODES:
        image = _shallow(image, name)
    if image.mode == "F":
        raise DataError(
            f"image {name} has floating-point pixels, whose range is unknown; convert it to 8 bits"
        )
    if image.has_transparency_data:
        module = require("PIL.Image", extra="vision", purpose="read pictures")
        layered = image.convert("RGBA")
        paper: Image = module.new("RGBA", layered.size, (*PAPER, 255))
        return module.alpha_composite(paper, layered).convert("RGB")  # type: ignore[no-any-return]
    return image.convert("RGB") if image.mode != "RGB" else image.copy()


def _shallow(image: Image, name: str) -> Image:
    """Return 16-bit grey as 8-bit grey, rounded."""
    module = require("PIL.Image", extra="vision", purpose="read pictures")
    levels = np.asarray(image).astype(np.int64)
    if levels.min() < 0 or levels.max() > 65535:
        raise DataError(
            f"image {name} has grey levels from {levels.min()} to {levels.max()}, outside 16 bits; "
            f"convert it to 8 bits"
        )
    shallow: Image = module.fromarray(((levels * 255 + 32767) // 65535).astype(np.uint8))
    return shallow


class Skipped:
    """Counts examples that cannot be used, or raises at the first: nothing is lost silently.

    `what` is a singular noun for messages. The policy `"fail"` raises the first error, `"skip"`
    counts, and keeps the first message.
    """

    def __init__(self, what: str, policy: Literal["skip", "fail"]) -> None:
        self.what = what
        self.policy = policy
        self.count = 0
        self.first = ""

    def report(self, error: DataError) -> None:
        """Count `error`."""
        if self.policy == "fail":
            raise error
        self.count += 1
        self.first = self.first or str(error)

    def __str__(self) -> str:
        """Return one line for the log; empty if nothing was skipped."""
        if not self.count:
            return ""
        plural = "" if self.count == 1 else "s"
        return f"{self.count} {self.what}{plural} skipped; the first: {self.first}"


class Loadable(Protocol):
    """Anything that can be decoded to a picture."""

    def load(self, near: tuple[int, int] | None = None) -> Image:
        """Return the RGB picture; `near` as in `load_image`."""


def decode_many(
    refs: Sequence[Loadable],
    skipped: Skipped,
    *,
    near: tuple[int, int] | None = None,
    pool: Executor | None = None,
) -> list[Image | None]:
    """Decode pictures, None standing for those that were skipped."""

    def decode(ref: Loadable) -> Image | DataError:
        try:
            return ref.load(near)
        except DataError as error:
            return error

    results = list(map(decode, refs) if pool is None else pool.map(decode, refs))
    images: list[Image | None] = []
    for result in results:
        if isinstance(result, DataError):
            skipped.report(result)
            images.append(None)
        else:
            images.append(result)
    return images
