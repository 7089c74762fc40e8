"""Several runs in one table, and a page with their held-out curves over one another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from maskery.core.system import METRICS
from maskery.evaluation.intervals import interval_note
from maskery.evaluation.text.comparison import Row, reference
from maskery.report.tables import SCORES, SHARES, Figure, Table, named_figure


def comparison_table(rows: Sequence[Row]) -> Table:
    """Return one line for each row: settings that differ, seeds, figures, differences."""
    scores, seeds = rows[0].scores, any(row.deviation for row in rows)
    notes = (
        f"{scores.masked_tokens:,} masked tokens of {scores.examples:,} examples",
        interval_note(scores.examples),
        f"difference: each row minus {reference(rows).name}, paired by example",
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
                    *(_change(row, name) for name in changes),
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


def _change(row: Row, name: str) -> Figure | None:
    change = row.difference.get(name)
    return None if change is None else named_figure(name, change, signed=True)


def _setting(value: Any) -> str:
    """Return the value of a setting for people: of paths their last part."""
    if isinstance(value, list):
        return ", ".join(map(_setting, value))
    return "-" if value is None else Path(str(value)).name


def comparison_page(rows: Sequence[Row]) -> str:
    """Return a page about runs, whose names are folders; it needs nothing beside it."""
    # A table in the terminal needs none of it.
    from maskery.report.curves import held_out_charts
    from maskery.report.page import fill_template, metrics_of

    runs = {name: metrics_of(Path(name) / METRICS) for row in rows for name in row.runs}
    return fill_template(
        name=f"{len(runs)} runs compared",
        lead="Held-out figures of text runs, paired by example.",
        tables=[comparison_table(rows)],
        charts=held_out_charts(runs),
    )
