"""Held-out figures as a table."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from maskery.cli.command import table
from maskery.evaluation.intervals import interval_note
from maskery.evaluation.retrieval.config import LABELS

ROWS = (("loss", "loss (nats)"), ("perplexity", "perplexity"), ("top1", "top-1"), ("top5", "top-5"))
SIGHT_LABELS = {"right": "right picture", "wrong": "wrong picture", "none": "no picture"}
SHARES = ("top1", "top5", *LABELS)


def figure(name: str, interval: Any, *, signed: bool = False) -> str:
    """Return a value with its 95% interval; accuracies in percent."""
    scale, unit = (100.0, "%") if name in SHARES else (1.0, "")
    sign = "+" if signed else ""
    value, low, high = (scale * number for number in interval)
    digits = 1 if name in SHARES or abs(value) >= 100 else 3
    if math.isnan(low):  # too few examples
        return f"{value:{sign}.{digits}f}{unit}"
    return f"{value:{sign}.{digits}f}{unit} [{low:{sign}.{digits}f}, {high:{sign}.{digits}f}]"


def scores_table(
    columns: Mapping[str, Any],
    difference: Mapping[str, Any] | None = None,
    mrtd_auc: Mapping[str, float] | None = None,
    heads: Mapping[str, str] | None = None,
) -> str:
    """Return `MaskedScores` by heading, a column each, and their paired difference last.

    `mrtd_auc` says by heading how well replaced words are told from original ones, and `heads`
    which prediction head a column has.
    """
    rows = [["held out", *columns, *(["difference"] if difference else [])]]
    if heads:
        rows.append(["head", *heads.values(), *([""] if difference else [])])
    rows += score_rows(columns.values(), difference)
    if mrtd_auc:
        cells = [f"{mrtd_auc[name]:.3f}" if name in mrtd_auc else "" for name in columns]
        rows.append(["MRTD AUC", *cells, *([""] if difference else [])])
    first = next(iter(columns.values()))
    note = (
        f"{first.masked_tokens:,} masked tokens of {first.examples:,} examples; "
        f"{interval_note(first.examples)}"
    )
    return f"{table(rows)}\n{note}"


def score_rows(columns: Iterable[Any], difference: Mapping[str, Any] | None) -> list[list[str]]:
    """Return a row for each figure of `MaskedScores`, with its difference last, if there is one."""
    rows = []
    for name, label in ROWS:
        row = [label, *(figure(name, getattr(scores, name)) for scores in columns)]
        if difference is not None:
            row.append(figure(name, difference[name], signed=True) if name in difference else "")
        rows.append(row)
    return rows


def sights_table(evaluation: Any) -> str:
    """Return a `PairsEvaluation`: the model with the right picture, a wrong one and none."""
    columns = evaluation.scores
    rows = [["held out", *(SIGHT_LABELS[sight] for sight in columns), "right - wrong"]]
    rows += score_rows(columns.values(), evaluation.difference["wrong"])
    words = evaluation.words
    if words is not None:
        row = ["chosen words", *(figure("top1", share) for share in words.accuracy.values())]
        rows.append([*row, figure("top1", words.difference["wrong"], signed=True)])
    first = columns["right"]
    notes = [
        f"{first.masked_tokens:,} masked tokens of {first.examples:,} pictures or persons; "
        f"{interval_note(first.examples, 'pictures or persons')}"
    ]
    if words is not None:
        notes.append(f"chosen words: {words.words:,}, masked one at a time; synonyms count")
    if evaluation.mrtd_auc is not None:
        notes.append(f"replaced against original words: AUC {evaluation.mrtd_auc:.3f}")
    return "\n".join([table(rows), *notes])


def retrieval_table(figures: Any) -> str:
    """Return `RetrievalFigures`: by chance, by similarity, and ranked anew by matching."""
    columns = {"by similarity": figures.contrastive}
    if figures.reranked is not None:
        columns[f"best {figures.rerank} by matching"] = figures.reranked
    rows = [["held out", "chance", *columns]]
    for name, label in LABELS.items():
        chance = f"{100 * figures.chance:.2f}%" if name == "r1" else ""
        row = [figure(name, getattr(found, name)) for found in columns.values()]
        rows.append([label, chance, *row])
    note = (
        f"{figures.num_texts:,} captions of {figures.num_persons:,} persons against "
        f"{figures.num_images:,} pictures; {interval_note(figures.num_persons, 'persons')}"
    )
    return f"{table(rows)}\n{note}"


def run_heading(name: str, seed: int | None) -> str:
    """Return a run's name and the seed that it was trained with, where that is known."""
    return name if seed is None else f"{name} (seed {seed})"


def spread_table(spread: Mapping[str, Mapping[str, Any]], seeds: Sequence[int | None]) -> str:
    """Return mean and standard deviation over runs, from a `Spread` by ranking and figure."""
    labels = {"contrastive": "by similarity", "reranked": "by matching"}
    rows = [[f"mean of {len(seeds)} runs", *(labels[ranking] for ranking in spread)]]
    for name, label in LABELS.items():
        found = [figures[name] for figures in spread.values()]
        cells = [f"{100 * f.mean:.1f}% +- {100 * f.deviation:.1f}" for f in found]
        rows.append([label, *cells])
    known = ", ".join("unknown" if seed is None else str(seed) for seed in seeds)
    return f"{table(rows)}\n+- one standard deviation over the runs; their seeds: {known}"


def retrieval_before_after(before: Any, after: Any) -> str:
    """Return R@1, R@5 and mAP from `RetrievalFigures` before and after, by both rankings."""
    matching = f"best {after.rerank} by matching"
    columns = {
        "before, by similarity": before.contrastive,
        f"before, {matching}": before.reranked,
        "after, by similarity": after.contrastive,
        f"after, {matching}": after.reranked,
    }
    rows = [["", "R@1", "R@5", "mAP"], ["chance", f"{100 * after.chance:.2f}%", "", ""]]
    for heading, found in columns.items():
        if found is not None:
            figures = (figure(name, getattr(found, name)) for name in ("r1", "r5", "map"))
            rows.append([heading, *figures])
    note = (
        f"{after.num_texts:,} captions of {after.num_persons:,} persons never seen in training "
        f"against {after.num_images:,} pictures; {interval_note(after.num_persons, 'persons')}"
    )
    return f"{table(rows)}\n{note}"


def models_table(evaluation: Any) -> str:
    """Return an `ImageTextEvaluation`: each model, and what the last has over the first."""
    if evaluation.difference is None:
        return sights_table(next(iter(evaluation.models.values())))
    first, last = evaluation.models
    blocks = [f"{name}\n{sights_table(one)}" for name, one in evaluation.models.items()]
    rows = [["difference", *(SIGHT_LABELS[sight] for sight in evaluation.difference)]]
    for name, label in ROWS:
        if all(name in over for over in evaluation.difference.values()):
            cells = [figure(name, o[name], signed=True) for o in evaluation.difference.values()]
            rows.append([label, *cells])
    return "\n\n".join([*blocks, f"{last} minus {first}, paired\n{table(rows)}"])
