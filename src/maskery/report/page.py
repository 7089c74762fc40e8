"""Write the page and CSV files of a run, or a page that compares runs; a page loads nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from maskery.core.errors import MALFORMED, CheckpointError, explained
from maskery.core.registry import require
from maskery.core.system import METRICS, read_metrics, write_whole
from maskery.evaluation import tables
from maskery.evaluation.intervals import interval_note
from maskery.report.curves import charts_of, draw_picture, draw_svg, held_out_charts

if TYPE_CHECKING:
    from maskery.evaluation.text.comparison import Row

EVALUATION = "evaluation.json"
SAMPLES, CONFIG = "samples.json", "config.yaml"
REPORT, CURVES = "report.html", "curves.png"
FILES = ("figures.csv", "words.csv", REPORT)  # each of NAME.jinja; what stays empty is not written
# Figures of a comparison, and those whose differences it shows.
COMPARED, CHANGES = ("loss", "top1", "top5"), ("loss", "top1")
# The values of the templates that a page may do without.
NOTHING = {**dict.fromkeys(("config", "figures")), "others": (), "rows": ()}
NOTHING |= {name: {} for name in ("evaluation", "samples", "settings")}


def write_report(folder: Path) -> Path:
    """Write `report.html`, tables and `curves.png` into a run folder; returns the page's path."""
    if not (folder / CONFIG).is_file():
        problem = f"'{folder}' has no {CONFIG}, so it is no run folder"
        raise CheckpointError(f"{problem}; name one that maskery train has written")
    path = folder / EVALUATION
    evaluation, samples = _object(path), _object(folder / SAMPLES)
    charts = charts_of(metrics_of(folder / METRICS))
    problem = f"'{path}' does not hold what a run measures"
    with explained(problem, _mend(path), *MALFORMED, kind=CheckpointError):
        shown, others = tables.run_tables(evaluation), tables.other_figures(evaluation)
    values = {
        "name": folder.resolve().name,
        "evaluation": evaluation,
        "tables": shown,
        "others": others,
        "charts": charts,
        "samples": samples,
        "settings": _object(folder / CONFIG, yaml.safe_load),
        "config": (folder / CONFIG).read_text("utf-8"),
    }
    path = folder / REPORT
    with explained(f"'{path}' cannot be written", kind=CheckpointError):
        if drawn := [chart for chart in charts if chart.drawn]:
            draw_picture(drawn, folder / CURVES)
        for file in FILES:
            if text := fill_template(file, **values):
                write_whole(folder / file, text.encode())
    return path


def fill_template(file: str, **values: Any) -> str:
    """Return a file; what is from data is escaped in a page, and values left out are empty."""
    jinja2 = require("jinja2", extra="report", purpose="write the report")
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=file == REPORT)
    environment.loader = jinja2.PackageLoader("maskery", "report")
    environment.trim_blocks = environment.lstrip_blocks = True
    environment.filters |= {"percent": percent, "setting": _setting, "draw": draw_svg}
    environment.globals |= {"figure": tables.figure, "named_figure": tables.named_figure}
    environment.globals["sights"] = tables.SIGHTS
    return str(environment.get_template(f"{file}.jinja").render({**NOTHING, **values}))


def percent(value: Any) -> str:
    """Return a probability for people."""
    share = 100 * float(value)
    if share >= 0.1:
        return f"{share:.1f}%"
    return f"{share:.2f}%" if share >= 0.01 or share == 0 else "<0.01%"


def metrics_of(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's `metrics.jsonl`; none if there is no such file."""
    with explained(f"'{path}' cannot be read", "restore it", kind=CheckpointError):
        return read_metrics(path, tell=True) if path.is_file() else []


def _object(path: Path, parse: Callable[[str], Any] = json.loads) -> dict[str, Any]:
    """Return what a file of a run holds; nothing where it is not there yet."""
    kind = path.suffix[1:].upper()
    problem, fix = f"'{path}' is no {kind} that can be read", _mend(path)
    errors = (OSError, ValueError, yaml.YAMLError)
    with explained(problem, fix, *errors, kind=CheckpointError):
        value = parse(path.read_text("utf-8")) if path.is_file() else {}
    if not isinstance(value, dict):
        raise CheckpointError(f"'{path}' is no {kind} object; {fix}")
    return value


def _mend(path: Path) -> str:
    """Return what to do about a damaged file of a run."""
    command = f"maskery train --config {path.with_name(CONFIG)} --resume auto"
    again = {EVALUATION: f"{command} writes it again", SAMPLES: "it is made again"}.get(path.name)
    return f"restore it, or remove it: {again}" if again else "restore it"


def reference(rows: Sequence[Row]) -> str:
    """Return the name of the row that the others are compared with."""
    return next(row.name for row in rows if not row.difference)


def comparison_table(rows: Sequence[Row]) -> tables.Table:
    """Return one line for each row: settings that differ, seeds, figures, differences."""
    scores, seeds = rows[0].scores, any(row.deviation for row in rows)
    notes = (
        f"{scores.masked_tokens:,} masked tokens of {scores.examples:,} examples",
        interval_note(scores.examples),
        f"difference: each row minus {reference(rows)}, paired by example",
        *["±: standard deviation over seeds, whose mean stands before it"] * seeds,
    )
    figures = [tables.SCORES[name] for name in COMPARED]
    changes = [f"difference in {tables.SCORES[name]}" for name in CHANGES]
    columns = (*rows[0].settings, "seed", *figures, *changes)
    cells = tuple((row.name, _cells(row)) for row in rows)
    return tables.Table(title="Figures", corner="run", columns=columns, rows=cells, notes=notes)


def _cells(row: Row) -> tuple[tables.Figure, ...]:
    words = [*map(_setting, row.settings.values()), " ".join(map(str, row.seeds))]
    found = [tables.Figure(value=word) for word in words]
    found += [_figure(row, name) for name in COMPARED]
    changes = CHANGES if row.difference else ()
    found += [tables.named_figure(name, row.difference[name], signed=True) for name in changes]
    return tuple(found)


def _figure(row: Row, name: str) -> tables.Figure:
    one = tables.named_figure(name, getattr(row.scores, name))
    if not row.deviation:
        return one
    scale, digits = (100, 1) if name in tables.SHARES else (1, 3)
    return replace(one, value=f"{one.value} ±{scale * row.deviation[name]:.{digits}f}")


def _setting(value: Any) -> str:
    """Return the value of a setting for people: of paths their last part."""
    if isinstance(value, list):
        return ", ".join(map(_setting, value))
    return "-" if value is None else Path(str(value)).name


def comparison_page(rows: Sequence[Row], figures: str) -> str:
    """Return a page about runs, whose names are folders, that holds their figures as CSV too."""
    runs = {name: metrics_of(Path(name) / METRICS) for row in rows for name in row.runs}
    name, shown = f"{len(runs)} runs compared", [comparison_table(rows)]
    charts = held_out_charts(runs)
    return fill_template(REPORT, name=name, rows=rows, tables=shown, charts=charts, figures=figures)
