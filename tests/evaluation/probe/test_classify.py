"""Neighbours, the linear probe and its intervals, against plain scikit-learn and by shuffling."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, PredefinedSplit, cross_val_predict
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import normalize

from maskery.evaluation.intervals import grouped_interval
from maskery.evaluation.probe import classify


def task() -> tuple[np.ndarray, np.ndarray, list[str]]:
    generator, num, classes = np.random.default_rng(0), 160, 4
    labels = generator.integers(0, classes, num)
    centres = generator.normal(size=(classes, 12))
    vectors = (centres[labels] + generator.normal(scale=1.5, size=(num, 12))).astype(np.float32)
    return vectors, labels, [f"text number {n}" for n in range(num)]


def test_neighbours_are_scikit_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, _, _ = task()
    monkeypatch.setattr(classify, "BLOCK_BYTES", 8 * 160 * 7)  # several blocks
    search = NearestNeighbors(n_neighbors=2, metric="cosine").fit(vectors)
    expected = search.kneighbors(vectors, return_distance=False)
    own = np.arange(len(vectors))
    other = np.where(expected[:, 0] == own, expected[:, 1], expected[:, 0])
    np.testing.assert_array_equal(classify.nearest(vectors), other)


def test_the_probe_is_a_plain_scikit_learn_script() -> None:
    vectors, labels, texts = task()
    rows = normalize(vectors.astype(np.float64))
    outer = classify.folds_of(texts, 4)
    inner = classify.folds_of(texts, 3, salt="inner ")
    expected = np.zeros(len(labels), bool)
    for fold in range(4):
        train, test = outer != fold, outer == fold
        search = GridSearchCV(
            LogisticRegression(max_iter=5000),
            {"C": [1.0, 10.0, 100.0, 1000.0]},
            cv=PredefinedSplit(inner[train]),
            # Right answers over all folds, not a mean of means.
            scoring=lambda model, x, y: float((model.predict(x) == y).sum()),
        ).fit(rows[train], labels[train])
        expected[test] = search.predict(rows[test]) == labels[test]
    assert classify.probe_hits(vectors, labels, texts).mean() == pytest.approx(
        expected.mean(), abs=1e-6
    )


def test_equal_texts_share_a_fold_whatever_their_case_and_spaces() -> None:
    texts = [f"Some  words {n}" for n in range(50)] + [
        f"some words {n}\n".upper() for n in range(50)
    ]
    folds = classify.folds_of(texts, 4)
    np.testing.assert_array_equal(folds[:50], folds[50:])
    assert set(folds) == {0, 1, 2, 3}


def test_mutual_neighbours_are_one_group() -> None:
    groups = classify.mutual_groups(np.array([1, 0, 1, 2]), np.array([3, 2, 1, 0]))
    assert len(set(groups)) == 1  # 0-1 in the first, 1-2 and 0-3 in the second
    assert len(set(classify.mutual_groups(np.array([1, 2, 3, 0])))) == 4


def test_shuffled_labels_show_no_difference() -> None:
    """Of intervals of a difference where there is none, 95 in 100 hold 0."""
    generator = np.random.default_rng(3)
    vectors = generator.normal(size=(240, 6))
    other = vectors + generator.normal(scale=0.8, size=vectors.shape)
    first, second = classify.nearest(vectors), classify.nearest(other)
    groups = classify.mutual_groups(first, second)
    labels = generator.integers(0, 5, len(vectors))
    held = 0
    for _ in range(1000):
        shuffled = generator.permutation(labels)
        one, two = (shuffled[n] == shuffled for n in (first, second))
        found = grouped_interval(one * 1.0 - two, groups, "difference of shares")
        held += found.low <= 0.0 <= found.high
    assert 930 <= held <= 975


def test_counted_words_need_no_spaces() -> None:
    thai = ["แมวนอนบนเสื่อ", "แมวนอนในบ้าน", "หุ้นตกวันนี้มาก"]
    assert classify.nearest(classify.lexical_vectors(thai))[0] == 1
    words = classify.lexical_vectors(["the cat sat", "a cat ran", "stocks fell"])
    assert classify.nearest(words)[0] == 1


def test_a_class_that_stands_in_one_fold_alone_is_never_right() -> None:
    vectors, labels, texts = task()
    labels = np.where(classify.folds_of(texts, 4) == 0, 0, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hits = classify.probe_hits(vectors, labels, texts)
    assert not hits[labels == 0].any()


def test_cross_validation_means_that_no_text_judges_itself() -> None:
    """With a feature of its own for each text, a probe that saw it would be right."""
    labels = np.tile([0, 1], 40)
    hits = classify.probe_hits(np.eye(80), labels, [f"t{n}" for n in range(80)])
    plain = cross_val_predict(
        LogisticRegression(), np.eye(80), labels, cv=PredefinedSplit(np.arange(80) % 4)
    )
    assert hits.mean() < 0.7
    assert (plain == labels).mean() < 0.7
