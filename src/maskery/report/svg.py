"""Charts as SVG that takes its colours from the page, so that it follows dark and light."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from maskery.report.curves import Chart, Curve

WIDTH, HEIGHT = 360, 200
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 12, 26
# A curve of more points than the chart has pixels says no more.
MOST_POINTS = 400
# Below it a range cannot be cut into steps.
TINY = 1e-300


@dataclass(frozen=True, kw_only=True)
class Axis:
    """From values to pixels.

    Attributes:
        low: The value at `start`.
        high: The value at `end`.
        start: A pixel.
        end: A pixel.
        ticks: Round values from low to high.
    """

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[float, ...]

    def place(self, value: float) -> float:
        """The pixel of a value."""
        share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)


def draw(chart: Chart) -> str:
    """One chart; everything in it is a number of ours."""
    points = [point for curve in chart.curves for point in curve.points]
    horizontal = axis([x for x, _ in points], LEFT, WIDTH - RIGHT, whole=True)
    vertical = axis([y for _, y in points], HEIGHT - BOTTOM, TOP)
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-hidden="true">']
    for tick in vertical.ticks:
        y = vertical.place(tick)
        shown = f"{100 * tick:g}%" if chart.percent else short(tick)
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(tick_text(LEFT - 6, y + 3.5, "end", shown))
    parts += [
        tick_text(horizontal.place(tick), HEIGHT - 8, "middle", short(tick))
        for tick in horizontal.ticks
    ]
    for number, curve in enumerate(chart.curves):
        parts.append(_curve(curve, number, horizontal, vertical))
    return "".join([*parts, "</svg>"])


def tick_text(x: float, y: float, anchor: str, shown: str) -> str:
    """The number at a tick."""
    return f'<text class="tick" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{shown}</text>'


def axis(values: Sequence[float], start: float, end: float, *, whole: bool = False) -> Axis:
    """An axis with about four round ticks around the values.

    Args:
        values: At least one.
        start: The pixel of its lower end.
        end: Of its upper end.
        whole: Whether ticks are whole numbers, as steps are.
    """
    low, high = min(values), max(values)
    if high - low < TINY:
        room = abs(low) / 2 if abs(low) > TINY else 0.5
        low, high = low - room, high + room
    step = round_step((high - low) / 4)
    step = max(1.0, math.ceil(step)) if whole else step
    if not whole:
        low, high = math.floor(low / step) * step, math.ceil(high / step) * step
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    ticks = tuple(number * step for number in range(first, last + 1))
    return Axis(low=low, high=high, start=start, end=end, ticks=ticks)


def round_step(step: float) -> float:
    """The next of 1, 2, 2.5 and 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(f * power for f in (1, 2, 2.5, 5, 10) if f * power >= step * (1 - 1e-9))


def short(value: float) -> str:
    """A number in few characters."""
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 10_000:
        return f"{value / 1000:g}k"
    if size < 1e-3:
        mantissa, _, exponent = f"{value:.1e}".partition("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    return f"{value:.4g}"


def thin(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most `MOST_POINTS` points: means of neighbours between the first and the last."""
    if len(points) <= MOST_POINTS:
        return list(points)
    inner = points[1:-1]
    size = math.ceil(len(inner) / (MOST_POINTS - 2))
    groups = [inner[i : i + size] for i in range(0, len(inner), size)]
    means = [
        (sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group))
        for group in groups
    ]
    return [points[0], *means, points[-1]]


def _curve(curve: Curve, number: int, horizontal: Axis, vertical: Axis) -> str:
    places = [(horizontal.place(x), vertical.place(y)) for x, y in thin(curve.points)]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    drawn = f'<polyline class="curve c{number % 4}" points="{path}"/>'
    if curve.marked or len(places) == 1:
        drawn += "".join(
            f'<circle class="dot c{number % 4}" cx="{x:.1f}" cy="{y:.1f}" r="2.6"/>'
            for x, y in places
        )
    return drawn
