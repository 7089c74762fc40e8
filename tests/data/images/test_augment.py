from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from maskery.data.images.config import ViewConfig
from maskery.data.images.views import OPERATIONS, augment

PIXELS = np.random.default_rng(0).integers(20, 220, (32, 32, 3), dtype=np.uint8)
IMAGE = Image.fromarray(PIXELS)
NAMES = list(OPERATIONS)


def applied(name: str, *, magnitude: float, direction: float = 0.0) -> np.ndarray:
    which = (NAMES.index(name) + 0.5) / len(NAMES)
    config = ViewConfig(augment_operations=1, augment_magnitude=magnitude)
    return np.asarray(augment(IMAGE, config, [which, 0.0, direction])).astype(int)


def test_each_operation_happens_half_of_the_time() -> None:
    config = ViewConfig(augment_operations=1)
    which = (NAMES.index("equalise") + 0.5) / len(NAMES)
    assert augment(IMAGE, config, [which, 0.5, 0.0]) is IMAGE
    assert augment(IMAGE, config, [which, 0.49, 0.0]) is not IMAGE


@pytest.mark.parametrize(("magnitude", "factor"), [(0, 0.1), (5, 1.0), (10, 1.9)])
def test_brightness_follows_albefs_scale(magnitude: float, factor: float) -> None:
    expected = np.clip(PIXELS * factor, 0, 255)
    np.testing.assert_allclose(applied("brighten", magnitude=magnitude), expected, atol=1)


def test_sharpness_is_pillows() -> None:
    expected = np.asarray(ImageEnhance.Sharpness(IMAGE).enhance(1.36)).astype(int)
    np.testing.assert_allclose(applied("sharpen", magnitude=7), expected, atol=1)


@pytest.mark.parametrize("name", ["shear_x", "shear_y", "shift_x", "shift_y", "rotate"])
def test_geometry_is_still_at_magnitude_zero(name: str) -> None:
    np.testing.assert_array_equal(applied(name, magnitude=0), PIXELS)


@pytest.mark.parametrize("name", ["shear_x", "shear_y", "shift_x", "shift_y", "rotate"])
def test_directions_differ_and_gaps_are_grey(name: str) -> None:
    there, back = (applied(name, magnitude=10, direction=d) for d in (0.0, 0.9))
    assert (there != back).any()


def test_autocontrast_reaches_both_ends() -> None:
    stretched = applied("autocontrast", magnitude=7)
    assert stretched.min(axis=(0, 1)).tolist() == [0, 0, 0]
    assert stretched.max(axis=(0, 1)).tolist() == [255, 255, 255]


def test_rotation_turns_thirty_degrees_at_most() -> None:
    expected = IMAGE.rotate(30, Image.Resampling.BILINEAR, fillcolor=(128, 128, 128))
    np.testing.assert_array_equal(applied("rotate", magnitude=10), np.asarray(expected))


def test_every_operation_can_be_chosen() -> None:
    config = ViewConfig(augment_operations=4, augment_magnitude=7)
    for which in np.linspace(0, 1 - 2**-24, 50):
        result = augment(IMAGE, config, [float(which), 0.0, 0.0] * 4)
        assert (result.size, result.mode) == (IMAGE.size, "RGB")
