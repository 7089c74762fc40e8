"""Settings that turn a picture into the input of a vision encoder; light to import."""

from dataclasses import dataclass, replace
from typing import Annotated, Self, TypeAlias

from maskery.core.errors import ConfigError
from maskery.core.ranges import Needs, Range, Settings, Share

Channels: TypeAlias = tuple[float, float, float]
Ends: TypeAlias = tuple[float, float]  # smallest and largest
Size: TypeAlias = tuple[int, int]  # (width, height), in pixels, as Pillow counts

# Red, green and blue, as the families of vision encoders were trained with.
CLIP_MEAN: Channels = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: Channels = (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN: Channels = (0.485, 0.456, 0.406)
IMAGENET_STD: Channels = (0.229, 0.224, 0.225)
HALF_MEAN: Channels = (0.5, 0.5, 0.5)
HALF_STD: Channels = (0.5, 0.5, 0.5)

# Pillow's own threshold of suspicion: 256 MiB of RGB.
DEFAULT_MAX_PIXELS = 89_478_485
# Beyond this Pillow refuses to open a picture.
LARGEST_MAX_PIXELS = 2 * DEFAULT_MAX_PIXELS
# The draws of a view are laid out for as many: another number would change those of the second.
MAX_AUGMENT_OPERATIONS = 4


@dataclass(frozen=True, kw_only=True)
class ViewConfig(Settings):
    """Resizing, random augmentation and normalisation.

    The random parts happen only where draws are given (training). Captions that say left or right
    become wrong when a picture is mirrored: set `flip_probability` to 0 for such data.
    """

    height: Annotated[int | None, Range(1, unit="pixels")] = None
    """Pixels; by default what the vision encoder expects."""
    width: Annotated[int | None, Range(1, unit="pixels")] = None
    """Pixels; by default what the vision encoder expects."""
    mean: Channels | None = None
    """Subtracted from red, green and blue in [0, 1]; by default the vision encoder's own."""
    std: Annotated[Channels | None, Range(0, above=True)] = None
    """Divides red, green and blue after that; by default the vision encoder's own."""
    flip_probability: Share = 0.5
    """Share of pictures that are mirrored; 0 where captions say left or right."""
    crop_scale: Annotated[Ends | None, Range(0, 1, above=True)] = None
    """Smallest and largest share of the area that a random crop keeps; by default no crop."""
    crop_ratio: Annotated[Ends, Range(0, above=True), Needs("crop_scale")] = (3 / 4, 4 / 3)
    """Smallest and largest change of the aspect ratio (width / height) by a random crop."""
    pad: Annotated[int, Range(0, unit="pixels")] = 0
    """Pixels added on each side after resizing, before a crop back to size at a random place."""
    augment_operations: Annotated[int, Range(0, MAX_AUGMENT_OPERATIONS)] = 0
    """Operations of RandAugment that are tried, as ALBEF and RaSa do (they use 2)."""
    augment_magnitude: Annotated[float, Range(0, 10), Needs("augment_operations")] = 7.0
    """Strength of those operations, from 0 to 10."""
    erase_probability: Share = 0.0
    """Share of pictures in which a random rectangle is painted over with the mean colour."""
    erase_scale: Annotated[Ends, Range(0, 1, above=True), Needs("erase_probability")] = (0.02, 0.33)
    """Smallest and largest share of the area that is erased."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("crop_scale", "crop_ratio", "erase_scale"):
            limits = getattr(self, name)
            if limits is not None and limits[0] > limits[1]:
                raise ConfigError(f"{name} is {limits}: give two rising numbers")

    def for_encoder(self, *, height: int, width: int, mean: Channels, std: Channels) -> Self:
        """Return a copy with unset fields taken from the vision encoder."""
        height, width = self.height or height, self.width or width
        mean, std = self.mean or mean, self.std or std
        return replace(self, height=height, width=width, mean=mean, std=std)

    @property
    def size(self) -> Size:
        """(width, height), in pixels, as Pillow counts."""
        if self.width is None or self.height is None:
            raise ConfigError("the size of the pictures is not set; set height and width")
        return self.width, self.height

    @property
    def normalisation(self) -> tuple[Channels, Channels]:
        """Mean and deviation."""
        if self.mean is None or self.std is None:
            raise ConfigError("the normalisation of the pictures is not set; set mean and std")
        return self.mean, self.std
