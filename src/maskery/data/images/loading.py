"""Opening pictures that nobody has checked, one or many at once.

Whatever a file holds, the result is an RGB image or one `DataError`.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import numpy as np

from maskery.core.batch import Ids
from maskery.core.errors import DataError, MissingExtraError, counted, reason_of
from maskery.core.registry import require
from maskery.data.images.config import DEFAULT_MAX_PIXELS, Size

if TYPE_CHECKING:
    from PIL.Image import Image

# Only what Pillow decodes by itself: its EPS reader, for one, would start another program.
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF", "TGA")
# Endings of such files, without their dot.
SUFFIXES = (
    *("apng", "avif", "bmp", "gif", "j2k", "jfif", "jp2", "jpe", "jpeg", "jpg"),
    *("mpo", "pgm", "png", "pnm", "ppm", "tga", "tif", "tiff", "webp"),
)
# The colour behind transparent pixels.
PAPER = (255, 255, 255)
# More threads wait for each other, or for the disk.
MAX_WORKERS = 16


def pillow(module: str = "Image") -> Any:
    """Import a module of Pillow, which is an optional package."""
    return require(f"PIL.{module}", extra="vision", purpose="read and draw pictures")


@lru_cache(maxsize=1)
def _formats() -> list[str]:
    """Return those of `FORMATS` that this build of Pillow can read."""
    module = pillow()
    module.init()
    return [name for name in FORMATS if name in module.OPEN]


def load_image(
    file: BinaryIO, *, name: str, max_pixels: int = DEFAULT_MAX_PIXELS, near: Size | None = None
) -> Image:
    """Decode a picture to RGB, or raise a DataError.

    Of an animation the first frame is taken; EXIF orientation is applied; transparent pixels show
    white; 16-bit grey is scaled to 8 bits; CMYK, palettes and colour profiles become sRGB. `near`
    is the (width, height) in pixels that will be asked of the result.
    """
    module = pillow()
    if not file.seek(0, os.SEEK_END):
        raise DataError(f"image {name} is empty (0 bytes); restore or remove it")
    file.seek(0)
    try:
        with module.open(file, formats=_formats()) as image:
            width, height = image.size
            if not width * height:
                raise DataError(f"image {name} has {width} x {height} pixels, none; remove it")
            if width * height > max_pixels:
                problem = f"has {width} x {height} pixels, more than the {max_pixels} allowed"
                raise DataError(f"image {name} {problem}; shrink it or raise max_pixels")
            if near is not None:
                # A JPEG of at least twice that size is decoded at a half, a quarter or an eighth,
                # several times faster. An EXIF turn may exchange the sides.
                image.draft(None, (max(near), max(near)))
            _scale_key(image)
            image.load()
            upright: Image = image
            # Cameras and editors write broken EXIF blocks into sound pictures.
            with suppress(Exception):
                upright = pillow("ImageOps").exif_transpose(image)
            return _as_rgb(upright, name, image.format)
    except (DataError, MissingExtraError):
        raise
    except module.UnidentifiedImageError as error:
        problem = f"is not a picture of a known format ({', '.join(_formats())})"
        raise DataError(f"image {name} {problem}; convert or remove it") from error
    except (module.DecompressionBombError, module.DecompressionBombWarning) as error:
        problem = f"has far more than {max_pixels} pixels and may be a decompression bomb"
        raise DataError(f"image {name} {problem}; shrink or remove it") from error
    except Exception as error:
        # Pillow's decoders raise nearly every built-in exception on damaged input.
        why = reason_of(error, most=200)
        raise DataError(f"image {name} is damaged ({why}); restore or remove it") from error


def _scale_key(image: Any) -> None:
    """Bring the transparent colour of a PNG to 8 bits, to which Pillow brings its pixels alone."""
    key, depth = image.info.get("transparency"), image.tile[0].args if image.tile else None
    if depth == "RGB;16B" and key is not None:
        image.info["transparency"] = tuple(level >> 8 for level in key)
    elif depth in ("L;2", "L;4") and key is not None:
        image.info["transparency"] = key * {"L;2": 85, "L;4": 17}[depth]


def _as_rgb(image: Image, name: str, kind: str | None) -> Image:
    """Return a picture of any mode as RGB, detached from its file."""
    if image.mode in ("I", "I;16", "I;16L", "I;16B", "I;16N"):  # grey of more than 8 bits
        levels = np.asarray(image).astype(np.int64)
        # A TIFF of 32 bits may mean any range by them; Pillow scales a PGM's to 16.
        unknown = image.mode == "I" and kind == "TIFF"
        if unknown or levels.min() < 0 or levels.max() > 65535:
            found = f"32-bit grey levels, from {levels.min()} to {levels.max()}"
            fix = "of unknown range or outside 16 bits; convert it to 8 bits"
            raise DataError(f"image {name} has {found}, {fix}")
        # Rounded, not cut off: the brightest level stays the brightest.
        grey = ((levels * 255 + 32767) // 65535).astype(np.uint8)
        grey[levels == image.info.get("transparency", -1)] = PAPER[0]
        image = pillow().fromarray(grey)
    if image.mode == "F":
        problem = "has floating-point pixels, whose range is unknown"
        raise DataError(f"image {name} {problem}; convert it to 8 bits")
    if image.has_transparency_data or image.mode == "P":
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    if profile := image.info.get("icc_profile"):
        transform = _to_srgb(profile, image.mode)
        image = image if transform is None else transform.apply(image)
    if image.mode == "RGBA":
        paper: Image = pillow().new("RGBA", image.size, (*PAPER, 255))
        paper.alpha_composite(image)
        return paper.convert("RGB")
    return image.convert("RGB")


@lru_cache(maxsize=16)
def _to_srgb(profile: bytes, mode: str) -> Any:
    """Return the transform from a colour profile to sRGB; None where there is nothing to do."""
    # As with EXIF: programs write broken profiles into sound pictures.
    with suppress(Exception):
        cms = pillow("ImageCms")
        found = cms.ImageCmsProfile(io.BytesIO(profile))
        # Most pictures that have one have sRGB's.
        if not cms.getProfileDescription(found).startswith(("sRGB IEC61966", "sRGB built-in")):
            target = "RGBA" if mode == "RGBA" else "RGB"
            return cms.buildTransform(found, cms.createProfile("sRGB"), mode, target)
    return None


def open_file(path: Path, within: Path | None = None) -> BinaryIO:
    """Open a picture's file; links may not lead out of the folder `within`."""
    try:
        resolved = path.resolve(strict=True)
        # Opening a FIFO would wait for a writer for ever.
        if not resolved.is_file():
            raise DataError(f"image {path} is no regular file; correct its path, or remove it")
        root = resolved if within is None else within.resolve()
        # The links of a hub cache's `snapshots` lead into `blobs`, beside it.
        beside = (p.parent / "blobs" for p in (root, *root.parents) if p.name == "snapshots")
        if not any(resolved.is_relative_to(folder) for folder in (root, *beside)):
            problem = f"is a link that leads out of the image folder, to {resolved}"
            fix = "copy the file into the folder, or name a folder that holds both as --images"
            raise DataError(f"image {path} {problem}; {fix}")
        return path.open("rb")
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: links in a circle
        reason = getattr(error, "strerror", None) or "cannot be resolved"
        fix = "restore it, or correct its path or permissions"
        raise DataError(f"image {path} cannot be read ({reason}); {fix}") from error


@dataclass(frozen=True)
class ImageRef:
    """A picture that has not been decoded yet: a file, or bytes from anywhere."""

    name: str  # tells it from others
    open: Callable[[], BinaryIO]
    max_pixels: int = DEFAULT_MAX_PIXELS  # larger pictures are refused

    @classmethod
    def file(cls, name: str, root: Path, max_pixels: int = DEFAULT_MAX_PIXELS) -> ImageRef:
        """Refer to a file below a folder, which its links may not lead out of."""
        return cls(name, partial(open_file, root / name, root), max_pixels)

    @classmethod
    def held(cls, name: str, content: bytes) -> ImageRef:
        """Refer to bytes in memory."""
        return cls(name, partial(io.BytesIO, content))

    def load(self, near: Size | None = None) -> Image:
        """Return the RGB picture; `near` as in `load_image`."""
        with self.open() as file:
            # A file is told by its whole path.
            name = str(getattr(file, "name", self.name))
            return load_image(file, name=name, max_pixels=self.max_pixels, near=near)


def content_hashes(refs: Iterable[ImageRef]) -> Ids:
    """Return (N,) uint64: a hash of each picture's bytes; of its name if it cannot be read."""
    known: dict[str, bytes] = {}
    digests = []
    for ref in refs:
        if ref.name not in known:
            content = ref.name.encode()
            with suppress(DataError, OSError), ref.open() as file:
                content = file.read()
            known[ref.name] = blake2b(content, digest_size=8).digest()
        digests.append(known[ref.name])
    return np.frombuffer(b"".join(digests), "<u8").astype(np.uint64)


class Skipped:
    """Counts examples that cannot be used, or raises at the first: nothing is lost silently."""

    def __init__(self, what: str, policy: Literal["skip", "fail"]) -> None:
        self.what, self.policy = what, policy  # what: a singular noun for messages
        self.reasons: list[str] = []

    @property
    def count(self) -> int:
        """The number of examples that were skipped."""
        return len(self.reasons)

    def report(self, error: DataError) -> None:
        """Count `error`, or raise it."""
        if self.policy == "fail":
            raise error
        self.reasons.append(str(error))

    def __str__(self) -> str:
        """Return one line for the log; empty if nothing was skipped."""
        if not self.reasons:
            return ""
        return f"{counted(self.count, self.what)} skipped; the first: {self.reasons[0]}"


def decoders() -> ThreadPoolExecutor:
    """Start threads that decode pictures and draw views."""
    return ThreadPoolExecutor(min(MAX_WORKERS, os.cpu_count() or 1), "decode")


def decode_many(
    refs: Sequence[ImageRef], skipped: Skipped, pool: Executor, near: Size | None = None
) -> list[Image | None]:
    """Decode pictures, None standing for those that were skipped."""

    def decode(ref: ImageRef) -> Image | DataError:
        try:
            return ref.load(near)
        except DataError as error:
            return error

    results = list(pool.map(decode, refs))
    for result in results:
        if isinstance(result, DataError):
            skipped.report(result)
    return [None if isinstance(result, DataError) else result for result in results]
