"""Draw a person in a scene as a picture."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from maskery.core.random import MAX_EPOCH, Stream
from maskery.core.registry import require
from maskery.people.attributes import Identity
from maskery.people.bags import draw_bag_before, draw_bag_behind
from maskery.people.body import body_of
from maskery.people.canvas import Canvas
from maskery.people.clothes import draw_arm, draw_legs, draw_upper
from maskery.people.draws import draw_words
from maskery.people.head import draw_hair_behind, draw_head, draw_neck
from maskery.people.places import draw_occluder, draw_place
from maskery.people.scene import Scene, View, scene_of

if TYPE_CHECKING:
    from PIL.Image import Image

SUPERSAMPLING = 2
# A person with a hat and a raised hand is this wide and this high, in figure units.
FULL_WIDTH, HAT_HEIGHT, FULL_HEIGHT = 0.56, 0.05, 1.04


# The second camera: the weights of grey in its colours, and its blue cast.
GREYNESS, CAST = 0.35, (0.86, 0.97, 1.1)


def render(identity: Identity, image_index: int, size: tuple[int, int], style: int = 1) -> Image:
    """Draw picture `image_index` of a person.

    Args:
        identity: From `identity_at`.
        image_index: From 0.
        size: (width, height) in pixels.
        style: The camera, 1 or 2.

    Returns:
        An RGB image, a pure function of the arguments.

    Raises:
        MissingExtraError: Pillow is not installed.
    """
    return render_scene(identity, scene_of(identity, image_index), size, style)


def render_scene(identity: Identity, scene: Scene, size: tuple[int, int], style: int = 1) -> Image:
    """Draw a person in a scene of one's own choice; see `render`."""
    images, drawing = (
        require(module, extra="vision", purpose="draw people")
        for module in ("PIL.Image", "PIL.ImageDraw")
    )
    large = (size[0] * SUPERSAMPLING, size[1] * SUPERSAMPLING)
    surface = images.new("RGB", large)
    draw = drawing.Draw(surface)
    draw_place(draw, large, scene)
    if style == 2:  # places by night
        surface.paste(surface.point(lambda level: 0.9 * (255 - level)))
    _draw_figure(_canvas(draw, identity, scene, large), identity, scene)
    draw_occluder(draw, large, scene)
    picture = np.asarray(surface.reduce(SUPERSAMPLING))
    picture = _lit(picture, scene, _noise(identity, scene, picture.shape))
    if style == 2:
        picture = _second_camera(picture, identity, scene)
    image: Image = images.fromarray(picture)
    return image


def _canvas(draw: object, identity: Identity, scene: Scene, size: tuple[int, int]) -> Canvas:
    width, height = size
    unit = min(height / FULL_HEIGHT, width / FULL_WIDTH) * scene.scale * identity.stature
    return Canvas(
        draw,  # type: ignore[arg-type]
        centre=width * (0.5 + scene.shift[0]),
        top=(height - (1 + HAT_HEIGHT) * unit) / 2 + HAT_HEIGHT * unit + height * scene.shift[1],
        unit=unit,
        mirrored=scene.view is View.LEFT,
    )


def _draw_figure(canvas: Canvas, identity: Identity, scene: Scene) -> None:
    """Paint the person from the back to the front."""
    body, view = body_of(identity, scene), scene.view
    draw_bag_behind(canvas, identity, body, view)
    draw_hair_behind(canvas, identity, view)
    if view.is_side:
        draw_arm(canvas, identity, body.arms[0], far=True)
    draw_legs(canvas, identity, body, view)
    draw_neck(canvas, identity)
    draw_upper(canvas, identity, body, view)
    if not view.is_side:
        draw_arm(canvas, identity, body.arms[0], far=False)
    draw_arm(canvas, identity, body.arms[1], far=False)
    if view is View.BACK:
        draw_bag_before(canvas, identity, body, view)
        draw_head(canvas, identity, view)
    else:
        draw_head(canvas, identity, view)
        draw_bag_before(canvas, identity, body, view)


def _noise(identity: Identity, scene: Scene, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """Return noise of standard deviation 1, from the sums of random bits: (H, W, 3) float32.

    Two four-bit halves of a byte add up to a triangular distribution, near enough to a sensor's
    noise at a quarter of the random words.
    """
    count = int(np.prod(shape))
    named, needed = [identity.number], (count + 3) // 4
    (words,) = draw_words(identity.seed, Stream.CORRUPT, named, scene.image_index, needed)
    parts: npt.NDArray[np.uint8] = words.view(np.uint8)[:count]
    sums = (parts >> 4).astype(np.float32) + (parts & 15).astype(np.float32)
    # The variance of a uniform integer below 16 is (16**2 - 1) / 12.
    return ((sums - 15) / np.float32(np.sqrt(2 * 255 / 12))).reshape(shape)


def _lit(
    picture: npt.NDArray[np.uint8], scene: Scene, noise: npt.NDArray[np.float32]
) -> npt.NDArray[np.uint8]:
    """Apply contrast, brightness, tint and noise."""
    gain = np.array(scene.tint, np.float32) * np.float32(scene.brightness)
    levels = (picture.astype(np.float32) - 128) * np.float32(scene.contrast) + 128
    levels = levels * gain + noise * np.float32(scene.noise)
    lit: npt.NDArray[np.uint8] = np.clip(np.rint(levels), 0, 255).astype(np.uint8)
    return lit


def _second_camera(
    picture: npt.NDArray[np.uint8], identity: Identity, scene: Scene
) -> npt.NDArray[np.uint8]:
    """Apply paler colours, a blue cast, less light in the middle tones, and more noise."""
    levels = picture.astype(np.float32)
    grey = levels.mean(axis=2, keepdims=True)
    levels = 255 * ((levels + GREYNESS * (grey - levels)) / 255) ** np.float32(1.3)
    # Of a picture that is nobody's, so that it is not the noise that was added already.
    nobody = replace(scene, image_index=MAX_EPOCH - scene.image_index)
    noise = _noise(identity, nobody, picture.shape)
    levels = levels * np.array(CAST, np.float32) + 6 * noise
    seen: npt.NDArray[np.uint8] = np.clip(np.rint(levels), 0, 255).astype(np.uint8)
    return seen
