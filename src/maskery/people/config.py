"""The settings of a drawn dataset; light to import."""

from dataclasses import dataclass
from typing import Annotated, Literal

from maskery.core.errors import ConfigError
from maskery.core.flags import conf
from maskery.core.ranges import Count, Range, Settings

SPLITS = ("train", "val", "test")
MAX_SIDE = 2048


@dataclass(frozen=True, kw_only=True)
class PeopleConfig(Settings):
    """The number of drawn people, of pictures of each, and their size."""

    num_people: Annotated[Count, conf.arg(aliases=("--people",))] = 2000
    """Different people."""

    images_per_person: Count = 4
    """Pictures of each person, in different view, pose, light and place."""

    seed: Annotated[int, Range(0, (1 << 64) - 1)] = 0
    """Decides everything drawn; person n is the same however many are drawn."""

    width: Annotated[int, Range(16, MAX_SIDE, unit="pixels")] = 64
    """Width of the pictures, in pixels."""

    height: Annotated[int, Range(16, MAX_SIDE, unit="pixels")] = 128
    """Height of the pictures, in pixels."""

    splits: tuple[float, float, float] = (0.8, 0.1, 0.1)
    """Shares of the people in train, val and test; nobody is in two of them."""

    image_format: Literal["jpg", "png"] = "jpg"
    """Files are JPEG of quality 95, or PNG (exact pixels, about six times larger)."""

    style: Literal[1, 2] = 1
    """The camera: 2 has dark places, a blue cast, paler colours and more noise, for measuring
    transfer; people and captions are the same."""

    swap_captions: Annotated[float, Range(0, 1, below=True, hint="try {flag} 0.2")] = 0.0
    """Share of the training captions exchanged between persons, to measure what noisy pairs cost;
    swapped_captions.npy tells which."""

    def __post_init__(self) -> None:
        super().__post_init__()
        shares = self.splits
        if len(shares) != 3 or min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
            raise ConfigError(
                f"splits is {shares}: give three shares that are not negative and add up to 1"
            )
        for name, share, count in zip(SPLITS, shares, self.split_sizes(), strict=True):
            if share > 0 and count == 0:
                raise ConfigError(
                    f"splits gives {name} a share of {share:g}, which of {self.num_people} people "
                    f"is nobody; draw more people or set the share to 0"
                )

    def split_sizes(self) -> tuple[int, int, int]:
        """Return the number of people in train, val and test."""
        val = round(self.num_people * self.splits[1])
        test = round(self.num_people * self.splits[2])
        return self.num_people - val - test, val, test

    @property
    def size(self) -> tuple[int, int]:
        """Return (width, height) in pixels, in Pillow's order."""
        return self.width, self.height
