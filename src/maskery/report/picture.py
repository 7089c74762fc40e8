"""The curves as a PNG, for slides and issues."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from maskery.core.optional import require
from maskery.report.curves import Chart

COLUMNS = 3
COLOURS = ("#3556c4", "#d9722e", "#2a8a74", "#8a5bb5")


def draw_picture(charts: Sequence[Chart], path: Path) -> None:
    """Draw all charts into one picture.

    Args:
        charts: At least one.
        path: The .png to write.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    require("matplotlib", extra="report", purpose="draw curves")
    # The figure by itself: pyplot would keep it, and look for a display.
    from matplotlib.figure import Figure

    columns = min(COLUMNS, len(charts))
    rows = math.ceil(len(charts) / columns)
    figure = Figure(figsize=(4.2 * columns, 2.7 * rows), layout="constrained", facecolor="white")
    for number, chart in enumerate(charts, 1):
        _draw(chart, figure.add_subplot(rows, columns, number))
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("wb") as stream:
        figure.savefig(stream, format="png", dpi=110)
    partial.replace(path)


def _draw(chart: Chart, axes: Any) -> None:
    for number, curve in enumerate(chart.curves):
        steps, values = zip(*curve.points, strict=True)
        if chart.percent:
            values = tuple(100 * value for value in values)
        marker = "o" if curve.marked or len(steps) == 1 else None
        colour = COLOURS[number % len(COLOURS)]
        axes.plot(steps, values, color=colour, marker=marker, markersize=3, label=curve.name)
    axes.set_title(f"{chart.title}{' (%)' if chart.percent else ''}", fontsize=10, loc="left")
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if len(chart.curves) > 1:
        axes.legend(loc="upper right", fontsize=8, frameon=False)
