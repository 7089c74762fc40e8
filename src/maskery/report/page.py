"""Write `report.html` of a run, or a page that compares runs: one file that loads nothing."""

from __future__ import annotations

import importlib.resources
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maskery.core.errors import CheckpointError
from maskery.core.registry import require
from maskery.core.system import METRICS, read_metrics, write_whole
from maskery.evaluation.intervals import interval_note
from maskery.evaluation.tables import (
    SCORES,
    SHARES,
    SIGHTS,
    Figure,
    Table,
    named_figure,
    other_figures,
    run_tables,
)
from maskery.report.curves import Chart, charts_of, draw_picture, draw_svg, held_out_charts

if TYPE_CHECKING:
    from maskery.evaluation.text.comparison import Row

EVALUATION = "evaluation.json"
SAMPLES, CONFIG = "samples.json", "config.yaml"
REPORT, CURVES = "report.html", "curves.png"
TEMPLATE = "report.html.jinja"
NO_SAMPLES = {
    **dict.fromkeys(("fills", "improved", "worsened", "pictures", "searches"), ()),
    "masked_words": 0,
}
# The values of the template that a page may do without.
NOTHING = {
    **dict.fromkeys(("lead", "verdict", "config", "best_step", "training", "environment")),
    **dict.fromkeys(("skipped", "others"), ()),
    "samples": NO_SAMPLES,
}


def write_report(folder: Path) -> Path:
    """Write `report.html` and `curves.png` into a run folder; returns the path of the page."""
    if not (folder / CONFIG).is_file():
        raise CheckpointError(
            f"'{folder}' has no {CONFIG}, so it is no run folder; name one that maskery train "
            f"has written"
        )
    # Those that are not there yet are empty.
    evaluation, samples = _object(folder / EVALUATION), _object(folder / SAMPLES)
    charts = charts_of(metrics_of(folder / METRICS))
    page = fill_template(
        name=folder.resolve().name,
        verdict=evaluation.get("verdict"),
        training=evaluation.get("training", {}),
        best_step=evaluation.get("best_step"),
        skipped=evaluation.get("skipped", evaluation.get("notes", [])),
        tables=run_tables(evaluation),
        others=other_figures(evaluation),
        charts=charts,
        samples={**NO_SAMPLES, **samples},
        environment=samples.get("environment", {}),
        config=_text(folder / CONFIG),
    )
    path = folder / REPORT
    try:
        if charts:
            draw_picture(charts, folder / CURVES)
        write_whole(path, page.encode())
    except OSError as error:
        raise CheckpointError(f"'{path}' cannot be written ({error.strerror})") from error
    return path


def fill_template(*, charts: Sequence[Chart], **values: Any) -> str:
    """Return a page; everything from data is escaped, and values that are left out are empty."""
    jinja2 = require("jinja2", extra="report", purpose="write the report")
    source = importlib.resources.files("maskery.report").joinpath(TEMPLATE).read_text("utf-8")
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["percent"] = percent
    drawn = [(chart, draw_svg(chart)) for chart in charts]
    page: str = environment.from_string(source).render(
        {**NOTHING, **values, "charts": drawn, "sights": SIGHTS.items()}
    )
    return page


def percent(value: Any) -> str:
    """Return a probability for people."""
    share = 100 * float(value)
    if share >= 0.1:
        return f"{share:.1f}%"
    return f"{share:.2f}%" if share >= 0.01 or share == 0 else "<0.01%"


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"'{path}' cannot be read ({error}); restore it") from error


def metrics_of(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's `metrics.jsonl`; none if there is no such file."""
    try:
        return read_metrics(path, tell=True) if path.is_file() else []
    except OSError as error:
        raise CheckpointError(f"'{path}' cannot be read ({error}); restore it") from error


def _object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(_text(path))
    except json.JSONDecodeError as error:
        raise CheckpointError(
            f"'{path}' is no JSON ({error.msg}, line {error.lineno}); remove it and evaluate again"
        ) from error
    if not isinstance(value, dict):
        raise CheckpointError(f"'{path}' is no JSON object; remove it and evaluate again")
    return value


def reference(rows: Sequence[Row]) -> str:
    """Return the name of the row that the others are compared with."""
    return next(row.name for row in rows if not row.difference)


def comparison_table(rows: Sequence[Row]) -> Table:
    """Return one line for each row: settings that differ, seeds, figures, differences."""
    scores, seeds = rows[0].scores, any(row.deviation for row in rows)
    notes = (
        f"{scores.masked_tokens:,} masked tokens of {scores.examples:,} examples",
        interval_note(scores.examples),
        f"difference: each row minus {reference(rows)}, paired by example",
        *["±: standard deviation over seeds, whose mean stands before it"] * seeds,
    )
    names, changes = ("loss", "top1", "top5"), ("loss", "top1")
    return Table(
        title="Figures",
        corner="run",
        columns=(
            *rows[0].settings,
            "seed",
            *(SCORES[name] for name in names),
            *(f"difference in {SCORES[name]}" for name in changes),
        ),
        rows=tuple(
            (
                row.name,
                (
                    *(Figure(value=_setting(value)) for value in row.settings.values()),
                    Figure(value=" ".join(map(str, row.seeds))),
                    *(_figure(row, name) for name in names),
                    *(
                        named_figure(name, row.difference[name], signed=True)
                        for name in changes
                        if row.difference
                    ),
                ),
            )
            for row in rows
        ),
        notes=notes,
    )


def _figure(row: Row, name: str) -> Figure:
    one = named_figure(name, getattr(row.scores, name))
    if not row.deviation:
        return one
    scale, digits = (100, 1) if name in SHARES else (1, 3)
    return replace(one, value=f"{one.value} ±{scale * row.deviation[name]:.{digits}f}")


def _setting(value: Any) -> str:
    """Return the value of a setting for people: of paths their last part."""
    if isinstance(value, list):
        return ", ".join(map(_setting, value))
    return "-" if value is None else Path(str(value)).name


def comparison_page(rows: Sequence[Row]) -> str:
    """Return a page about runs, whose names are folders; it needs nothing beside it."""
    runs = {name: metrics_of(Path(name) / METRICS) for row in rows for name in row.runs}
    return fill_template(
        name=f"{len(runs)} runs compared",
        lead="Held-out figures of text runs, paired by example.",
        tables=[comparison_table(rows)],
        charts=held_out_charts(runs),
    )
