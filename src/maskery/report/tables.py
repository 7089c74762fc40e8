"""Turn held-out figures into tables of text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from maskery.evaluation.intervals import interval_note
from maskery.evaluation.retrieval.config import LABELS as RANKINGS

LABELS = {
    "loss": "loss (nats)",
    "perplexity": "perplexity",
    "top1": "top-1",
    "top5": "top-5",
    "right": "right picture",
    "wrong": "wrong picture",
    "none": "no picture",
    "mrtd_auc": "replaced against original words (AUC)",
}
SHARES = ("top1", "top5", "accuracy", *RANKINGS)
SPLITS = {"test": "test split", "val": "validation"}
# Shown elsewhere in the report.
LEFT_OUT = {
    *("run", "model", "as_loaded", "before", "after", "heads", "difference", "scores", "training"),
    *("skipped", "notes", "best_step", "vectors", "verdict"),
    *SPLITS,
}


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A value with its interval, as text."""

    value: str  # The figure
    interval: str = ""  # Empty if none is known
    better: bool | None = None  # True for a difference for the better; None if its interval holds 0


@dataclass(frozen=True, kw_only=True)
class Table:
    """Figures in columns."""

    title: str  # The question that the table answers
    corner: str  # The heading of the labels, such as "held out"
    columns: tuple[str, ...]  # The other headings
    # A label and one figure a column, or None
    rows: tuple[tuple[str, tuple[Figure | None, ...]], ...]
    note: str  # The number of things that the figures are averages over


def main_tables(evaluation: Mapping[str, Any]) -> list[Table]:
    """Return the main tables of a run: before and after, the sights, or each split's rankings.

    A run that is not finished has none.
    """
    if "before" in evaluation and "after" in evaluation:
        names = {"as loaded": "as_loaded", "before": "before", "after": "after"}
        # Runs of earlier versions, and those whose head was not trained alone, have two columns.
        columns = {name: evaluation[key] for name, key in names.items() if evaluation.get(key)}
        table = _table(columns, evaluation.get("difference") or {}, "difference", "examples")
        heads = evaluation.get("heads") or {}
        if heads:
            cells = (*(Figure(value=head) for head in heads.values()), None)
            table = replace(table, rows=(("head", cells), *table.rows))
        vectors = evaluation.get("vectors")
        return [table, _vectors(vectors)] if vectors else [table]
    if "scores" in evaluation:
        difference = (evaluation.get("difference") or {}).get("wrong") or {}
        return [_table(evaluation["scores"], difference, "right − wrong", "pictures or persons")]
    return [
        _rankings(evaluation[split], name)
        for split, name in SPLITS.items()
        if evaluation.get(split)
    ]


def other_figures(evaluation: Mapping[str, Any]) -> list[tuple[str, Figure]]:
    """Return whatever else was measured, each with its path of names."""
    return [
        (" · ".join(LABELS.get(name, name.replace("_", " ")) for name in path), value)
        for path, value in _flatten(evaluation, ())
        if path[0] not in LEFT_OUT
    ]


def figure(
    value: Any, *, share: bool, signed: bool = False, lower_is_better: bool = False
) -> Figure:
    """Return a number, or (value, low, high), as text."""
    numbers = value if isinstance(value, list | tuple) else [value]
    scale, unit = (100.0, "%") if share else (1.0, "")
    first = scale * float(numbers[0])
    digits = 1 if share or abs(first) >= 100 else 3
    sign = "+" if signed else ""
    shown = f"{first:{sign},.{digits}f}{unit}"
    if len(numbers) != 3:
        return Figure(value=shown)
    if numbers[1] is None:  # too few examples for an interval
        return Figure(value=shown)
    low, high = (scale * float(number) for number in numbers[1:])
    better = None if not signed or low <= 0 <= high else (first < 0) == lower_is_better
    return Figure(
        value=shown,
        interval=f"{low:{sign},.{digits}f} to {high:{sign},.{digits}f}",
        better=better,
    )


def _table(
    columns: Mapping[str, Any], difference: Mapping[str, Any], last: str, over: str
) -> Table:
    first = next(iter(columns.values()))
    rows = []
    for name in ("loss", "perplexity", "top1", "top5"):
        share = name in SHARES
        cells: list[Figure | None] = [figure(c[name], share=share) for c in columns.values()]
        if difference:
            change = difference.get(name)
            cells.append(
                None
                if change is None
                else figure(change, share=share, signed=True, lower_is_better=not share)
            )
        rows.append((LABELS[name], tuple(cells)))
    return Table(
        title="Did it get better?",
        corner="held out",
        columns=(*(LABELS.get(name, name) for name in columns), *((last,) if difference else ())),
        rows=tuple(rows),
        note=f"{first['masked_tokens']:,} masked tokens of {first['examples']:,} {over}; "
        f"{interval_note(first['examples'], over)}",
    )


def _vectors(probe: Mapping[str, Any]) -> Table:
    """Return how good the encoder's vectors are, beside counted words and chance."""
    figures = probe["figures"]
    over = {"labels": "texts", "tokens": "words", "pairs": "pairs"}[probe["kind"]]
    rows = tuple(
        (
            found["name"],
            (
                figure(found["chance"], share=True),
                figure(found["lexical"], share=True),
                *(figure(found["models"][name], share=True) for name in ("before", "after")),
                figure(found["difference"], share=True, signed=True),
            ),
        )
        for found in figures
    )
    return Table(
        title="Are its vectors still good?",
        corner="held out" if probe["kind"] == "pairs" else probe["kind"],
        columns=("chance", "counted words", "before", "after", "difference"),
        rows=rows,
        note=f"{probe['examples']:,} {over}; {interval_note(probe['examples'], over)}",
    )


def _rankings(figures: Mapping[str, Any], split: str) -> Table:
    """Return the recall of persons from captions, by chance and by every ranking."""
    names = {
        "contrastive": "by similarity",
        "reranked": f"best {figures['rerank']} by matching",
        "image_to_text": "pictures to captions",
    }
    found = {name: figures[key] for key, name in names.items() if figures[key] is not None}
    chance = figure(figures["chance"], share=True)
    rows = tuple(
        (
            label,
            (
                chance if name == "r1" else None,
                *(figure(ranking[name], share=True) for ranking in found.values()),
            ),
        )
        for name, label in RANKINGS.items()
    )
    return Table(
        title="Are the right people found?",
        corner=split,
        columns=("chance", *found),
        rows=rows,
        note=f"{figures['num_texts']:,} captions of {figures['num_persons']:,} persons against "
        f"{figures['num_images']:,} pictures; {interval_note(figures['num_persons'], 'persons')}",
    )


def _flatten(value: Any, path: tuple[str, ...]) -> list[tuple[tuple[str, ...], Figure]]:
    if isinstance(value, Mapping):
        return [
            found for name, item in value.items() for found in _flatten(item, (*path, str(name)))
        ]
    interval = isinstance(value, list | tuple) and len(value) == 3
    numbers = value if interval else [value]
    if interval and numbers[1:] == [None, None]:
        numbers = numbers[:1]
    if not all(isinstance(n, int | float) and not isinstance(n, bool) for n in numbers):
        return []
    if not interval and isinstance(value, int):
        return [(path, Figure(value=f"{value:,}"))]
    share = any(part in SHARES for part in path)
    return [(path, figure(value, share=share, signed="difference" in path))]
