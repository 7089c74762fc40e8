"""Views: from a picture to the tensor that a vision encoder reads.

Random parts are driven by uniforms that are handed in, `NUM_DRAWS` to a view, each with a fixed
use; `view_draws` makes them from (seed, epoch, example). The order is: crop and resize, mirror,
RandAugment, pad and crop back, erase, normalise.

RandAugment (Cubuk et al., 2020) is ALBEF's and RaSa's: ten operations, which leave hues alone
because captions name colours, and each chosen operation happens half of the time.

Shapes: N examples, B pictures of a batch, H height, W width.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from enum import IntEnum
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from maskery.core.batch import Ids
from maskery.core.random import Float32Array, Stream, random_rows, to_uniforms
from maskery.data.images.config import MAX_AUGMENT_OPERATIONS, Channels, Ends, Size, ViewConfig
from maskery.data.images.loading import ImageRef, Skipped, decode_many, decoders, pillow

if TYPE_CHECKING:
    from PIL.Image import Image

Pixels: TypeAlias = npt.NDArray[np.uint8]
Box: TypeAlias = tuple[float, float, float, float]  # left, top, right, bottom

# Width to height of an erased rectangle (Zhong et al., "Random erasing", AAAI 2020).
ERASE_RATIO = (0.3, 3.3)
# Uniforms of RandAugment: the operation, its happening, and its direction.
DRAWS_PER_OPERATION = 3
# ALBEF's rule: a chosen operation is applied half of the time.
HAPPENS = 0.5
# ALBEF shifts by up to 10 pixels of pictures 384 wide; here that share of any width.
MAX_SHEAR, MAX_SHIFT, MAX_ROTATION = 0.3, 10 / 384, 30.0
# Grey, so that moved-in corners look like no object.
FILL = (128, 128, 128)
# The use of each uniform of a view, in their order.
Draw = IntEnum(
    "Draw",
    "FLIP CROP_AREA CROP_RATIO CROP_X CROP_Y PAD_X PAD_Y "
    "ERASE ERASE_AREA ERASE_RATIO ERASE_X ERASE_Y AUGMENT",
    start=0,
)
NUM_DRAWS = Draw.AUGMENT + DRAWS_PER_OPERATION * MAX_AUGMENT_OPERATIONS


def view_draws(seed: int, epoch: int, example_ids: Ids, view: int = 0) -> Float32Array:
    """Draw the uniforms of one view, numbered from 0, of each example: (N, `NUM_DRAWS`)."""
    lengths = np.full(len(example_ids), NUM_DRAWS, np.int64)
    words = random_rows(seed, Stream.VIEW, epoch, example_ids, view * lengths, lengths)
    return to_uniforms(words).reshape(-1, NUM_DRAWS)


def view(image: Image, config: ViewConfig, draws: Float32Array | None = None) -> torch.Tensor:
    """Resize, augment and normalise a picture: (3, H, W) float32."""
    return normalise(view_pixels(image, config, draws), config)


def view_pixels(image: Image, config: ViewConfig, draws: Float32Array | None = None) -> Pixels:
    """`view` before normalisation: (H, W, 3) uint8, a quarter of the bytes to hand on."""
    module = pillow()
    bicubic = module.Resampling.BICUBIC
    if draws is None:
        return np.array(image.resize(config.size, bicubic))
    uniforms: list[float] = np.asarray(draws, np.float64).tolist()
    resized = image.resize(config.size, bicubic, box=_crop_box(image.size, config, uniforms))
    if uniforms[Draw.FLIP] < config.flip_probability:
        resized = resized.transpose(module.Transpose.FLIP_LEFT_RIGHT)
    if config.augment_operations:
        resized = augment(resized, config, uniforms[Draw.AUGMENT :])
    pixels, pad = np.array(resized), config.pad
    if pad:  # shifted by up to `pad` pixels each way; the gap has the mean colour
        height, width, _ = pixels.shape
        padded = np.full((height + 2 * pad, width + 2 * pad, 3), _mean_colour(config))
        padded[pad : pad + height, pad : pad + width] = pixels
        top, left = (int(uniforms[d] * (2 * pad + 1)) for d in (Draw.PAD_Y, Draw.PAD_X))
        pixels = padded[top : top + height, left : left + width].copy()
    if uniforms[Draw.ERASE] < config.erase_probability:
        _erase(pixels, config, uniforms)
    return pixels


def view_stack(
    images: Sequence[Image],
    config: ViewConfig,
    draws: Float32Array | None = None,
    *,
    pool: Executor | None = None,
    as_bytes: bool = False,
) -> torch.Tensor:
    """Return the views of some pictures, each with its draws: (B, 3, H, W) float32.

    With `as_bytes` as they are for `normalise_bytes`: (B, H, W, 3) uint8.
    """
    width, height = config.size
    shape, dtype = ((height, width, 3), torch.uint8) if as_bytes else ((3, height, width), None)
    # Page-locked where there is a GPU, which copies from there while it computes.
    pinned = torch.cuda.is_available()
    stack = torch.empty(len(images), *shape, dtype=dtype, pin_memory=pinned)
    rows: Iterable[Float32Array | None] = [None] * len(images) if draws is None else draws

    def fill(image: Image, row: Float32Array | None, out: torch.Tensor) -> None:
        pixels = view_pixels(image, config, row)
        if as_bytes:
            out.numpy()[...] = pixels
        else:
            normalise(pixels, config, out)

    deque((map if pool is None else pool.map)(fill, images, rows, stack), maxlen=0)
    return stack


def normalise(pixels: Pixels, config: ViewConfig, out: torch.Tensor | None = None) -> torch.Tensor:
    """(..., H, W, 3) uint8 to (..., 3, H, W) float32: (pixels / 255 - mean) / std."""
    factors, shifts = (v[:, None, None] for v in _scale(config.normalisation))
    planes = np.moveaxis(pixels, -1, -3)
    if out is None:
        out = torch.empty(planes.shape)
    # One multiplication and one subtraction per pixel, plane by plane: along the three colours of
    # a pixel they take six times as long. In NumPy, because this runs beside the training step,
    # whose threads on a CPU another team of torch's would hold up.
    levels = out.numpy()
    levels[...] = planes
    levels *= factors
    levels -= shifts
    return out


def normalise_bytes(pixels: torch.Tensor, normalisation: tuple[Channels, Channels]) -> torch.Tensor:
    """`normalise` on the device where (B, H, W, 3) uint8 are; on a CPU the bits are the same."""
    factors, shifts = (values.tolist() for values in _scale(normalisation))
    # With numbers, not tensors, which would have to be copied to the device at every step.
    planes = [pixels[..., c] * factors[c] - shifts[c] for c in range(len(factors))]
    return torch.stack(planes, dim=1)


def _scale(normalisation: tuple[Channels, Channels]) -> tuple[Float32Array, Float32Array]:
    """Return the factor and the shift of each colour: (pixels / 255 - mean) / std."""
    mean, std = (np.array(values, np.float32) for values in normalisation)
    return np.reciprocal(255 * std), mean / std


def _between(limits: Ends, uniform: float) -> float:
    return limits[0] + (limits[1] - limits[0]) * uniform


def _log_between(limits: Ends, uniform: float) -> float:
    return math.exp(_between((math.log(limits[0]), math.log(limits[1])), uniform))


def _crop_box(size: Size, config: ViewConfig, uniforms: list[float]) -> Box | None:
    """Return the box of a random resized crop in pixels; a side that sticks out is cut to fit."""
    if config.crop_scale is None:
        return None
    share = _between(config.crop_scale, uniforms[Draw.CROP_AREA])
    stretch = math.sqrt(_log_between(config.crop_ratio, uniforms[Draw.CROP_RATIO]))
    side = math.sqrt(share)
    width = size[0] * min(1.0, side * stretch)
    height = size[1] * min(1.0, side / stretch)
    left = (size[0] - width) * uniforms[Draw.CROP_X]
    top = (size[1] - height) * uniforms[Draw.CROP_Y]
    return left, top, min(left + width, size[0]), min(top + height, size[1])


def _erase(pixels: Pixels, config: ViewConfig, uniforms: list[float]) -> None:
    """Paint a random rectangle over with the mean colour, in place."""
    height, width, _ = pixels.shape
    area = _between(config.erase_scale, uniforms[Draw.ERASE_AREA]) * height * width
    ratio = _log_between(ERASE_RATIO, uniforms[Draw.ERASE_RATIO])
    erased_width = max(1, min(width, round(math.sqrt(area * ratio))))
    erased_height = max(1, min(height, round(math.sqrt(area / ratio))))
    top = int(uniforms[Draw.ERASE_Y] * (height - erased_height + 1))
    left = int(uniforms[Draw.ERASE_X] * (width - erased_width + 1))
    pixels[top : top + erased_height, left : left + erased_width] = _mean_colour(config)


def _mean_colour(config: ViewConfig) -> Pixels:
    return (np.array(config.normalisation[0]) * 255).round().astype(np.uint8)


def augment(image: Image, config: ViewConfig, uniforms: Sequence[float]) -> Image:
    """Apply `config.augment_operations` random operations."""
    strength = config.augment_magnitude / 10
    for number in range(config.augment_operations):
        which, whether, direction = uniforms[number * DRAWS_PER_OPERATION :][:DRAWS_PER_OPERATION]
        if whether < HAPPENS:
            operation = list(OPERATIONS.values())[int(which * len(OPERATIONS))]
            image = operation(image, strength if direction < 0.5 else -strength)
    return image


def _enhance(image: Image, enhancer: str, strength: float) -> Image:
    """Change a picture on ALBEF's scale: from a factor of 0.1 at magnitude 0 to 1.9 at 10."""
    factor = 0.1 + 1.8 * abs(strength)
    enhanced: Image = getattr(pillow("ImageEnhance"), enhancer)(image).enhance(factor)
    return enhanced


def _affine(image: Image, matrix: tuple[float, float, float, float, float, float]) -> Image:
    module = pillow()
    affine, bilinear = module.Transform.AFFINE, module.Resampling.BILINEAR
    return image.transform(image.size, affine, matrix, bilinear, fillcolor=FILL)


# Their order is part of the trace of a run: a draw chooses by number.
OPERATIONS: dict[str, Callable[[Image, float], Image]] = {
    "identity": lambda image, _: image,
    "autocontrast": lambda image, _: pillow("ImageOps").autocontrast(image),
    "equalise": lambda image, _: pillow("ImageOps").equalize(image),
    "brighten": lambda image, strength: _enhance(image, "Brightness", strength),
    "sharpen": lambda image, strength: _enhance(image, "Sharpness", strength),
    "shear_x": lambda image, s: _affine(image, (1, MAX_SHEAR * s, 0, 0, 1, 0)),
    "shear_y": lambda image, s: _affine(image, (1, 0, 0, MAX_SHEAR * s, 1, 0)),
    "shift_x": lambda image, s: _affine(image, (1, 0, MAX_SHIFT * image.width * s, 0, 1, 0)),
    "shift_y": lambda image, s: _affine(image, (1, 0, 0, 0, 1, MAX_SHIFT * image.height * s)),
    "rotate": lambda image, s: image.rotate(
        MAX_ROTATION * s, pillow().Resampling.BILINEAR, fillcolor=FILL
    ),
}


def view_batches(
    refs: Sequence[ImageRef], config: ViewConfig, skipped: Skipped, *, batch_images: int = 32
) -> Iterator[tuple[list[int], torch.Tensor]]:
    """Decode, resize and normalise pictures: their indices, and their pixels (B, 3, H, W) float32.

    Batches in which no picture can be read are left out; `skipped` decides if one is an error.
    """
    with decoders() as pool:
        for first in range(0, len(refs), batch_images):
            part = refs[first : first + batch_images]
            images = decode_many(part, skipped, pool, config.size)
            if read := {first + i: image for i, image in enumerate(images) if image is not None}:
                yield list(read), view_stack(list(read.values()), config, pool=pool)
