from __future__ import annotations

import math
import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from maskery.report.curves import Chart, Curve, charts_of, draw_svg

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


@settings(max_examples=20)
@example([(0, 5e-324)])
@example([(0, 0.0), (1, 5e-324)])
@given(st.lists(st.tuples(st.integers(0, 10**6), st.floats(-1e9, 1e9)), min_size=1, max_size=9))
def test_any_chart_is_drawn_with_finite_numbers(points: list[tuple[float, float]]) -> None:
    drawn = draw_svg(Chart(title="x", curves=(Curve(name="y", points=tuple(sorted(points))),)))
    assert "nan" not in drawn
    assert "inf" not in drawn
    assert drawn.count("<svg") == drawn.count("</svg>") == 1


def test_points_lie_where_their_values_say() -> None:
    """Equal steps of the values are equal steps on the page, upwards and to the right."""
    points = ((0.0, 1.0), (10.0, 2.0), (20.0, 3.0), (40.0, 1.0))
    drawn = draw_svg(Chart(title="x", curves=(Curve(name="y", points=points, marked=True),)))
    found = re.findall(r'<use [^>]*x="([\d.]+)" y="([\d.]+)"', drawn)
    (x0, y0), (x1, y1), (x2, y2), (x3, y3) = [tuple(map(float, pair)) for pair in found]
    assert (x1 - x0, x2 - x1) == pytest.approx(((x3 - x2) / 2,) * 2, rel=1e-4)
    assert x1 > x0
    assert (y1 - y0, y3) == pytest.approx((y2 - y1, y0), rel=1e-4)
    assert y1 < y0


def test_a_chart_takes_its_colours_from_the_page_and_nothing_from_elsewhere() -> None:
    curves = tuple(Curve(name=f"{i}", points=((0.0, i), (1.0, i + 1.0))) for i in range(5))
    drawn = draw_svg(Chart(title="x", curves=curves, percent=True))
    assert set(re.findall(r"(?:stroke|fill): (?!none)([^;\"]+)", drawn)) == {
        "var(--c0)",
        "var(--c1)",
        "var(--c2)",
        "var(--c3)",
        "var(--line)",
        "var(--soft)",
    }
    assert not re.search(r"http|url\(|clip-path|font-family|<style", drawn)
    assert "%<" in drawn


def test_a_chart_is_drawn_the_same_again() -> None:
    chart = Chart(title="x", curves=(Curve(name="y", points=((0.0, 1.0),), marked=True),))
    assert draw_svg(chart) == draw_svg(chart)


def test_a_long_curve_is_no_long_drawing() -> None:
    points = tuple((float(i), math.sin(i / 2e4)) for i in range(100_000))
    assert len(draw_svg(Chart(title="x", curves=(Curve(name="y", points=points),)))) < 30_000
