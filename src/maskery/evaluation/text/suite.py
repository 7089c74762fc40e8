"""Minimal pairs by phenomenon: how often a model finds the good sentence likelier than the bad one.

Files are those of BLiMP (Warstadt et al., TACL 8, 2020) and of the BabyLM evaluation pipeline: on
each line a JSON object with `sentence_good` and `sentence_bad`; the phenomenon is its
`linguistics_term` or `field`, else the file's name, and the paradigm its `UID`, if any.

Shapes: N pairs.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from maskery.core.batch import Floats
from maskery.core.errors import DataError
from maskery.data.corpus.files import find_files
from maskery.data.corpus.formats import split_suffix
from maskery.data.corpus.sentences import read_sentences
from maskery.evaluation.intervals import ratio_interval

SENTENCES = ("sentence_good", "sentence_bad")
NAMES = ("linguistics_term", "field", "UID")
TIE = 1e-5  # log-probabilities of equal sentences, sums of float32, may differ by so much


class MinimalPair(NamedTuple):
    """Two sentences of which one is right."""

    good: str
    bad: str
    phenomenon: str
    paradigm: str  # Empty where the file names none
    place: str  # The file and the line, for messages


def read_suite(source: str, *, encoding: str = "utf-8") -> Iterator[MinimalPair]:
    """Yield the pairs of a file, or of all .jsonl and .json files of a folder, also packed.

    A DataError if there are none, or a line is no JSON object with both sentences.
    """
    files = [path for path in find_files([source]) if split_suffix(path)[0] in (".jsonl", ".json")]
    if not files:
        raise DataError(f"'{source}' has no .jsonl or .json file; name a suite of minimal pairs")
    for path in files:
        for number, text in read_sentences(path, encoding=encoding):
            yield _pair(text, path.name.split(".")[0], f"{path}: line {number}")


def _pair(text: str, file: str, place: str) -> MinimalPair:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        values = None
    given = values if isinstance(values, dict) else {}
    found = {name: str(given.get(name) or "").strip() for name in (*SENTENCES, *NAMES)}
    if missing := [name for name in SENTENCES if not found[name]]:
        rule = f"each line is a JSON object with {' and '.join(SENTENCES)}"
        raise DataError(f"{place} has no {' and no '.join(missing)}: {rule}; correct it")
    good, bad, term, field, paradigm = found.values()
    return MinimalPair(good, bad, term or field or file, paradigm, place)


def suite_figures(
    pairs: Sequence[MinimalPair], scores: Floats, against: Floats | None = None
) -> list[dict[str, Any]]:
    """Return the accuracy by paradigm and phenomenon, then the mean of phenomena, and of all pairs.

    Each has a `level`, a `name`, its `pairs` and the share whose good sentence is likelier, ties
    counting half, as `accuracy`; with another model also its `against`, and their paired
    `difference`. Log-probabilities (2N,) are of each pair the good sentence's, then the bad one's.
    """
    more = [one[::2] - one[1::2] for one in (scores, against) if one is not None]
    right, *others = (np.where(abs(one) <= TIE, 0.5, one > 0) for one in more)
    groups: list[tuple[str, str, Floats]] = []
    for level in ("paradigm", "phenomenon"):
        names = np.array([getattr(pair, level) for pair in pairs])
        groups += [(level, str(n), (names == n).astype(float)) for n in np.unique(names) if n]
    each = [weights for level, _, weights in groups if level == "phenomenon"]
    # Every phenomenon counts alike; on average a pair counts once, as in the mean of all.
    macro = np.sum([weights * len(pairs) / (len(each) * weights.sum()) for weights in each], axis=0)
    groups += [("macro", "mean of phenomena", macro), ("micro", "all pairs", np.ones(len(pairs)))]
    figures = []
    for level, name, weights in groups:
        found: dict[str, Any] = {"level": level, "name": name, "pairs": int((weights > 0).sum())}
        shares = {"accuracy": right} | ({"against": others[0]} if others else {})
        found |= {n: ratio_interval(one * weights, weights, "share") for n, one in shares.items()}
        if others:
            apart = (right - others[0]) * weights
            found["difference"] = ratio_interval(apart, weights, "difference of shares")
        figures.append(found)
    return figures
