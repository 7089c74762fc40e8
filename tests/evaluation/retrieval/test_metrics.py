from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from maskery.core.errors import DataError
from maskery.evaluation.retrieval.metrics import (
    NONE,
    best,
    rank,
    retrieval_figures,
    right_columns,
    right_ranks,
    summarise_texts,
    text_figures,
)

GOLDEN = Path(__file__).parents[2] / "golden" / "rasa_tiny"


@pytest.mark.parametrize("kind", ["full", "reranked"])
def test_the_released_evaluation_gives_the_same(kind: str) -> None:
    record = load_file(GOLDEN / "retrieval.safetensors")
    expected = json.loads((GOLDEN / "retrieval.json").read_text("utf-8"))[kind]
    figures = retrieval_figures(
        record[f"scores_{kind}"],
        text_persons=record["text_person"],
        image_persons=record["image_person"],
        stable=False,  # everything beyond the k best is tied at -100 in the record
    )
    found = {"r1": figures.r1, "r5": figures.r5, "r10": figures.r10, "mAP": figures.map}
    for name, interval in found.items():
        # The record holds percents of float32.
        assert 100 * interval.value == pytest.approx(expected[name], abs=1e-4), name
        assert not interval.known or interval.low <= interval.value <= interval.high


def written_out(right: list[bool]) -> list[float]:
    """One text's figures from the ranks of its right images."""
    ranks = [place for place, hit in enumerate(right, 1) if hit]
    precision = np.mean([j / r for j, r in enumerate(ranks, 1)])
    found = [float(ranks[0] <= cutoff) for cutoff in (1, 5, 10)]
    return [*found, float(precision), len(ranks) / ranks[-1]]


# Few values, so that many are tied; float64 and float32 are sorted in two ways.
@given(
    st.lists(st.lists(st.integers(-2, 2), min_size=7, max_size=7), min_size=1, max_size=4),
    st.lists(st.integers(0, 3), min_size=7, max_size=7),
    st.integers(1, 7),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_any_scores_against_a_plain_loop(
    rows: list[list[int]], shown: list[int], count: int, dtype: torch.dtype
) -> None:
    scores, images = torch.tensor(rows, dtype=dtype) / 3, torch.tensor(shown)
    persons = [shown[text % 7] for text in range(len(rows))]
    ranks = right_ranks(scores, right_columns(torch.tensor(persons), images))
    figures = text_figures(ranks)
    for text, row in enumerate(rows):
        order = sorted(range(7), key=lambda image: -row[image])
        assert (
            best(scores, count)[text].tolist()
            == order[:count]
            == rank(scores)[text].tolist()[:count]
        )
        right = [shown[image] == persons[text] for image in order]
        known = [place for place, hit in enumerate(right, 1) if hit]
        assert ranks[text].tolist() == known + [NONE] * (ranks.shape[1] - len(known))
        np.testing.assert_allclose(figures[text], written_out(right), rtol=1e-12)


def test_a_perfect_ranking_is_one_throughout() -> None:
    persons = torch.arange(60)
    figures = retrieval_figures(torch.eye(60), text_persons=persons, image_persons=persons)
    for name in ("r1", "r5", "r10", "map", "minp"):
        interval = getattr(figures, name)
        assert (interval.value, interval.high) == (1.0, 1.0)
        assert 0.92 < interval.low < 0.95  # Wilson's for 60 of 60


def test_a_text_with_no_right_image_is_told() -> None:
    with pytest.raises(DataError, match="1 of 2 texts"):
        retrieval_figures(np.eye(2), [0, 1], [0, 2])


def test_intervals_are_over_persons_not_texts() -> None:
    # 100 texts of 10 persons, of whom five are always found and five never.
    figures = np.repeat([[1.0] * 5, [0.0] * 5], 50, axis=0)
    few = summarise_texts(figures, np.repeat(np.arange(10), 10))
    ten = summarise_texts(np.repeat([[1.0] * 5, [0.0] * 5], 5, axis=0), np.arange(10))
    assert few.r1 == pytest.approx(ten.r1)
    assert not summarise_texts(figures, np.repeat([3, 8], 50)).r1.known
    many = summarise_texts(figures, np.arange(100))
    assert 0.3 < many.r1.low < many.r1.high < 0.7


def test_figures_of_plain_lists_and_of_shapes_that_do_not_fit() -> None:
    figures = retrieval_figures([[0.1, 0.9], [0.8, 0.2]], [1, 0], [0, 1])
    assert figures.r1.value == figures.map.value == figures.minp.value == 1.0
    with pytest.raises(DataError, match=r"shape \(2, 2\), with 3 texts and 2 images"):
        retrieval_figures(np.eye(2), np.arange(3), np.arange(2))
    with pytest.raises(DataError, match=r"shape \(0, 2\), with 0 texts and 2 images"):
        retrieval_figures(np.zeros((0, 2)), np.arange(0), np.arange(2))


def test_scores_that_are_no_numbers_have_no_figures() -> None:
    with pytest.raises(DataError, match="is not a number"):
        retrieval_figures([[np.nan, 0.9], [0.8, 0.2]], [1, 0], [0, 1])
