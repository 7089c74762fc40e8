"""A drawing surface in figure units, over Pillow.

One unit is the height of the person: y runs from 0 at the top of the head to 1 on the ground, x
grows to the right from the body's axis. Shapes are drawn twice as large as the picture and reduced
afterwards, which smooths their edges.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw

RGB: TypeAlias = tuple[int, int, int]
Point: TypeAlias = tuple[float, float]


def shade(colour: RGB, factor: float) -> RGB:
    """Return `colour` made darker (factor below 1) or lighter (above)."""
    if factor <= 1:
        red, green, blue = (round(channel * factor) for channel in colour)
    else:
        red, green, blue = (round(255 - (255 - channel) / factor) for channel in colour)
    return red, green, blue


def is_light(colour: RGB) -> bool:
    """Return True if dark marks show better on `colour` than pale ones."""
    return sum(colour) > 420


def mark_on(colour: RGB, factor: float = 0.55, on_black: RGB = (70, 70, 76)) -> RGB:
    """Return the colour of outlines and seams on `colour`: darker, but never lost on black."""
    return shade(colour, factor) if sum(colour) > 150 else on_black


class Canvas:
    """Draw filled, outlined shapes at figure coordinates.

    Args:
        draw: Pillow's drawing object over the enlarged picture.
        centre: x of the body's axis, in its pixels.
        top: y of the top of the head, in its pixels.
        unit: Height of the person, in its pixels.
        mirrored: Whether x grows to the left instead.
    """

    def __init__(
        self, draw: ImageDraw, *, centre: float, top: float, unit: float, mirrored: bool = False
    ) -> None:
        self.draw = draw
        self.centre, self.top, self.unit = centre, top, unit
        self.x_unit = -unit if mirrored else unit
        self.line_width = max(1, round(unit / 120))

    def _at(self, point: Point) -> Point:
        return self.centre + point[0] * self.x_unit, self.top + point[1] * self.unit

    def polygon(self, points: Sequence[Point], colour: RGB, *, outline: bool = True) -> None:
        """Draw a filled polygon."""
        corners = [self._at(point) for point in points]
        if outline:
            self.draw.polygon(corners, colour, mark_on(colour), self.line_width)
        else:
            self.draw.polygon(corners, colour)

    def ellipse(self, centre: Point, radii: Point, colour: RGB, *, outline: bool = True) -> None:
        """Draw a filled ellipse."""
        x, y = self._at(centre)
        across, down = radii[0] * self.unit, radii[1] * self.unit
        box = (x - across, y - down, x + across, y + down)
        edge = mark_on(colour) if outline else colour
        self.draw.ellipse(box, colour, edge, self.line_width)

    def rounded(self, corner: Point, opposite: Point, colour: RGB, *, radius: float) -> None:
        """Draw a filled rectangle with round corners."""
        (x0, y0), (x1, y1) = self._at(corner), self._at(opposite)
        box = (min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1))
        size = min(radius * self.unit, (box[2] - box[0]) / 2, (box[3] - box[1]) / 2)
        self.draw.rounded_rectangle(box, size, colour, mark_on(colour), self.line_width)

    def line(self, points: Sequence[Point], colour: RGB, width: float) -> None:
        """Draw a line without outline; `width` in figure units, at least one pixel."""
        corners = [self._at(point) for point in points]
        self.draw.line(corners, colour, max(1, round(width * self.unit)))

    def limb(self, points: Sequence[Point], colour: RGB, width: float) -> None:
        """Draw a thick line with round joints and ends, outlined."""
        corners = [self._at(point) for point in points]
        for extra, fill in ((self.line_width, mark_on(colour)), (-self.line_width, colour)):
            thickness = max(1, round(width * self.unit + extra))
            radius = (thickness - 1) / 2
            self.draw.line(corners, fill, thickness)
            for x, y in corners:
                self.draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill)
