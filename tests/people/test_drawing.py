from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from maskery.people.attributes import (
    GARMENT_COLOURS,
    Bag,
    Build,
    Colour,
    Figure,
    Hair,
    Hat,
    Identity,
    Lower,
    Outfit,
    Upper,
    identity_at,
)
from maskery.people.drawing import render, render_scene
from maskery.people.palette import PAINTS
from maskery.people.scene import Occluder, Pose, Scene, View, scene_of

SIZE = (64, 128)


@pytest.fixture
def person() -> Identity:
    return replace(
        identity_at(0, 0),
        outfit=Outfit(Figure.MAN, Upper.SHIRT, Lower.TROUSERS),
        build=Build.AVERAGE,
        upper_colour=Colour.RED,
        lower_colour=Colour.BLUE,
        shoes_colour=Colour.WHITE,
        hair=Hair.SHORT,
        hair_colour=Colour.BLACK,
        bag=None,
        bag_colour=None,
        hat=None,
        hat_colour=None,
        stature=1.0,
    )


@pytest.fixture
def scene(person: Identity) -> Scene:
    """A plain picture: no noise, no jitter, even light."""
    return replace(
        scene_of(person, 0),
        view=View.FRONT,
        pose=Pose.STANDING,
        brightness=1.0,
        tint=(1.0, 1.0, 1.0),
        contrast=1.0,
        scale=0.95,
        shift=(0.0, 0.0),
        noise=0.0,
        occluder=None,
    )


def pixels(person: Identity, scene: Scene) -> np.ndarray:
    return np.asarray(render_scene(person, scene, SIZE)).astype(int)


def count_near(picture: np.ndarray, colour: Colour) -> int:
    """How many pixels have exactly the paint of a colour."""
    return int((np.abs(picture - PAINTS[colour]).max(axis=-1) <= 3).sum())


def test_pictures_are_pure() -> None:
    for number in (0, 5, 31):
        first = np.asarray(render(identity_at(7, number), 2, SIZE))
        identity_at.cache_clear()
        render(identity_at(7, 99), 0, SIZE)
        np.testing.assert_array_equal(first, np.asarray(render(identity_at(7, number), 2, SIZE)))


def test_pictures_of_a_person_differ() -> None:
    pictures = [render(identity_at(0, 3), index, SIZE).tobytes() for index in range(6)]
    assert len(set(pictures)) == 6


@pytest.mark.parametrize("size", [(64, 128), (32, 64), (128, 128), (96, 32), (17, 33), (384, 384)])
def test_any_size(size: tuple[int, int]) -> None:
    image = render(identity_at(0, 1), 0, size)
    assert image.size == size
    assert image.mode == "RGB"
    assert np.asarray(image).std() > 15


@pytest.mark.parametrize("view", list(View))
@pytest.mark.parametrize("upper", list(Upper))
@pytest.mark.parametrize("colour", GARMENT_COLOURS)
def test_garment_colours_are_painted(
    person: Identity, scene: Scene, view: View, upper: Upper, colour: Colour
) -> None:
    other = Colour.GREEN if colour is not Colour.GREEN else Colour.RED
    lower = None if upper is Upper.DRESS else Lower.TROUSERS
    worn = replace(
        person, outfit=Outfit(Figure.MAN, upper, lower), upper_colour=colour, lower_colour=other
    )
    picture = pixels(worn, replace(scene, view=view))
    # A fiftieth of the picture is 164 pixels: no small thing.
    assert count_near(picture, colour) > 120
    assert count_near(picture, other) > (10 if lower is None else 120)


@pytest.mark.parametrize("view", list(View))
def test_colours_of_hat_bag_and_shoes_show(person: Identity, scene: Scene, view: View) -> None:
    dressed = replace(
        person,
        hat=Hat.CAP,
        hat_colour=Colour.YELLOW,
        bag=Bag.HANDBAG,
        bag_colour=Colour.GREEN,
        bag_on_left=view is not View.RIGHT,
        shoes_colour=Colour.PINK,
    )
    picture = pixels(dressed, replace(scene, view=view))
    assert count_near(picture, Colour.YELLOW) > 25
    assert count_near(picture, Colour.GREEN) > 25
    assert count_near(picture, Colour.PINK) > 25


def test_hidden_bags_do_not_show(person: Identity, scene: Scene) -> None:
    far = replace(person, bag=Bag.HANDBAG, bag_colour=Colour.YELLOW, bag_on_left=False)
    assert count_near(pixels(far, replace(scene, view=View.LEFT)), Colour.YELLOW) == 0
    assert count_near(pixels(far, replace(scene, view=View.RIGHT)), Colour.YELLOW) > 25


def test_a_backpack_shows_its_straps_alone_in_front(person: Identity, scene: Scene) -> None:
    packed = replace(person, bag=Bag.BACKPACK, bag_colour=Colour.YELLOW)
    front = count_near(pixels(packed, scene), Colour.YELLOW)
    back = count_near(pixels(packed, replace(scene, view=View.BACK)), Colour.YELLOW)
    assert front < back / 3


def test_a_low_wall_hides_the_shoes(person: Identity, scene: Scene) -> None:
    shod = replace(person, shoes_colour=Colour.YELLOW)
    assert count_near(pixels(shod, scene), Colour.YELLOW) > 25
    walled = pixels(shod, replace(scene, occluder=Occluder.LOW_WALL))
    assert count_near(walled, Colour.YELLOW) == 0


def test_the_sides_are_mirror_images(person: Identity, scene: Scene) -> None:
    # The place is not mirrored, so only the part that no background touches is compared.
    left = pixels(person, replace(scene, view=View.LEFT))
    right = pixels(person, replace(scene, view=View.RIGHT))
    red_left = (np.abs(left - PAINTS[Colour.RED]).max(-1) <= 3)[:, ::-1]
    red_right = np.abs(right - PAINTS[Colour.RED]).max(-1) <= 3
    assert (red_left != red_right).sum() < 0.15 * red_right.sum()


def test_kinds_look_different(person: Identity, scene: Scene) -> None:
    pictures = {
        (upper, view): pixels(
            replace(person, outfit=Outfit(Figure.MAN, upper, None)), replace(scene, view=view)
        )
        for upper in Upper
        for view in View
    }
    for view in View:
        for first in Upper:
            for second in Upper:
                if first is not second:
                    differing = (pictures[first, view] != pictures[second, view]).any(-1).sum()
                    assert differing > 40, (first, second, view)


def test_light_scales_and_noise_has_its_deviation(person: Identity, scene: Scene) -> None:
    plain = pixels(person, scene)
    dark = pixels(person, replace(scene, brightness=0.8))
    np.testing.assert_allclose(dark, np.rint(plain * 0.8), atol=1)
    noisy = pixels(person, replace(scene, noise=4.0))
    middle = (plain > 30) & (plain < 225)
    difference = (noisy - plain)[middle]
    assert abs(difference.mean()) < 0.15
    # Rounding adds a twelfth to the variance.
    assert difference.std() == pytest.approx(np.sqrt(16 + 1 / 12), rel=0.03)
