"""Paint backgrounds and foregrounds, in muted colours, so that the clothing stands out."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from maskery.people.canvas import RGB
from maskery.people.scene import Occluder, Place, Scene

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw

GROUND = 0.72


def draw_place(draw: ImageDraw, size: tuple[int, int], scene: Scene) -> None:
    """Paint the whole picture with the scene's background."""
    PLACES[scene.place](draw, size, scene.layout)


def _fill(draw: ImageDraw, size: tuple[int, int], above: RGB, below: RGB, horizon: float) -> int:
    width, height = size
    line = round(height * horizon)
    draw.rectangle((0, 0, width, line), above)
    draw.rectangle((0, line, width, height), below)
    return line


def _street(draw: ImageDraw, size: tuple[int, int], layout: tuple[float, float]) -> None:
    """Paint a house front with windows, over a pavement."""
    width, height = size
    line = _fill(draw, size, (190, 182, 172), (150, 150, 152), GROUND + 0.05 * layout[0])
    pane = width * 0.24
    for column in range(-1, 4):
        x = (column + layout[1]) * width * 0.42
        for row in (0.08, 0.38):
            draw.rectangle((x, row * height, x + pane, (row + 0.18) * height), (158, 166, 176))
    draw.rectangle((0, line, width, line + 0.012 * height), (120, 120, 122))


def _park(draw: ImageDraw, size: tuple[int, int], layout: tuple[float, float]) -> None:
    """Paint sky, a hedge and a tree, over a lawn."""
    width, height = size
    line = _fill(draw, size, (206, 216, 224), (168, 184, 146), GROUND - 0.06 + 0.06 * layout[0])
    draw.rectangle((0, line - 0.1 * height, width, line), (148, 168, 136))
    x = layout[1] * width
    trunk, crown = 0.05 * width, 0.28 * width
    draw.rectangle((x - trunk, 0.2 * height, x + trunk, line), (150, 134, 118))
    draw.ellipse((x - crown, 0.02 * height, x + crown, 0.32 * height), (156, 178, 144))


def _hall(draw: ImageDraw, size: tuple[int, int], layout: tuple[float, float]) -> None:
    """Paint a wall with a door, over a shining floor."""
    width, height = size
    line = _fill(draw, size, (216, 210, 198), (186, 178, 168), GROUND + 0.04 * layout[0])
    x = layout[1] * width
    draw.rectangle((x - 0.16 * width, 0.14 * height, x + 0.16 * width, line), (178, 164, 148))
    draw.rectangle((0, line - 0.02 * height, width, line), (160, 152, 142))


def _square(draw: ImageDraw, size: tuple[int, int], layout: tuple[float, float]) -> None:
    """Paint paving seen from above, as from a camera on a mast."""
    width, height = size
    draw.rectangle((0, 0, width, height), (182, 180, 176))
    step = width * (0.26 + 0.1 * layout[0])
    joint = (164, 162, 158)
    for number in range(int(height / step) + 2):
        y = (number - layout[1]) * step
        draw.line((0, y, width, y), joint, max(1, width // 64))
    for number in range(int(width / step) + 2):
        x = (number - layout[0]) * step
        draw.line((x, 0, x, height), joint, max(1, width // 64))


PLACES: dict[Place, Callable[[ImageDraw, tuple[int, int], tuple[float, float]], None]] = {
    Place.STREET: _street,
    Place.PARK: _park,
    Place.HALL: _hall,
    Place.SQUARE: _square,
}


def draw_occluder(draw: ImageDraw, size: tuple[int, int], scene: Scene) -> None:
    """Paint the thing that stands before the person, if there is one."""
    width, height = size
    if scene.occluder is Occluder.POLE:
        x = (0.1 + 0.8 * scene.layout[0]) * width
        draw.rectangle((x, 0, x + 0.08 * width, height), (112, 116, 118))
    elif scene.occluder is Occluder.LOW_WALL:
        draw.rectangle((0, 0.84 * height, width, height), (170, 150, 132))
        draw.rectangle((0, 0.84 * height, width, 0.86 * height), (140, 122, 106))
