from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from maskery.core.errors import ConfigError
from maskery.data.images.config import (
    CLIP_MEAN,
    CLIP_STD,
    HALF_MEAN,
    HALF_STD,
    IMAGENET_MEAN,
    IMAGENET_STD,
    ViewConfig,
)
from maskery.data.images.views import (
    NUM_DRAWS,
    Draw,
    normalise,
    normalise_bytes,
    view,
    view_draws,
    view_pixels,
    view_stack,
)

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (40, 20, 3), dtype=np.uint8)
IMAGE = Image.fromarray(PIXELS)
PLAIN = ViewConfig(height=40, width=20, mean=HALF_MEAN, std=HALF_STD, flip_probability=0.0)
DRAWS = np.full(NUM_DRAWS, 0.5, np.float32)


def with_draws(**values: float) -> np.ndarray:
    draws = DRAWS.copy()
    for name, value in values.items():
        draws[Draw[name]] = value
    return draws


def with_settings(**values: object) -> ViewConfig:
    settings = {"height": 40, "width": 20, "mean": HALF_MEAN, "std": HALF_STD}
    return ViewConfig(**{**settings, "flip_probability": 0.0, **values})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("mean", "std"),
    [(CLIP_MEAN, CLIP_STD), (IMAGENET_MEAN, IMAGENET_STD), (HALF_MEAN, HALF_STD)],
)
def test_normalisation_is_the_formula(
    mean: tuple[float, float, float], std: tuple[float, float, float]
) -> None:
    got = view(IMAGE, with_settings(mean=mean, std=std)).numpy()
    expected = (PIXELS.astype(np.float64) / 255 - np.array(mean)) / np.array(std)
    assert got.shape == (3, 40, 20)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected.transpose(2, 0, 1), atol=2e-6)


def test_normalisation_of_batches() -> None:
    batch = np.stack([PIXELS, PIXELS[::-1]])
    got = normalise(batch, PLAIN)
    assert got.shape == (2, 3, 40, 20)
    assert got.is_contiguous()
    np.testing.assert_array_equal(got[0].numpy(), view(IMAGE, PLAIN).numpy())


@pytest.mark.parametrize(("mean", "std"), [(CLIP_MEAN, CLIP_STD), (IMAGENET_MEAN, IMAGENET_STD)])
def test_pictures_normalised_on_their_device_have_the_same_bits(
    mean: tuple[float, float, float], std: tuple[float, float, float]
) -> None:
    config = with_settings(mean=mean, std=std, flip_probability=0.5, pad=2)
    draws = view_draws(0, 0, np.arange(4, dtype=np.uint64))
    stacked = view_stack([IMAGE] * 4, config, draws, as_bytes=True)
    assert stacked.shape == (4, 40, 20, 3)
    assert stacked.element_size() == 1
    found, expected = normalise_bytes(stacked, (mean, std)), view_stack([IMAGE] * 4, config, draws)
    assert found.is_contiguous()
    np.testing.assert_array_equal(found.numpy(), expected.numpy())


def test_evaluation_resizes_bicubically_and_nothing_else() -> None:
    config = with_settings(height=24, width=24, flip_probability=1.0, pad=4, erase_probability=1.0)
    expected = np.asarray(IMAGE.resize((24, 24), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(view_pixels(IMAGE, config), expected)


def test_flip() -> None:
    config = with_settings(flip_probability=0.5)
    mirrored = view_pixels(IMAGE, config, with_draws(FLIP=0.49))
    np.testing.assert_array_equal(mirrored, PIXELS[:, ::-1])
    np.testing.assert_array_equal(view_pixels(IMAGE, config, with_draws(FLIP=0.5)), PIXELS)
    never = view_pixels(IMAGE, PLAIN, with_draws(FLIP=0.0))
    np.testing.assert_array_equal(never, PIXELS)


def test_crop_cuts_the_box_that_the_draws_name() -> None:
    # A quarter of the area, ratio 1, at the lower right: 10 x 20 pixels.
    config = with_settings(height=20, width=10, crop_scale=(0.25, 0.25), crop_ratio=(1.0, 1.0))
    right_below = with_draws(CROP_X=1.0, CROP_Y=1.0)
    np.testing.assert_array_equal(view_pixels(IMAGE, config, right_below), PIXELS[20:, 10:])
    left_above = with_draws(CROP_X=0.0, CROP_Y=0.0)
    np.testing.assert_array_equal(view_pixels(IMAGE, config, left_above), PIXELS[:20, :10])


def test_crops_stay_inside() -> None:
    config = with_settings(crop_scale=(0.05, 1.0), crop_ratio=(0.2, 5.0))
    for row in view_draws(1, 0, np.arange(300, dtype=np.uint64)):
        assert view_pixels(IMAGE, config, row).shape == (40, 20, 3)


def test_pad_shifts_and_fills_with_the_mean() -> None:
    config = with_settings(pad=3, mean=(0.2, 0.4, 0.6))
    shifted = view_pixels(IMAGE, config, with_draws(PAD_X=0.0, PAD_Y=0.999))
    # Cut at the left below of the padded picture: everything moves right and up.
    np.testing.assert_array_equal(shifted[:37, 3:], PIXELS[3:, :17])
    assert (shifted[:, :3] == (51, 102, 153)).all()
    assert (shifted[37:] == (51, 102, 153)).all()
    still = view_pixels(IMAGE, config, with_draws(PAD_X=0.5, PAD_Y=0.5))
    np.testing.assert_array_equal(still, PIXELS)


def test_erase_paints_the_share_asked_for() -> None:
    config = with_settings(erase_probability=0.5, erase_scale=(0.25, 0.25), mean=(0.2, 0.4, 0.6))
    erased = view_pixels(IMAGE, config, with_draws(ERASE=0.2))
    painted = (erased == (51, 102, 153)).all(-1)
    assert painted.sum() == pytest.approx(200, rel=0.06)
    rows, columns = np.flatnonzero(painted.any(1)), np.flatnonzero(painted.any(0))
    assert painted[np.ix_(rows, columns)].all(), "one rectangle"
    np.testing.assert_array_equal(erased[~painted], PIXELS[~painted])
    np.testing.assert_array_equal(view_pixels(IMAGE, config, with_draws(ERASE=0.5)), PIXELS)


def test_nothing_changes_without_settings() -> None:
    for row in view_draws(0, 0, np.arange(20, dtype=np.uint64)):
        np.testing.assert_array_equal(view_pixels(IMAGE, PLAIN, row), PIXELS)


def test_views_are_pure_and_leave_the_picture_alone() -> None:
    config = with_settings(
        flip_probability=0.5,
        crop_scale=(0.5, 1.0),
        pad=2,
        augment_operations=2,
        erase_probability=0.5,
    )
    (row,) = view_draws(3, 1, np.array([9], np.uint64))
    first = view(IMAGE, config, row).numpy()
    np.testing.assert_array_equal(first, view(IMAGE, config, row).numpy())
    np.testing.assert_array_equal(np.asarray(IMAGE), PIXELS)


def test_draws_name_seed_epoch_example_and_view() -> None:
    ids = np.array([5, 6, 7], np.uint64)
    base = view_draws(0, 0, ids)
    assert base.shape == (3, NUM_DRAWS)
    np.testing.assert_array_equal(base[1:2], view_draws(0, 0, ids[1:2]))
    for other in (view_draws(1, 0, ids), view_draws(0, 1, ids), view_draws(0, 0, ids, view=1)):
        assert not np.intersect1d(base, other).size


def test_flips_have_their_share() -> None:
    draws = view_draws(0, 0, np.arange(10_000, dtype=np.uint64))
    # Four standard deviations.
    assert abs((draws[:, Draw.FLIP] < 0.5).mean() - 0.5) < 0.02


def test_what_is_not_set_comes_from_the_encoder() -> None:
    config = ViewConfig(width=8).for_encoder(
        height=4, width=4, mean=IMAGENET_MEAN, std=IMAGENET_STD
    )
    assert config.size == (8, 4)
    assert config.normalisation == (IMAGENET_MEAN, IMAGENET_STD)


def test_unset_size_and_normalisation_are_refused() -> None:
    with pytest.raises(ConfigError, match="size of the pictures is not set"):
        view(IMAGE, ViewConfig(mean=HALF_MEAN, std=HALF_STD))
    with pytest.raises(ConfigError, match="normalisation of the pictures is not set"):
        view(IMAGE, ViewConfig(height=4, width=4))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"height": 0}, "height is 0"),
        ({"std": (0.1, 0.0, 0.1)}, "std is"),
        ({"flip_probability": 1.5}, "flip_probability is 1.5"),
        ({"erase_probability": -0.5}, "erase_probability is -0.5"),
        ({"crop_scale": (0.0, 1.0)}, "crop_scale is"),
        ({"crop_scale": (0.9, 0.5)}, "crop_scale is"),
        ({"erase_scale": (0.1, 2.0)}, "erase_scale is"),
        ({"crop_ratio": (2.0, 1.0)}, "crop_ratio is"),
        ({"pad": -1}, "pad is -1"),
        ({"augment_operations": 9}, "augment_operations is 9"),
        ({"augment_magnitude": 11.0}, "augment_magnitude is 11"),
    ],
)
def test_settings_outside_their_range(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ViewConfig(**settings)  # type: ignore[arg-type]
