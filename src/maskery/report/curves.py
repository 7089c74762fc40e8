"""The curves of a run: which charts there are, and what each shows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from maskery.evaluation.retrieval.config import LABELS as RANKINGS
from maskery.objectives.terms import TERMS

LABELS = {name: term.label for name, term in TERMS.items()} | {
    "grad_norm": "Gradient norm",
    "learning_rate": "Learning rate",
    "tokens_per_second": "Tokens per second",
}
# Said by another chart, or of no interest by itself.
LEFT_OUT = {"kind", "step", "epoch", "perplexity"}
CONDITIONS = ("right", "wrong", "none")
RANKED_BY = {"contrastive": "by similarity", "reranked": "by matching"}


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One line of a chart.

    Attributes:
        name: For the legend.
        points: (step, value), by step.
        marked: Whether each point is drawn, as where there are few.
    """

    name: str
    points: tuple[tuple[float, float], ...]
    marked: bool = False


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A few curves over the same steps.

    Attributes:
        title: What the values are.
        curves: At least one.
        percent: Whether values are shares.
    """

    title: str
    curves: tuple[Curve, ...]
    percent: bool = False


def charts_of(metrics: Sequence[dict[str, Any]]) -> list[Chart]:
    """Loss, accuracy, rate, speed, and whatever else a run has logged."""
    train = _series(line for line in metrics if line["kind"] == "train")
    held_out = _series(line for line in metrics if line["kind"] == "held_out")
    charts = [
        Chart(title="Loss (nats)", curves=_loss_curves(train, held_out)),
        Chart(title="Held-out accuracy", curves=_accuracy_curves(held_out), percent=True),
        *(
            Chart(title=f"Held-out {title}", curves=_ranking_curves(held_out, name), percent=True)
            for name, title in RANKINGS.items()
        ),
    ]
    if train.keys() == {"loss"} | (train.keys() & LABELS.keys()) and "mlm" in train:
        # A single term is the loss itself.
        terms = train.keys() & TERMS.keys()
        if len(terms) == 1:
            train.pop(next(iter(terms)))
    order = ("learning_rate", "tokens_per_second")
    for name in (*order, *sorted(train.keys() - {*order, "loss"})):
        if name in train:
            curve = Curve(name="training", points=train[name])
            charts.append(Chart(title=label(name), curves=(curve,)))
    ranked = {f"{ranking}_{name}" for ranking in RANKED_BY for name in RANKINGS}
    for name in sorted(held_out.keys() - ranked):
        if not name.endswith(("loss", "top1", "top5")):
            curve = Curve(name="held out", points=held_out[name], marked=True)
            charts.append(Chart(title=label(name), curves=(curve,)))
    return [chart for chart in charts if chart.curves]


def label(name: str) -> str:
    """A metric's name for people."""
    words = name.replace("_", " ")
    # A name with capitals of its own, such as SigLIP, is a user's loss term.
    return LABELS.get(name, words if words != words.lower() else words.capitalize())


def _series(lines: Iterable[dict[str, Any]]) -> dict[str, tuple[tuple[float, float], ...]]:
    """Every finite number by its name, in order of steps."""
    found: dict[str, list[tuple[float, float]]] = {}
    for line in sorted(lines, key=lambda line: float(line["step"])):
        for name, value in line.items():
            known = isinstance(value, int | float) and not isinstance(value, bool)
            if name not in LEFT_OUT and known and math.isfinite(value):
                found.setdefault(name, []).append((float(line["step"]), float(value)))
    return {name: tuple(points) for name, points in found.items()}


def _loss_curves(
    train: dict[str, tuple[tuple[float, float], ...]],
    held_out: dict[str, tuple[tuple[float, float], ...]],
) -> tuple[Curve, ...]:
    curves = []
    if "loss" in train:
        curves.append(Curve(name="training", points=train["loss"]))
    if "loss" in held_out:
        curves.append(Curve(name="held out", points=held_out["loss"], marked=True))
    for sight in CONDITIONS:
        if f"{sight}_loss" in held_out:
            name = f"{sight} picture" if sight != "none" else "no picture"
            points = held_out[f"{sight}_loss"]
            curves.append(Curve(name=name, points=points, marked=True))
    return tuple(curves)


def _accuracy_curves(held_out: dict[str, tuple[tuple[float, float], ...]]) -> tuple[Curve, ...]:
    curves = []
    for name, shown in (("top1", "top-1"), ("top5", "top-5")):
        if name in held_out:
            curves.append(Curve(name=shown, points=held_out[name], marked=True))
    for sight in CONDITIONS:
        if f"{sight}_top1" in held_out:
            name = f"{sight} picture" if sight != "none" else "no picture"
            curves.append(Curve(name=name, points=held_out[f"{sight}_top1"], marked=True))
    return tuple(curves)


def _ranking_curves(
    held_out: dict[str, tuple[tuple[float, float], ...]], figure: str
) -> tuple[Curve, ...]:
    return tuple(
        Curve(name=name, points=held_out[f"{ranking}_{figure}"], marked=True)
        for ranking, name in RANKED_BY.items()
        if f"{ranking}_{figure}" in held_out
    )
