from __future__ import annotations

from dataclasses import replace

import pytest

from maskery.people.attributes import Bag, Colour, Hair, Hat, identity_at
from maskery.people.scene import OCCLUDED_SHARE, Occluder, View, scene_of, visible


def test_consecutive_pictures_differ_in_view_pose_and_place() -> None:
    for number in range(50):
        scenes = [scene_of(identity_at(0, number), index) for index in range(4)]
        assert len({scene.view for scene in scenes}) == 4
        assert len({scene.place for scene in scenes}) == 4
        assert len({scene.pose for scene in scenes}) == 3
        assert len({scene.brightness for scene in scenes}) == 4


def test_first_views_are_spread() -> None:
    views = [scene_of(identity_at(0, number), 0).view for number in range(800)]
    for view in View:
        # Four standard deviations about 200.
        assert 150 < views.count(view) < 250


def test_occlusion_is_rare() -> None:
    scenes = [scene_of(identity_at(0, n), i) for n in range(500) for i in range(4)]
    share = sum(scene.occluder is not None for scene in scenes) / len(scenes)
    assert abs(share - OCCLUDED_SHARE) < 0.022


def test_scenes_do_not_depend_on_other_pictures() -> None:
    person = identity_at(9, 123)
    assert scene_of(person, 7) == scene_of(person, 7)
    assert scene_of(person, 7) != scene_of(person, 11)


def test_negative_picture_is_refused() -> None:
    with pytest.raises(ValueError, match="image_index is -1"):
        scene_of(identity_at(0, 0), -1)


@pytest.mark.parametrize(
    ("bag", "view", "on_left", "seen"),
    [
        (Bag.BACKPACK, View.FRONT, True, False),
        (Bag.BACKPACK, View.BACK, True, True),
        (Bag.BACKPACK, View.LEFT, False, True),
        (Bag.HANDBAG, View.FRONT, True, True),
        (Bag.HANDBAG, View.LEFT, True, True),
        (Bag.HANDBAG, View.LEFT, False, False),
        (Bag.SHOULDER_BAG, View.RIGHT, False, True),
        (Bag.SHOULDER_BAG, View.RIGHT, True, False),
        (None, View.BACK, True, False),
    ],
)
def test_which_bags_can_be_seen(bag: Bag | None, view: View, on_left: bool, seen: bool) -> None:
    person = replace(identity_at(0, 0), bag=bag, bag_colour=bag and Colour.RED, bag_on_left=on_left)
    scene = replace(scene_of(person, 0), view=view)
    assert visible(person, scene).bag is seen


def test_hats_cover_short_hair_and_walls_cover_shoes() -> None:
    person = replace(identity_at(0, 0), hat=Hat.CAP, hat_colour=Colour.RED, hair=Hair.SHORT)
    scene = replace(scene_of(person, 0), occluder=Occluder.LOW_WALL)
    assert not visible(person, scene).hair
    assert not visible(person, scene).shoes
    assert visible(replace(person, hair=Hair.LONG), scene).hair
    assert visible(replace(person, hat=None), replace(scene, occluder=Occluder.POLE)).shoes
