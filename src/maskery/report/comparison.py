"""A page about several runs: their figures in one table, their held-out curves in one chart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from maskery.core.system import METRICS
from maskery.evaluation.text.comparison import Row
from maskery.report.curves import held_out_charts
from maskery.report.page import fill_template, metrics_of
from maskery.report.tables import LABELS, SHARES, Figure, Table, figure


def comparison_page(rows: Sequence[Row], notes: Sequence[str]) -> str:
    """Return a page that needs nothing beside it and loads nothing.

    Args:
        rows: Of `compare_runs`; the names of their runs are folders.
        notes: Lines below the table.
    """
    names = ("loss", "perplexity", "top1", "top5")
    changes = ("loss", "top1", "top5")
    lines: list[tuple[str, tuple[Figure | None, ...]]] = []
    for row in rows:
        found: list[Figure | None] = [Figure(value=str(value)) for value in row.settings.values()]
        found.append(Figure(value=" ".join(map(str, row.seeds))))
        for name in names:
            one = figure(getattr(row.scores, name), share=name in SHARES)
            if name in row.deviation:
                spread = row.deviation[name] * (100 if name in SHARES else 1)
                one = replace(one, value=f"{one.value} ±{spread:.3g}")
            found.append(one)
        for name in changes:
            change, share = row.difference.get(name), name in SHARES
            found.append(
                None
                if change is None
                else figure(change, share=share, signed=True, lower_is_better=not share)
            )
        lines.append((row.name, tuple(found)))
    headings = [*rows[0].settings, "seed", *(LABELS[name] for name in names)]
    headings += [f"difference in {LABELS[name]}" for name in changes]
    compared = Table(
        title="Figures",
        corner="run",
        columns=tuple(headings),
        rows=tuple(lines),
        note="; ".join(notes),
    )
    runs = {name: metrics_of(Path(name) / METRICS) for row in rows for name in row.runs}
    return fill_template(
        name=f"{len(runs)} runs compared",
        lead="Held-out figures of text runs, paired by example.",
        tables=[compared],
        charts=held_out_charts(runs),
    )
