"""How image-caption pairs are read; light to import."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from maskery.core.errors import ConfigError
from maskery.data.images.config import DEFAULT_MAX_PIXELS, LARGEST_MAX_PIXELS


@dataclass(frozen=True, kw_only=True)
class PairsConfig:
    """Where the images lie, what the columns are called, and what happens to bad ones."""

    images: Path | None = None
    """Folder that image paths are relative to; by default that of the file which names them."""

    image_column: str | None = None
    """Column or key of the image; by default found among the usual names."""

    caption_column: str | None = None
    """Column or key of the caption; by default found among the usual names."""

    split: str | None = None
    """Read only records whose `split` is this; needed where a file holds several splits."""

    on_bad_image: Literal["skip", "fail"] = "skip"
    """An image that cannot be read is skipped and counted, or ends the run."""

    on_bad_caption: Literal["skip", "fail"] = "fail"
    """A caption that cannot be used is left out and counted (its pair too, where it is the only
    one), or ends the run."""

    max_pixels: int = DEFAULT_MAX_PIXELS
    """Images with more pixels than this are bad: they may be decompression bombs."""

    max_caption_chars: int = 10_000
    """Captions with more characters than this are bad."""

    def __post_init__(self) -> None:
        for name in ("on_bad_image", "on_bad_caption"):
            if getattr(self, name) not in ("skip", "fail"):
                raise ConfigError(f"{name} is {getattr(self, name)!r}: choose 'skip' or 'fail'")
        if not 1 <= self.max_pixels <= LARGEST_MAX_PIXELS:
            raise ConfigError(
                f"max_pixels is {self.max_pixels}: it must be from 1 to {LARGEST_MAX_PIXELS}"
            )
        if self.max_caption_chars < 1:
            raise ConfigError(
                f"max_caption_chars is {self.max_caption_chars}: it must be at least 1"
            )

    def anchored(self) -> PairsConfig:
        """The same with absolute paths, which mean the same from any folder."""
        return self if self.images is None else replace(self, images=self.images.absolute())
