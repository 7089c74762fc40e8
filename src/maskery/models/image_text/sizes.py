"""Sizes of an image-text model trained from scratch; light to import."""

from dataclasses import dataclass
from typing import Annotated

from maskery.core.errors import ConfigError
from maskery.core.ranges import Count, Range, Settings


@dataclass(frozen=True, kw_only=True)
class ImageTextSizes(Settings):
    """Sizes of an image-text model; the defaults train on two CPU cores in minutes."""

    image_size: tuple[int, int] = (64, 32)
    """Height and width of the images, in pixels."""
    patch_size: Count = 4
    """Side of a patch, in pixels; must divide both."""
    image_layers: Annotated[int, Range(0)] = 2
    """Layers of the vision encoder."""
    text_layers: Annotated[int, Range(0)] = 1
    """Layers that read text alone."""
    fusion_layers: Annotated[int, Range(0)] = 2
    """Layers that read text with the image."""
    width: Count = 128
    """Width of both encoders."""
    num_heads: Count = 4
    """Attention heads of both; must divide the width."""
    embed_dim: Count = 64
    """Width of the contrastive features."""
    max_length: Count = 64
    """Longest text, in tokens."""
    dropout: Annotated[float, Range(0, 1, below=True)] = 0.0
    """Dropout of the text encoder."""

    def __post_init__(self) -> None:
        super().__post_init__()
        height, width = self.image_size
        if height < 1 or width < 1 or height % self.patch_size or width % self.patch_size:
            problem = f"image_size is {height} x {width} and patch_size {self.patch_size}"
            rule = "the patch size must divide both sides; choose sides that are multiples of it"
            raise ConfigError(f"{problem}: {rule}")
        if self.width % self.num_heads:
            problem = f"width is {self.width} and num_heads {self.num_heads}"
            raise ConfigError(f"{problem}: the heads must divide the width")
