from __future__ import annotations

import numpy as np
from PIL import Image

from maskery.data.images.drawing import RAMP, heat_over, ramp


def test_the_hottest_place_is_coloured_and_the_coldest_is_not() -> None:
    image = Image.new("RGB", (40, 80), (200, 200, 200))
    heat = np.zeros((4, 2), np.float32)
    heat[3, 0] = 0.02
    drawn = np.asarray(heat_over(image, heat))
    assert drawn.shape == (80, 40, 3)
    assert (drawn[:20, 20:] == 200).all()
    np.testing.assert_allclose(drawn[75, 2], RAMP[-1], atol=40)


def test_even_heat_colours_nothing() -> None:
    image = Image.new("RGB", (8, 8), (10, 20, 30))
    drawn = heat_over(image, np.full((2, 2), 0.7, np.float32))
    assert np.array_equal(np.asarray(drawn), np.asarray(image))


def test_the_ramp_goes_through_its_colours() -> None:
    steps = np.linspace(0, 1, len(RAMP), dtype=np.float32)
    np.testing.assert_allclose(ramp(steps[None])[0], RAMP, atol=1e-3)
