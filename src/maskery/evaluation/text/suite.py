"""Minimal pairs by phenomenon: how often a model finds the good sentence likelier than the bad one.

Files are those of BLiMP (Warstadt et al., TACL 8, 2020) and of the BabyLM evaluation pipeline: on
each line a JSON object with `sentence_good` and `sentence_bad`. The phenomenon is its
`linguistics_term` or `field`, else the file's name, as in BabyLM's supplement; the paradigm, where
there is one, is its `UID`.

Shapes: N pairs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from maskery.core.errors import DataError, reason_of
from maskery.data.corpus.files import find_files
from maskery.data.corpus.formats import split_suffix
from maskery.data.corpus.sentences import read_sentences
from maskery.evaluation.intervals import Interval, ratio_interval

Float64: TypeAlias = npt.NDArray[np.float64]
SENTENCES = ("sentence_good", "sentence_bad")
# Log-probabilities are sums of float32, in which equal sentences may differ by their last digits.
TIE = 1e-5


class MinimalPair(NamedTuple):
    """Two sentences of which one is right."""

    good: str
    bad: str
    phenomenon: str
    paradigm: str  # Empty where the file names none
    place: str  # The file and the line, for messages


class SuiteFigure(NamedTuple):
    """The accuracy over some of the pairs of a suite."""

    level: Literal["paradigm", "phenomenon", "macro", "micro"]
    name: str
    pairs: int
    accuracy: Interval  # Share of the pairs whose good sentence is likelier; ties count half
    against: Interval | None = None  # That of the other model
    difference: Interval | None = None  # The first minus the other, paired by sentence pair


def read_suite(source: str, *, encoding: str = "utf-8") -> Iterator[MinimalPair]:
    """Yield the pairs of a file, or of all .jsonl and .json files of a folder, also packed.

    Raises:
        DataError: There are none, or a line is no JSON object with both sentences.
    """
    files = [path for path in find_files([source]) if split_suffix(path)[0] in (".jsonl", ".json")]
    if not files:
        raise DataError(f"'{source}' has no .jsonl or .json file; name a suite of minimal pairs")
    for path in files:
        for number, text in read_sentences(path, encoding=encoding):
            yield _pair(text, path.name.split(".")[0], f"{path}: line {number}")


def _pair(text: str, file: str, place: str) -> MinimalPair:
    fix = f"each line is a JSON object with {' and '.join(SENTENCES)}; correct it"
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{place} is not valid JSON ({reason_of(error, most=80)}); {fix}"
        ) from error
    if not isinstance(values, dict):
        raise DataError(f"{place} is no JSON object; {fix}")
    found = {
        name: value.strip() if isinstance(value := values.get(name), str) else ""
        for name in (*SENTENCES, "linguistics_term", "field", "UID")
    }
    if missing := [name for name in SENTENCES if not found[name]]:
        raise DataError(f"{place} has no {' and no '.join(missing)}; {fix}")
    good, bad, term, field, paradigm = found.values()
    return MinimalPair(good, bad, term or field or file, paradigm, place)


def suite_figures(
    pairs: Sequence[MinimalPair], scores: Float64, against: Float64 | None = None
) -> list[SuiteFigure]:
    """Return the accuracy by paradigm and phenomenon, then the mean of phenomena, and of all pairs.

    `scores` and `against` are the log-probabilities (2N,) of one model and of another: of each pair
    the good sentence's, then the bad one's.
    """
    right, other = _outcomes(scores), None if against is None else _outcomes(against)
    groups: list[tuple[Any, str, Float64]] = []
    for level in ("paradigm", "phenomenon"):
        names = np.array([getattr(pair, level) for pair in pairs])
        groups += [(level, str(n), (names == n).astype(float)) for n in np.unique(names) if n]
    each = [weights for level, _, weights in groups if level == "phenomenon"]
    # Every phenomenon counts alike; on average a pair counts once, as in the mean of all.
    macro = np.sum([weights * len(pairs) / (len(each) * weights.sum()) for weights in each], axis=0)
    groups += [("macro", "mean of phenomena", macro), ("micro", "all pairs", np.ones(len(pairs)))]
    figures = []
    for level, name, weights in groups:
        accuracy = ratio_interval(right * weights, weights, "share")
        found = SuiteFigure(level, name, int(np.count_nonzero(weights)), accuracy)
        if other is not None:
            change = ratio_interval((right - other) * weights, weights, "difference of shares")
            beside = ratio_interval(other * weights, weights, "share")
            found = found._replace(against=beside, difference=change)
        figures.append(found)
    return figures


def _outcomes(scores: Float64) -> Float64:
    """Return 1 for each pair whose good sentence is likelier, 0.5 for a tie, else 0."""
    more = scores[::2] - scores[1::2]
    return np.where(abs(more) <= TIE, 0.5, more > 0)
