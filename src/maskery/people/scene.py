"""The circumstances of one picture: view, pose, place and light, and what can be seen in it."""

from dataclasses import dataclass
from enum import Enum
from functools import lru_cache

from maskery.core.random import MAX_EPOCH, Stream
from maskery.people.attributes import Bag, Hair, Identity
from maskery.people.draws import draws

OCCLUDED_SHARE = 0.06


class View(Enum):
    """The side from which the person is seen; left and right are where the person faces."""

    FRONT = "front"
    BACK = "back"
    LEFT = "left"
    RIGHT = "right"

    @property
    def is_side(self) -> bool:
        """Return True if the person is seen in profile."""
        return self in (View.LEFT, View.RIGHT)


class Pose(Enum):
    """The pose of the person."""

    STANDING = "standing"
    WALKING = "walking"
    WAVING = "waving"


class Place(Enum):
    """The background."""

    STREET = "street"
    PARK = "park"
    HALL = "hall"
    SQUARE = "square"


class Occluder(Enum):
    """The thing that stands before the person, if any."""

    POLE = "pole"
    LOW_WALL = "low wall"


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One picture's circumstances."""

    image_index: int  # From 0, within the identity
    view: View
    pose: Pose
    stride: float  # How far the legs are apart when walking, in [0, 1]
    place: Place
    layout: tuple[float, float]  # Two numbers in [0, 1) that place the things in the background
    brightness: float  # Factor on all channels
    tint: tuple[float, float, float]  # Factors on red, green and blue
    contrast: float  # Factor on the distance from mid-grey
    scale: float  # Size of the person relative to the picture
    shift: tuple[float, float]  # Of the person, in shares of the picture's width and height
    noise: float  # Of the sensor; the standard deviation in grey levels of 255
    occluder: Occluder | None


@dataclass(frozen=True, kw_only=True)
class Visible:
    """The attributes that a picture shows, of those that are not always in sight."""

    hair: bool
    bag: bool
    shoes: bool


@lru_cache(maxsize=64)
def _orders(seed: int, number: int) -> tuple[list[View], list[Pose], list[Place]]:
    """Return the order in which an identity's pictures go through views, poses and places."""
    draw = draws(seed, Stream.ORDER, 1 << 32 | number)
    return draw.shuffled(tuple(View)), draw.shuffled(tuple(Pose)), draw.shuffled(tuple(Place))


def scene_of(identity: Identity, image_index: int) -> Scene:
    """Return the circumstances of picture `image_index` (from 0) of a person.

    Consecutive pictures differ in view, pose and place; the rest is drawn for each.
    """
    if not 0 <= image_index <= MAX_EPOCH:
        raise ValueError(f"image_index is {image_index}: it must be from 0 to {MAX_EPOCH}")
    return _scene(identity.seed, identity.number, image_index)


@lru_cache(maxsize=64)
def _scene(seed: int, number: int, image_index: int) -> Scene:
    views, poses, places = _orders(seed, number)
    draw = draws(seed, Stream.VIEW, number, image_index)
    return Scene(
        image_index=image_index,
        view=views[image_index % len(views)],
        pose=poses[image_index % len(poses)],
        stride=draw.uniform(0.5, 1.0),
        place=places[image_index % len(places)],
        layout=(draw.uniform(), draw.uniform()),
        brightness=draw.uniform(0.78, 1.12),
        tint=(draw.uniform(0.94, 1.06), draw.uniform(0.96, 1.04), draw.uniform(0.94, 1.06)),
        contrast=draw.uniform(0.88, 1.06),
        scale=draw.uniform(0.86, 0.95),
        shift=(draw.uniform(-0.07, 0.07), draw.uniform(-0.015, 0.015)),
        noise=draw.uniform(1.0, 5.0),
        occluder=draw.choice(tuple(Occluder)) if draw.chance(OCCLUDED_SHARE) else None,
    )


def bag_is_near(identity: Identity, view: View) -> bool:
    """Return True if the side on which the bag is carried is towards the camera."""
    return view is (View.LEFT if identity.bag_on_left else View.RIGHT)


def visible(identity: Identity, scene: Scene) -> Visible:
    """Return the attributes that can be made out, and so may be named.

    From the front a backpack shows only its straps; in profile a bag on the far side is hidden; a
    hat covers short hair; a low wall covers the shoes.
    """
    if identity.bag is Bag.BACKPACK:
        bag = scene.view is not View.FRONT
    else:
        in_sight = not scene.view.is_side or bag_is_near(identity, scene.view)
        bag = identity.bag is not None and in_sight
    return Visible(
        hair=identity.hat is None or identity.hair is Hair.LONG,
        bag=bag,
        shoes=scene.occluder is not Occluder.LOW_WALL,
    )
