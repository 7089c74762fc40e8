from __future__ import annotations

import math
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from maskery.report.curves import Chart, Curve, charts_of
from maskery.report.svg import MOST_POINTS, axis, draw, short, thin

TEXT_RUN = [
    {"kind": "held_out", "step": 0, "loss": 6.0, "perplexity": 403.4, "top1": 0.1, "top5": 0.2},
    {"kind": "train", "step": 10, "loss": 5.5, "mlm": 5.5, "learning_rate": 1e-4, "epoch": 0},
    {"kind": "train", "step": 20, "loss": 5.0, "mlm": 5.0, "learning_rate": 0.0, "epoch": 0},
    {"kind": "held_out", "step": 20, "loss": 5.1, "perplexity": 164.0, "top1": 0.2, "top5": 0.3},
]


def test_a_text_run_has_loss_accuracy_and_rate() -> None:
    charts = {chart.title: chart for chart in charts_of(TEXT_RUN)}
    assert list(charts) == ["Loss (nats)", "Held-out accuracy", "Learning rate"]
    loss = {curve.name: curve.points for curve in charts["Loss (nats)"].curves}
    assert loss == {"training": ((10, 5.5), (20, 5.0)), "held out": ((0, 6.0), (20, 5.1))}
    assert [curve.name for curve in charts["Held-out accuracy"].curves] == ["top-1", "top-5"]


def test_an_image_text_run_shows_each_sight_and_each_term() -> None:
    lines = [
        {"kind": "held_out", "step": 0, **{f"{s}_loss": 4.0 for s in ("right", "wrong", "none")}},
        {"kind": "train", "step": 5, "loss": 9.0, "mlm": 4.0, "itc": 5.0, "grad_norm": 1.0},
    ]
    charts = {chart.title: chart for chart in charts_of(lines)}
    names = [curve.name for curve in charts["Loss (nats)"].curves]
    assert names == ["training", "right picture", "wrong picture", "no picture"]
    assert {"Contrastive loss (ITC)", "Masked-word loss (MLM)", "Gradient norm"} <= charts.keys()


def test_what_is_no_number_is_no_point() -> None:
    lines = [
        {"kind": "train", "step": 1, "loss": math.nan},
        {"kind": "train", "step": 2, "loss": 3.0, "note": "text", "flag": True},
    ]
    (chart,) = charts_of(lines)
    assert chart.curves[0].points == ((2.0, 3.0),)
    assert charts_of([]) == []


@example([5e-324])
@example([0.0, 5e-324])
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30))
def test_every_value_lies_between_the_ends_of_its_axis(values: list[float]) -> None:
    found = axis(values, 0.0, 100.0)
    for value in values:
        assert -1e-6 <= found.place(value) <= 100 + 1e-6
    assert len(found.ticks) >= 1
    assert all(-1e-6 <= found.place(tick) <= 100 + 1e-6 for tick in found.ticks)


@given(st.lists(st.tuples(st.integers(0, 10**6), st.floats(-1e9, 1e9)), min_size=1))
def test_any_chart_is_drawn_with_finite_numbers(points: list[tuple[float, float]]) -> None:
    drawn = draw(Chart(title="x", curves=(Curve(name="y", points=tuple(sorted(points))),)))
    assert "nan" not in drawn
    assert "inf" not in drawn
    assert drawn.count("<svg") == drawn.count("</svg>") == 1


def test_a_point_stands_where_its_value_says() -> None:
    points = ((0.0, 0.0), (10.0, 4.0))
    drawn = draw(Chart(title="x", curves=(Curve(name="y", points=points, marked=True),)))
    found = re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', drawn)
    assert [tuple(map(float, pair)) for pair in found] == [(46.0, 174.0), (348.0, 12.0)]


def test_thinning_keeps_the_ends_and_the_mean() -> None:
    points = [(float(i), float(i % 7)) for i in range(10_000)]
    thinned = thin(points)
    assert len(thinned) <= MOST_POINTS
    assert (thinned[0], thinned[-1]) == (points[0], points[-1])
    assert sum(y for _, y in thinned) / len(thinned) == pytest.approx(3.0, abs=0.05)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0"),
        (0.00025, "2.5e-4"),
        (1e-4, "1e-4"),
        (1234.5, "1234"),
        (20_000, "20k"),
        (0.5, "0.5"),
    ],
)
def test_short_numbers(value: float, shown: str) -> None:
    assert short(value) == shown
