"""Pictures as batches for a vision encoder, without anything random.

Shapes: B pictures, H height, W width.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import torch

from maskery.data.images.config import ViewConfig
from maskery.data.images.decoding import Loadable, decode_many
from maskery.data.images.skipped import Skipped
from maskery.data.images.views import normalise, view_pixels

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_WORKERS = 8


def view_batches(
    refs: Sequence[Loadable], config: ViewConfig, skipped: Skipped, *, batch_images: int = 32
) -> Iterator[tuple[list[int], torch.Tensor]]:
    """Decode, resize and normalise pictures, some at a time.

    Args:
        refs: The pictures.
        config: With size and normalisation set.
        skipped: Told of pictures that cannot be read; its policy decides what follows.
        batch_images: The most pictures at a time.

    Yields:
        Which pictures these are, and their pixels (B, 3, H, W) float32. Batches in which no
        picture could be read are left out.

    Raises:
        DataError: A picture cannot be read, and `skipped` does not skip it.
    """
    for read in _decoded(refs, config, skipped, batch_images):
        if read:
            pixels = np.stack([view_pixels(image, config) for _, image in read])
            yield [index for index, _ in read], normalise(pixels, config)


def readable(
    refs: Sequence[Loadable], config: ViewConfig, skipped: Skipped, *, batch_images: int = 32
) -> list[int]:
    """Which pictures can be read; all of them are decoded, and none is kept.

    Args:
        refs: The pictures.
        config: With size set.
        skipped: Told of the others; its policy decides what follows.
        batch_images: The most pictures at a time.

    Raises:
        DataError: A picture cannot be read, and `skipped` does not skip it.
    """
    parts = _decoded(refs, config, skipped, batch_images)
    return [index for read in parts for index, _ in read]


def _decoded(
    refs: Sequence[Loadable], config: ViewConfig, skipped: Skipped, batch_images: int
) -> Iterator[list[tuple[int, Image]]]:
    """The pictures that can be read, with their places, some at a time."""
    workers = min(MAX_WORKERS, os.cpu_count() or 1)
    with ThreadPoolExecutor(workers, "decode") as pool:
        for first in range(0, len(refs), batch_images):
            part = refs[first : first + batch_images]
            images = decode_many(part, skipped, near=config.size, pool=pool)
            yield [(first + i, image) for i, image in enumerate(images) if image is not None]
