"""Heat maps over pictures.

Shapes: G x F the grid of the heat, H x W pixels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from maskery.core.optional import require

if TYPE_CHECKING:
    from PIL.Image import Image

RAMP = np.array(
    [(20, 20, 110), (20, 110, 230), (30, 210, 200), (250, 225, 40), (240, 70, 20), (140, 0, 0)],
    np.float32,
)
"""From cold to hot, at equal steps."""
GAMMA = 0.7
"""How soon the colour covers the picture, as ALBEF draws it."""


def heat_over(image: Image, heat: npt.NDArray[np.float32]) -> Image:
    """A picture with its hottest places coloured.

    The heat is scaled to its own least and largest, so that colours of two words cannot be
    compared; even heat colours nothing.

    Args:
        image: RGB.
        heat: (G, F), stretched over the whole picture.
    """
    module = require("PIL.Image", extra="vision", purpose="draw heat maps")
    span = float(heat.max() - heat.min())
    scaled = (heat - heat.min()) / span if span > 0 else np.zeros_like(heat)
    small = module.fromarray(scaled.astype(np.float32))
    large = np.clip(np.asarray(small.resize(image.size, module.Resampling.BICUBIC)), 0.0, 1.0)
    cover = large[..., None] ** GAMMA
    mixed = (1.0 - cover) * np.asarray(image, np.float32) + cover * ramp(large)
    drawn: Image = module.fromarray(np.rint(mixed).astype(np.uint8))
    return drawn


def ramp(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """(H, W) values from 0 to 1 to (H, W, 3) colours from 0 to 255."""
    steps = np.linspace(0.0, 1.0, len(RAMP))
    channels = [np.interp(values, steps, RAMP[:, channel]) for channel in range(3)]
    return np.stack(channels, axis=-1).astype(np.float32)
