"""Sizes of an image-text model trained from scratch; light to import."""

from __future__ import annotations

from dataclasses import dataclass

from maskery.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ImageTextSizes:
    """Sizes of an image-text model; the defaults train on two CPU cores in minutes."""

    image_size: tuple[int, int] = (64, 32)
    """Height and width of the images, in pixels."""
    patch_size: int = 4
    """Side of a patch, in pixels; must divide both."""
    image_layers: int = 2
    """Layers of the vision encoder."""
    text_layers: int = 1
    """Layers that read text alone."""
    fusion_layers: int = 2
    """Layers that read text with the image."""
    width: int = 128
    """Width of both encoders."""
    num_heads: int = 4
    """Attention heads of both; must divide the width."""
    embed_dim: int = 64
    """Width of the contrastive features."""
    max_length: int = 64
    """Longest text, in tokens."""
    dropout: float = 0.0
    """Dropout of the text encoder."""

    def __post_init__(self) -> None:
        for name in ("patch_size", "width", "num_heads", "embed_dim", "max_length"):
            self._at_least(name, 1)
        for name in ("image_layers", "text_layers", "fusion_layers"):
            self._at_least(name, 0)
        height, width = self.image_size
        if height < 1 or width < 1 or height % self.patch_size or width % self.patch_size:
            raise ConfigError(
                f"image_size is {height} x {width} and patch_size {self.patch_size}: the patch "
                f"size must divide both sides; choose sides that are multiples of it"
            )
        if self.width % self.num_heads:
            raise ConfigError(
                f"width is {self.width} and num_heads {self.num_heads}: the heads must divide the "
                f"width"
            )
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout is {self.dropout}: it must be from 0 to below 1")

    def _at_least(self, name: str, least: int) -> None:
        value = getattr(self, name)
        if value < least:
            raise ConfigError(f"{name} is {value}: it must be at least {least}")


RASA = ImageTextSizes(
    image_size=(384, 384),
    patch_size=16,
    image_layers=12,
    text_layers=6,
    fusion_layers=6,
    width=768,
    num_heads=12,
    embed_dim=256,
    max_length=512,
    dropout=0.1,
)
"""ViT-B/16 at 384 pixels and BERT-base, six of its layers with cross-attention."""
