"""Nearest neighbour, linear probe and ranks of partners over frozen vectors.

All judge every example. The neighbour is the most similar other text (cosine). The probe is
logistic regression, fitted on the folds that an example is not in, its strength chosen by inner
folds of those. Folds follow from the texts alone, and equal texts share one, so figures do not
depend on the order of a file.

Shapes: N examples or pairs, D width, C classes.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from maskery.core.batch import Bools, Floats, Ints
from maskery.data.corpus.examples import example_id
from maskery.data.split import as_read, connected

NUM_FOLDS = 4  # of few labels three quarters are trained on
INNER_FOLDS = 3  # each costs four fits in each fold
STRENGTHS = (1.0, 10.0, 100.0, 1000.0)  # strong to weak: they hold the best of all tasks tried
BLOCK_BYTES = 1 << 28  # of a matrix of similarities, at once
MOST_PROBE_CLASSES = 1000  # beyond, only neighbours are judged: a probe has too many weights


def folds_of(texts: Sequence[str], num: int, *, salt: str = "") -> Ints:
    """Return the fold of each text, (N,) from 0 to `num` - 1: a hash of its words."""
    return np.array([example_id(salt + as_read(text)) % num for text in texts], np.int64)


def nearest(vectors: Any) -> Ints:
    """Return the most similar other row of each of (N, D), by cosine; of equals, the first."""
    rows = unit_rows(vectors)
    found = []
    for start, similar in similarities(rows, rows):
        np.fill_diagonal(similar[:, start:], -np.inf)  # no text is its own neighbour
        found.append(similar.argmax(axis=1))
    return np.concatenate(found).astype(np.int64)


def similarities(rows: Any, others: Any) -> Iterator[tuple[int, Floats]]:
    """Yield products of (N, D) with (P, D), dense or sparse, in blocks (n, P) with their starts."""
    size = max(1, BLOCK_BYTES // (8 * others.shape[0]))
    for start in range(0, rows.shape[0], size):
        block = rows[start : start + size] @ others.T
        yield start, np.asarray(block.todense()) if hasattr(block, "todense") else np.array(block)


def unit_rows(vectors: Any) -> Any:
    """Return rows of length 1, in float64; rows of zeros stay."""
    from sklearn.preprocessing import normalize

    return normalize(vectors.astype(np.float64))


def probe_hits(vectors: Any, labels: Ints, texts: Sequence[str]) -> Bools:
    """Return which of (N, D) vectors a linear probe gets right; the texts decide the folds."""
    from sklearn.linear_model import LogisticRegression

    rows = unit_rows(vectors)
    outer, inner = folds_of(texts, NUM_FOLDS), folds_of(texts, INNER_FOLDS, salt="inner ")
    hits = np.zeros(len(labels), np.bool_)
    for fold in range(NUM_FOLDS):
        test, train = np.flatnonzero(outer == fold), np.flatnonzero(outer != fold)
        if not len(test) or len(np.unique(labels[train])) < 2:
            continue  # nothing can be learned, so nothing is right
        strength = _best_strength(rows[train], labels[train], inner[train])
        model = LogisticRegression(C=strength, max_iter=1000).fit(rows[train], labels[train])
        hits[test] = model.predict(rows[test]) == labels[test]
    return hits


def _best_strength(rows: Any, labels: Ints, folds: Ints) -> float:
    """Return the strength that is right most often in the inner folds; of equals, the strongest."""
    from sklearn.linear_model import LogisticRegression

    right = np.zeros(len(STRENGTHS))
    for fold in range(INNER_FOLDS):
        test, train = np.flatnonzero(folds == fold), np.flatnonzero(folds != fold)
        if not len(test) or len(np.unique(labels[train])) < 2:
            continue
        # Each fit starts where the one before it ended: from strong to weak they are close.
        model = LogisticRegression(C=STRENGTHS[0], max_iter=1000, warm_start=True)
        for place, strength in enumerate(STRENGTHS):
            model.set_params(C=strength).fit(rows[train], labels[train])
            right[place] += (model.predict(rows[test]) == labels[test]).sum()
    return STRENGTHS[int(right.argmax())]


def lexical_vectors(texts: Sequence[str]) -> Any:
    """Return TF-IDF vectors of the words of each text, a sparse (N, words) matrix."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    # Written languages with spaces have one every 4 to 12 characters. In others, where runs of
    # letters and digits are whole sentences, runs of one to three characters are words.
    spaced = sum(text.count(" ") for text in texts) * 25 > sum(map(len, texts))
    words = {"token_pattern": r"(?u)\b\w+\b"}
    how = words if spaced else {"analyzer": "char", "ngram_range": (1, 3)}
    return TfidfVectorizer(sublinear_tf=True, **how).fit_transform(texts)


def mutual_groups(*neighbours: Ints) -> Ints:
    """Return groups of examples that judge each other in any of some rankings, (N,) from 0."""
    # Two texts that are each other's nearest neighbour are right or wrong together, so they count
    # as one for an interval.
    every = np.arange(len(neighbours[0]))
    # Each is paired with itself where it has no mutual neighbour, so that all have a group.
    pairs = [np.where(of[of] == every, of, every) for of in neighbours]
    return connected(np.tile(every, len(pairs)), np.concatenate(pairs))


def pair_scores(first: Any, second: Any, partners: Sequence[str]) -> tuple[Floats, Floats]:
    """Return (N,) the chance that each text's partner stands first, and (N,) 1 / its mean rank.

    From rows (N, D) of length 1 of both sides, dense or sparse, and the partners' names; those of
    one name are one. Partners of equal score share their place.
    """
    names = np.array(partners, object).astype(str)
    _, one_each, own = np.unique(names, return_index=True, return_inverse=True)
    candidates = second[one_each]
    found, reciprocal = [], []
    for start, similar in similarities(first, candidates):
        rows = np.arange(len(similar))
        right = similar[rows, own[start : start + len(similar)]][:, None]
        better, equal = (similar > right).sum(axis=1), (similar == right).sum(axis=1)
        found.append((better == 0) / equal)
        reciprocal.append(1.0 / (better + (equal + 1) / 2.0))
    return np.concatenate(found), np.concatenate(reciprocal)
