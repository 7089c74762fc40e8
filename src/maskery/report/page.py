"""`report.html`: one file that needs nothing beside it and asks for nothing."""

from __future__ import annotations

import importlib.resources
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from maskery.core.errors import CheckpointError
from maskery.core.optional import require
from maskery.report.curves import Chart, charts_of
from maskery.report.picture import draw_picture
from maskery.report.run_data import RunData, read_run
from maskery.report.svg import draw
from maskery.report.tables import main_tables, other_figures

REPORT, CURVES = "report.html", "curves.png"
TEMPLATE = "report.html.jinja"
NO_SAMPLES = {
    **dict.fromkeys(("fills", "improved", "worsened", "pictures", "searches"), ()),
    "masked_words": 0,
}


def write_report(folder: Path) -> Path:
    """Write `report.html` and `curves.png` into a run folder.

    Args:
        folder: A run, finished or not.

    Returns:
        The path of the page.

    Raises:
        MissingExtraError: jinja2 or matplotlib is not installed.
        CheckpointError: The folder is no run, or cannot be written.
    """
    run = read_run(folder)
    charts = charts_of(run.metrics)
    page = render(run, charts)
    path = folder / REPORT
    try:
        if charts:
            draw_picture(charts, folder / CURVES)
        partial = path.with_name(f"{path.name}.partial")
        partial.write_text(page, "utf-8")
        partial.replace(path)
    except OSError as error:
        raise CheckpointError(f"'{path}' cannot be written ({error.strerror})") from error
    return path


def render(run: RunData, charts: Sequence[Chart]) -> str:
    """The page of a run as text; everything that comes from data is escaped."""
    jinja2 = require("jinja2", extra="report", purpose="write the report")
    source = importlib.resources.files("maskery.report").joinpath(TEMPLATE).read_text("utf-8")
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["percent"] = percent
    page: str = environment.from_string(source).render(
        name=run.name,
        training=run.evaluation.get("training", {}),
        best_step=run.evaluation.get("best_step"),
        skipped=run.evaluation.get("skipped", run.evaluation.get("notes", [])),
        tables=main_tables(run.evaluation),
        others=other_figures(run.evaluation),
        charts=[(chart, draw(chart)) for chart in charts],
        samples={**NO_SAMPLES, **run.samples},
        environment=run.samples.get("environment", {}),
        config=run.config,
        sights=(("right", "right picture"), ("wrong", "wrong picture"), ("none", "no picture")),
    )
    return page


def percent(value: Any) -> str:
    """A probability for people."""
    share = 100 * float(value)
    if share >= 0.1:
        return f"{share:.1f}%"
    return f"{share:.2f}%" if share >= 0.01 or share == 0 else "<0.01%"
