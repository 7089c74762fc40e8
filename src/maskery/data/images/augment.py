"""RandAugment as ALBEF and RaSa use it.

Cubuk et al., "RandAugment", 2020, with ALBEF's ten operations, which leave hues alone (captions
name colours), and its rule that each chosen operation happens half of the time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from maskery.core.optional import require
from maskery.data.images.config import ViewConfig

if TYPE_CHECKING:
    from PIL.Image import Image

DRAWS_PER_OPERATION = 3
"""Which operation, whether it happens, and its direction."""

HAPPENS = 0.5
MAX_SHEAR, MAX_SHIFT, MAX_ROTATION = 0.3, 10 / 384, 30.0
"""ALBEF shifts by up to 10 pixels of pictures 384 wide; here that share of any width."""

FILL = (128, 128, 128)


def augment(image: Image, config: ViewConfig, uniforms: Sequence[float]) -> Image:
    """Apply `config.augment_operations` random operations.

    Args:
        image: RGB.
        config: Number and magnitude of the operations.
        uniforms: `DRAWS_PER_OPERATION` for each operation.
    """
    strength = config.augment_magnitude / 10
    for number in range(config.augment_operations):
        which, whether, direction = uniforms[number * DRAWS_PER_OPERATION :][:DRAWS_PER_OPERATION]
        if whether < HAPPENS:
            operation = OPERATIONS[int(which * len(OPERATIONS))]
            image = operation(image, strength if direction < 0.5 else -strength)
    return image


def _identity(image: Image, _strength: float) -> Image:
    return image


def _autocontrast(image: Image, _strength: float) -> Image:
    operations = require("PIL.ImageOps", extra="vision", purpose="augment pictures")
    result: Image = operations.autocontrast(image)
    return result


def _equalise(image: Image, _strength: float) -> Image:
    operations = require("PIL.ImageOps", extra="vision", purpose="augment pictures")
    result: Image = operations.equalize(image)
    return result


def _enhance(image: Image, enhancer: str, strength: float) -> Image:
    """ALBEF's scale: magnitude 0 gives a factor of 0.1, magnitude 10 one of 1.9."""
    module = require("PIL.ImageEnhance", extra="vision", purpose="augment pictures")
    result: Image = getattr(module, enhancer)(image).enhance(0.1 + 1.8 * abs(strength))
    return result


def _brighten(image: Image, strength: float) -> Image:
    return _enhance(image, "Brightness", strength)


def _sharpen(image: Image, strength: float) -> Image:
    return _enhance(image, "Sharpness", strength)


def _affine(image: Image, matrix: tuple[float, float, float, float, float, float]) -> Image:
    module = require("PIL.Image", extra="vision", purpose="augment pictures")
    result: Image = image.transform(
        image.size,
        module.Transform.AFFINE,
        matrix,
        resample=module.Resampling.BILINEAR,
        fillcolor=FILL,
    )
    return result


def _shear_x(image: Image, strength: float) -> Image:
    return _affine(image, (1, MAX_SHEAR * strength, 0, 0, 1, 0))


def _shear_y(image: Image, strength: float) -> Image:
    return _affine(image, (1, 0, 0, MAX_SHEAR * strength, 1, 0))


def _shift_x(image: Image, strength: float) -> Image:
    return _affine(image, (1, 0, MAX_SHIFT * image.width * strength, 0, 1, 0))


def _shift_y(image: Image, strength: float) -> Image:
    return _affine(image, (1, 0, 0, 0, 1, MAX_SHIFT * image.height * strength))


def _rotate(image: Image, strength: float) -> Image:
    module = require("PIL.Image", extra="vision", purpose="augment pictures")
    return image.rotate(MAX_ROTATION * strength, module.Resampling.BILINEAR, fillcolor=FILL)


OPERATIONS: tuple[Callable[[Image, float], Image], ...] = (
    _identity,
    _autocontrast,
    _equalise,
    _brighten,
    _sharpen,
    _shear_x,
    _shear_y,
    _shift_x,
    _shift_y,
    _rotate,
)
