"""How a picture becomes the input of a vision encoder; light to import."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeAlias

from maskery.core.errors import ConfigError

Channels: TypeAlias = tuple[float, float, float]

CLIP_MEAN: Channels = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: Channels = (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN: Channels = (0.485, 0.456, 0.406)
IMAGENET_STD: Channels = (0.229, 0.224, 0.225)
HALF_MEAN: Channels = (0.5, 0.5, 0.5)
HALF_STD: Channels = (0.5, 0.5, 0.5)

DEFAULT_MAX_PIXELS = 89_478_485
"""Pillow's own threshold of suspicion: 256 MiB of RGB."""

LARGEST_MAX_PIXELS = 2 * DEFAULT_MAX_PIXELS
"""Beyond this Pillow refuses to open a picture."""

MAX_AUGMENT_OPERATIONS = 4


@dataclass(frozen=True, kw_only=True)
class ViewConfig:
    """Resizing, random augmentation and normalisation.

    The random parts happen only where draws are given (training). Captions that say left or right
    become wrong when a picture is mirrored: set `flip_probability` to 0 for such data.
    """

    height: int | None = None
    """Pixels; by default what the vision encoder expects."""

    width: int | None = None
    """Pixels; by default what the vision encoder expects."""

    mean: Channels | None = None
    """Subtracted from red, green and blue in [0, 1]; by default the vision encoder's own."""

    std: Channels | None = None
    """Divides red, green and blue after that; by default the vision encoder's own."""

    flip_probability: float = 0.5
    """How often a picture is mirrored; 0 where captions say left or right."""

    crop_scale: tuple[float, float] | None = None
    """Smallest and largest share of the area that a random crop keeps; by default no crop."""

    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Smallest and largest change of the aspect ratio (width / height) by a random crop."""

    pad: int = 0
    """Pixels added on each side after resizing, before a crop back to size at a random place."""

    augment_operations: int = 0
    """How many operations of RandAugment, as ALBEF and RaSa use it, are tried (they use 2)."""

    augment_magnitude: float = 7.0
    """How strong those are, from 0 to 10."""

    erase_probability: float = 0.0
    """How often a random rectangle is painted over with the mean colour."""

    erase_scale: tuple[float, float] = (0.02, 0.33)
    """Smallest and largest share of the area that is erased."""

    def __post_init__(self) -> None:
        for name in ("height", "width"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}: it must be at least 1 pixel")
        if self.std is not None and min(self.std) <= 0:
            raise ConfigError(f"std is {self.std}: all three must be above 0")
        for name in ("flip_probability", "erase_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} is {getattr(self, name)}: it must be from 0 to 1")
        for name in ("crop_scale", "erase_scale"):
            limits = getattr(self, name)
            if limits is not None and not 0 < limits[0] <= limits[1] <= 1:
                raise ConfigError(f"{name} is {limits}: give two rising shares, above 0, at most 1")
        if not 0 < self.crop_ratio[0] <= self.crop_ratio[1]:
            raise ConfigError(f"crop_ratio is {self.crop_ratio}: give two rising positive numbers")
        if self.pad < 0:
            raise ConfigError(f"pad is {self.pad}: it must be at least 0 pixels")
        if not 0 <= self.augment_operations <= MAX_AUGMENT_OPERATIONS:
            raise ConfigError(
                f"augment_operations is {self.augment_operations}: "
                f"it must be from 0 to {MAX_AUGMENT_OPERATIONS}"
            )
        if not 0 <= self.augment_magnitude <= 10:
            raise ConfigError(
                f"augment_magnitude is {self.augment_magnitude}: it must be from 0 to 10"
            )

    def for_encoder(self, *, height: int, width: int, mean: Channels, std: Channels) -> ViewConfig:
        """The same with what is not set taken from the vision encoder."""
        return replace(
            self,
            height=self.height or height,
            width=self.width or width,
            mean=self.mean or mean,
            std=self.std or std,
        )

    @property
    def size(self) -> tuple[int, int]:
        """(width, height), in pixels, as Pillow counts.

        Raises:
            ConfigError: Not set, and not filled in by `for_encoder`.
        """
        if self.width is None or self.height is None:
            raise ConfigError("the size of the pictures is not set; set height and width")
        return self.width, self.height

    @property
    def normalisation(self) -> tuple[Channels, Channels]:
        """Mean and deviation.

        Raises:
            ConfigError: Not set, and not filled in by `for_encoder`.
        """
        if self.mean is None or self.std is None:
            raise ConfigError("the normalisation of the pictures is not set; set mean and std")
        return self.mean, self.std
