"""Place the joints of a drawn body, in figure units (see `canvas`).

In profile the body faces the positive x; the canvas mirrors it for the other side.
"""

from dataclasses import dataclass

from maskery.people.attributes import Build, Figure, Identity
from maskery.people.canvas import Point
from maskery.people.scene import Pose, Scene, View, bag_is_near

CHIN, NECK, SHOULDER, WAIST = 0.168, 0.19, 0.21, 0.42
HIP, KNEE, ANKLE, SOLE = 0.53, 0.74, 0.925, 0.955
HEAD_CENTRE, HEAD_RADII = 0.088, (0.068, 0.084)
BREADTHS = {Build.SLIM: 0.82, Build.AVERAGE: 1.0, Build.BROAD: 1.24}
# Half widths at shoulder, waist and hip, seen from the front.
OUTLINES = {Figure.MAN: (0.128, 0.104, 0.1), Figure.WOMAN: (0.104, 0.074, 0.114)}
PROFILE = 0.66


@dataclass(frozen=True, kw_only=True)
class Limb:
    """Three joints of an arm or a leg, from the body outwards."""

    root: Point
    middle: Point
    end: Point

    @property
    def points(self) -> tuple[Point, Point, Point]:
        """Return the joints, from the body outwards."""
        return self.root, self.middle, self.end


@dataclass(frozen=True, kw_only=True)
class Body:
    """The proportions and joints of a person in a scene."""

    breadth: float  # Of the build, 1 for the average
    shoulder: float  # Half width, as are the next two
    waist: float
    hip: float
    legs: tuple[Limb, Limb]  # In profile the far one first
    arms: tuple[Limb, Limb]  # Likewise; otherwise the one on the left of the picture
    bag_side: int  # 1 for a bag on the right of the picture (in profile: on the near side), or -1

    @property
    def bag_arm(self) -> Limb:
        """Return the arm on the side of the bag."""
        return self.arms[self.bag_side > 0]


def body_of(identity: Identity, scene: Scene) -> Body:
    """Return the body of `identity` as it stands or walks in `scene`."""
    breadth = BREADTHS[identity.build]
    shoulder, waist, hip = (half * breadth for half in OUTLINES[identity.outfit.figure])
    if scene.view.is_side:
        side = 1 if bag_is_near(identity, scene.view) else -1
        # A body is nearly as deep at the waist as it is broad at the hip.
        shoulder = waist = (shoulder + waist) / 2 * PROFILE
        hip *= PROFILE
        legs, arms = _profile_legs(scene), _profile_arms(scene, raised=side < 0)
    else:
        side = 1 if identity.bag_on_left is (scene.view is View.FRONT) else -1
        legs = _facing_legs(scene, hip)
        arms = _facing_arms(scene, shoulder, raised=0 if side > 0 else 1)
    return Body(
        breadth=breadth,
        shoulder=shoulder,
        waist=waist,
        hip=hip,
        legs=legs,
        arms=arms,
        bag_side=side,
    )


def _facing_legs(scene: Scene, hip: float) -> tuple[Limb, Limb]:
    spread = 0.54 * hip
    lift = 0.045 * scene.stride if scene.pose is Pose.WALKING else 0.0
    return (
        Limb(root=(-spread, HIP), middle=(-spread - 0.004, KNEE), end=(-spread - 0.008, ANKLE)),
        Limb(
            root=(spread, HIP),
            middle=(spread + 0.004, KNEE - lift),
            end=(spread + 0.008, ANKLE - lift),
        ),
    )


def _profile_legs(scene: Scene) -> tuple[Limb, Limb]:
    if scene.pose is not Pose.WALKING:
        far = Limb(root=(0.012, HIP), middle=(0.016, KNEE), end=(0.012, ANKLE))
        return far, Limb(root=(-0.01, HIP), middle=(-0.006, KNEE), end=(-0.012, ANKLE))
    reach = 0.13 * scene.stride
    far = Limb(root=(0.0, HIP), middle=(-0.35 * reach, KNEE), end=(-1.15 * reach, ANKLE - 0.02))
    return far, Limb(root=(0.0, HIP), middle=(0.7 * reach, KNEE), end=(reach, ANKLE))


def _facing_arms(scene: Scene, shoulder: float, *, raised: int) -> tuple[Limb, Limb]:
    arms = []
    for index, sign in enumerate((-1, 1)):
        root = (sign * (shoulder - 0.022), SHOULDER + 0.03)
        if scene.pose is Pose.WAVING and index == raised:
            middle, end = (sign * (shoulder + 0.07), 0.3), (sign * (shoulder + 0.085), 0.14)
        else:
            middle, end = (sign * (shoulder + 0.022), 0.38), (sign * (shoulder + 0.03), 0.515)
        arms.append(Limb(root=root, middle=middle, end=end))
    return arms[0], arms[1]


def _profile_arms(scene: Scene, *, raised: bool) -> tuple[Limb, Limb]:
    root = (-0.005, SHOULDER + 0.035)
    hanging = Limb(root=root, middle=(-0.02, 0.38), end=(0.005, 0.515))
    if scene.pose is Pose.WALKING:
        swing = 0.13 * scene.stride
        far = Limb(root=root, middle=(0.3 * swing, 0.38), end=(swing, 0.49))
        return far, Limb(root=root, middle=(-0.6 * swing, 0.37), end=(-0.8 * swing, 0.5))
    if scene.pose is Pose.WAVING:
        lifted = Limb(root=root, middle=(0.1, 0.31), end=(0.15, 0.16))
        # The hand that carries no bag waves.
        return (hanging, lifted) if raised else (lifted, hanging)
    return hanging, hanging
