"""The benchmark as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from maskery.core.registry import require

INK, ACCENT, QUIET = "#1f2430", "#2f6f4f", "#b9c0c7"


def draw_chart(result: dict[str, Any], path: Path) -> None:
    """Bars of real tokens a second with the spread of the rounds, as PNG or SVG."""
    require("matplotlib", extra="report", purpose="draw the chart")
    from matplotlib.figure import Figure

    rows = result["rows"][::-1]
    figure = Figure(figsize=(7.2, 0.55 * len(rows) + 1.2), layout="constrained")
    axes = figure.subplots()
    first = result["rows"][0]["name"]
    speeds = [row["tokens_per_second"] for row in rows]
    spread = [
        [row["tokens_per_second"] - row["slowest"] for row in rows],
        [row["fastest"] - row["tokens_per_second"] for row in rows],
    ]
    colours = [ACCENT if row["name"] == first else QUIET for row in rows]
    axes.barh([row["name"] for row in rows], speeds, xerr=spread, color=colours, ecolor=INK)
    for index, row in enumerate(rows):
        note = f"{row['tokens_per_second']:,.0f}"
        if row["name"] != first:
            note += f"   {first} is {row['ratio']:.1f}x"
        axes.annotate(
            note,
            (row["fastest"], index),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            color=INK,
            fontsize=9,
        )
    config = result["environment"]["config"]
    axes.set_title(
        f"{config['model']}, dropout: {config['dropout']}, {result['environment']['device']}",
        loc="left",
        fontsize=10,
        color=INK,
    )
    axes.set_xlabel("real tokens a second (median and range of the rounds)", fontsize=9)
    axes.set_xlim(0, max(row["fastest"] for row in rows) * 1.35)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
