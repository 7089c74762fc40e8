"""The charts that a run's metrics give, drawn by matplotlib: as a picture, and for the page.

In the page's SVG, colours are its own variables, so that charts follow its dark and light theme.
"""

import html
import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maskery.core.registry import require
from maskery.core.system import write_whole
from maskery.evaluation.retrieval.config import LABELS as RANKINGS
from maskery.evaluation.tables import RANKED_BY, SIGHTS
from maskery.objectives.terms import BATCH_TERMS, TERMS

LABELS = {name: term.label for name, term in TERMS.items()} | {
    **{name: f"Loss of the batch ({name})" for name in BATCH_TERMS},
    "grad_norm": "Gradient norm",
    "keep": "Distance of vectors from the start's",
    "probe": "Vectors: probe",
    "learning_rate": "Learning rate",
    "tokens_per_second": "Tokens per second",
    "pairs_per_second": "Pairs per second",
    "waiting_time_share": "Share of time waited for data",
}
LEFT_OUT = {"kind", "step", "epoch", "perplexity"}  # in another chart, or of no interest alone
# Of the picture: four curves, then the grid and the numbers; and the page's names for the same.
COLOURS = ("#3556c4", "#d9722e", "#2a8a74", "#8a5bb5", "#e6e6e6", "#404040")
VARIABLES = ("--c0", "--c1", "--c2", "--c3", "--line", "--soft")
LINES = ("-", "--", ":")  # with more curves than colours, these come again in other lines
COLUMNS = 3  # charts beside one another in the picture, which is as wide as a slide
# Inches of a chart. An SVG has 72 points an inch and is stretched to its card, 260 to 310 pixels.
WIDTH, HEIGHT = 3.6, 2.1
# The place of the axes in a chart of the page: left, bottom, width, height, as shares of it. Fixed,
# since fitting it to the labels draws every chart twice.
INSIDE = (0.19, 0.14, 0.78, 0.75)
HOVERED = 40  # points of a curve that say their value under the mouse; more would overlap
# Removed from an SVG that becomes part of the page: its size, fonts and clipping, which the page
# sets or does not need, and names other than those of the markers, which would occur twice.
UNWANTED = re.compile(
    r' (?:xmlns(?::xlink)?|width|height|clip-path|id)="(?!m[0-9a-f]{10}")[^"]*"'
    r"| font-family: [^;]*;|<(?:defs|metadata)>\s*<(?:style|clipPath|rdf).*?</(?:defs|metadata)>",
    re.DOTALL,
)

Series = dict[str, tuple[tuple[float, float], ...]]


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One line of a chart."""

    name: str  # Shown in the legend
    points: tuple[tuple[float, float], ...]  # (step, value) in order of steps
    marked: bool = False  # True to draw each point, for curves of few points


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A few curves over the same steps."""

    title: str  # The quantity, with its unit
    curves: tuple[Curve, ...]  # At least one
    percent: bool = False  # True if values are shares, to be shown in percent

    @property
    def drawn(self) -> bool:
        """True if there is a line to draw: a point by itself is said in words."""
        return any(len(curve.points) > 1 for curve in self.curves)

    def value(self, point: tuple[float, float]) -> str:
        """Return a point in words."""
        value = f"{100 * point[1]:.1f}%" if self.percent else f"{point[1]:,.4g}"
        return f"{value} at step {point[0]:,.0f}"


# Charts of several held-out quantities: their names with those of their curves; True for shares.
LOSS = "Loss (nats)"
GROUPS = {
    LOSS: ({"loss": "held out"}, False),
    "Held-out accuracy": ({"top1": "top-1", "top5": "top-5"}, True),
    **{
        f"Held-out {title}": ({f"{by}_{name}": shown for by, shown in RANKED_BY.items()}, True)
        for name, title in RANKINGS.items()
    },
}


def charts_of(metrics: Sequence[dict[str, Any]]) -> list[Chart]:
    """Return charts of loss, accuracy, rate, speed, and whatever else a run has logged."""
    train, held_out = _series(metrics, "train"), _series(metrics, "held_out")
    charts = []
    for title, (names, percent) in GROUPS.items():
        curves = _curves(train, {"loss": "training"}) if title == LOSS else ()
        # Of other texts and sights, the first figure has a curve in the same chart.
        end = f"_{next(iter(names))}"
        others = [name.removesuffix(end) for name in held_out if name.endswith(end)]
        beside = {f"{other}{end}": SIGHTS.get(other, other) for other in others}
        curves += _curves(held_out, names | beside, marked=True)
        charts.append(Chart(title=title, curves=curves, percent=percent))
    if train.keys() & TERMS.keys() == {"mlm"} and train.keys() <= {"loss"} | LABELS.keys():
        del train["mlm"]  # a single term is the loss itself
    order = ("learning_rate", "tokens_per_second", "pairs_per_second", "waiting_time_share")
    charts += [
        Chart(title=label(name), curves=_curves(train, {name: "training"}))
        for name in (*order, *sorted(train.keys() - {*order, "loss"}))
    ]
    grouped = {name for names, _ in GROUPS.values() for name in names}
    for name in sorted(held_out.keys() - grouped):
        if not name.endswith(("loss", "top1", "top5")):
            curves = _curves(held_out, {name: "held out"}, marked=True)
            charts.append(Chart(title=label(name), curves=curves))
    return [chart for chart in charts if chart.curves]


def held_out_charts(runs: Mapping[str, Sequence[dict[str, Any]]]) -> list[Chart]:
    """Return charts of loss and accuracy with a curve for each run, from their metrics by name."""
    charts = []
    figures = ("held_out loss", "held_out top1", "train loss")
    titles = ("Held-out loss (nats)", "Held-out top-1 accuracy", "Training loss (nats)")
    for (kind, name), title in zip(map(str.split, figures), titles, strict=True):
        found = {run: _series(lines, kind) for run, lines in runs.items()}
        points = {run: series[name] for run, series in found.items() if name in series}
        curves = _curves(points, {run: run for run in points}, marked=kind == "held_out")
        charts.append(Chart(title=title, curves=curves, percent=name == "top1"))
    return [chart for chart in charts if chart.curves]


def label(name: str) -> str:
    """Return a metric's name for people."""
    words = name.replace("_", " ")
    # A name with capitals of its own, such as SigLIP, is a user's loss term.
    return LABELS.get(name, words if words != words.lower() else words.capitalize())


def _series(lines: Iterable[dict[str, Any]], kind: str) -> Series:
    """Return every finite number of one kind of lines by its name, in order of steps."""
    found: dict[str, list[tuple[float, float]]] = {}
    chosen = (line for line in lines if line["kind"] == kind)
    for line in sorted(chosen, key=lambda line: float(line["step"])):
        for name, value in line.items():
            known = isinstance(value, int | float) and not isinstance(value, bool)
            if name not in LEFT_OUT and known and math.isfinite(value):
                found.setdefault(name, []).append((float(line["step"]), float(value)))
    return {name: tuple(points) for name, points in found.items()}


def _curves(series: Series, names: Mapping[str, str], *, marked: bool = False) -> tuple[Curve, ...]:
    """Return a curve for each name that there is; the few points of a marked one are drawn."""
    return tuple(
        Curve(name=shown, points=series[name], marked=marked)
        for name, shown in names.items()
        if name in series
    )


def draw_svg(chart: Chart) -> str:
    """Draw one chart as an `<svg>` element, whose points say their values under the mouse."""
    matplotlib = require("matplotlib", extra="report", purpose="draw curves")
    from matplotlib.figure import Figure

    # Text stays text, and names are the same whenever the same run is drawn.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": chart.title}):
        figure = Figure(figsize=(WIDTH, HEIGHT), facecolor="none")
        axes = figure.add_axes(INSIDE, facecolor="none")
        _draw(chart, axes, 12)
        stream = io.StringIO()
        figure.savefig(stream, format="svg", metadata={"Date": None})
    text = UNWANTED.sub("", "<svg" + stream.getvalue().partition("<svg")[2])
    for colour, variable in zip(COLOURS, VARIABLES, strict=True):
        text = text.replace(colour, f"var({variable})")
    text = text.replace("<svg", '<svg role="img" aria-hidden="true"', 1)
    return text.replace("</svg>", f"{_values(chart, axes)}</svg>")


def _values(chart: Chart, axes: Any) -> str:
    """Return unseen circles over the points, whose titles browsers show under the mouse."""
    found = ""
    for curve in chart.curves:
        # From the last, which is the result, backwards.
        for point in curve.points[:: -math.ceil(len(curve.points) / HOVERED)]:
            x, y = axes.transData.transform(point) * 72 / axes.figure.dpi
            said = html.escape(f"{curve.name}: {chart.value(point)}")
            found += f'<circle class="value" cx="{x:.1f}" cy="{72 * HEIGHT - y:.1f}" r="6">'
            found += f"<title>{said}</title></circle>"
    return found


def draw_picture(charts: Sequence[Chart], path: Path) -> None:
    """Draw all charts into one PNG, for slides and issues."""
    require("matplotlib", extra="report", purpose="draw curves")
    # A figure by itself: pyplot would keep it in memory, and look for a display.
    from matplotlib.figure import Figure

    columns = min(COLUMNS, len(charts))
    rows = math.ceil(len(charts) / columns)
    size = (WIDTH * columns, HEIGHT * rows)
    figure = Figure(figsize=size, layout="constrained", facecolor="white")
    for number, chart in enumerate(charts, 1):
        axes = figure.add_subplot(rows, columns, number)
        _draw(chart, axes, 8)
        axes.set_title(chart.title, fontsize=10, loc="left")
        if len(chart.curves) > 1:
            axes.legend(fontsize=8, frameon=False)
    stream = io.BytesIO()
    # Three charts side by side are 1,400 pixels wide.
    figure.savefig(stream, format="png", dpi=130)
    write_whole(path, stream.getvalue())


def _draw(chart: Chart, axes: Any, letters: int) -> None:
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    *lines, grid, soft = COLOURS
    for number, curve in enumerate(chart.curves):
        steps, values = zip(*curve.points, strict=True)
        axes.plot(
            steps,
            values,
            color=lines[number % len(lines)],
            linestyle=LINES[number // len(lines) % len(LINES)],
            marker="o" if curve.marked or len(steps) == 1 else None,
            markersize=3,
            label=curve.name,
            clip_on=False,  # a point on the edge is drawn whole
        )
    axes.xaxis.set_major_locator(MaxNLocator(3, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.ticklabel_format(axis="y", scilimits=(-2, 5))  # longer numbers have no place
    if chart.percent:
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.tick_params(labelsize=letters, length=0, labelcolor=soft)
    axes.yaxis.get_offset_text().set(size=letters, color=soft)
    axes.grid(color=grid, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)
