"""Compare runs on the same held-out text: figures, paired differences, the spread over seeds.

Runs that differ in the seed alone become one row: the mean of their figures with an interval over
examples and, since how far they lie apart is another doubt, their standard deviation beside it.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from maskery.core.errors import DataError
from maskery.evaluation.intervals import Interval
from maskery.evaluation.text.masked import COLUMNS, ExampleSums, MaskedScores, compare, summarise

SEED = "training.seed"


@dataclass(frozen=True, kw_only=True)
class ScoredRun:
    """A run to be compared."""

    name: str  # Of its folder
    settings: dict[str, Any]  # All, by names with those of their groups: `training.seed`
    tokenizer: str | None  # A hash of its tokenizer
    sums: ExampleSums  # Held-out sums of its model


@dataclass(frozen=True, kw_only=True)
class Row:
    """A run, or several that differ in the seed alone."""

    runs: tuple[str, ...]  # Their names
    seeds: tuple[int, ...]  # The seed of each
    settings: dict[str, Any]  # Those that are not the same in all rows, by short names
    scores: MaskedScores  # Held-out figures, means over the seeds
    deviation: dict[str, float]  # Over seeds, of loss, top1 and top5; empty for one run
    difference: dict[str, Interval]  # To the row that all are compared with; empty for that one

    @property
    def name(self) -> str:
        """The first run, and how many others there are."""
        others = len(self.runs) - 1
        return f"{self.runs[0]} (+{others})" if others else self.runs[0]


def compare_runs(runs: Sequence[ScoredRun], against: str | None = None) -> list[Row]:
    """Return one row for each run or group of seeds, in order.

    All are compared with the run that is named, or with that of the lowest loss.
    """
    for run in runs[1:]:
        _require_same_masks(run, runs[0])
    # By all settings but the seed, and by how often that seed was there before.
    together: dict[tuple[str, int], list[ScoredRun]] = {}
    repeats: Counter[tuple[str, int]] = Counter()
    for run in runs:
        rest = json.dumps({k: v for k, v in run.settings.items() if k != SEED}, sort_keys=True)
        # A run that was repeated with its own seed says nothing of the spread over seeds.
        repeats[rest, run.settings[SEED]] += 1
        together.setdefault((rest, repeats[rest, run.settings[SEED]]), []).append(run)
    groups = list(together.values())
    averages = (np.mean([run.sums.sums for run in group], axis=0) for group in groups)
    means = [ExampleSums(ids=runs[0].sums.ids, sums=sums) for sums in averages]
    named = [i for i, group in enumerate(groups) if against in [run.name for run in group]]
    reference = named[0] if named else int(np.argmin([mean.sums[:, 1].sum() for mean in means]))
    changing = _changing_settings(groups)
    return [
        Row(
            runs=tuple(run.name for run in group),
            seeds=tuple(run.settings[SEED] for run in group),
            settings={short: group[0].settings.get(name) for name, short in changing.items()},
            scores=summarise(mean),
            deviation=_deviation(group),
            difference={} if i == reference else compare(mean, means[reference]),
        )
        for i, (group, mean) in enumerate(zip(groups, means, strict=True))
    ]


def _require_same_masks(run: ScoredRun, first: ScoredRun) -> None:
    own, ids = run.sums.ids, first.sums.ids
    added, missing = (len(np.setdiff1d(a, b)) for a, b in ((own, ids), (ids, own)))
    if added or missing:
        problem = f"'{run.name}' was measured on other held-out text than '{first.name}'"
        not_in_that = f"{added:,} of its {len(own):,} examples are not in that"
        not_in_it = f"{missing:,} of {len(ids):,} are not in it"
        fix = "compare runs with the same corpus and --held-out-share, or --eval-data"
        raise DataError(f"{problem}: {not_in_that}, and {not_in_it}; {fix}")
    changed = int((run.sums.sums[:, 0] != first.sums.sums[:, 0]).sum())
    if changed or run.tokenizer != first.tokenizer:
        why = "" if run.tokenizer == first.tokenizer else "their tokenizers differ, and "
        problem = f"'{run.name}' was measured on other masks than '{first.name}'"
        masks = f"{changed:,} of {len(ids):,} examples have another number of masked tokens"
        fix = "compare runs that share tokenizer and objective, made by one version of Maskery"
        raise DataError(f"{problem}: {why}{masks}; {fix}")


def _changing_settings(groups: Sequence[Sequence[ScoredRun]]) -> dict[str, str]:
    """Return the short names of settings, but for the seed, that differ between groups."""
    first, *others = (group[0].settings for group in groups)
    names = dict.fromkeys(name for one in (first, *others) for name in one)
    found = [n for n in names if n != SEED and any(o.get(n) != first.get(n) for o in others)]
    shorts = Counter(name.rpartition(".")[2] for name in found)
    return {n: s if shorts[s := n.rpartition(".")[2]] == 1 else n for n in found}


def _deviation(group: Sequence[ScoredRun]) -> dict[str, float]:
    if len(group) == 1:
        return {}
    totals = np.array([run.sums.sums.sum(axis=0) for run in group])
    over_seeds = (totals[:, 1:] / totals[:, :1]).std(axis=0, ddof=1)
    return dict(zip(COLUMNS[1:], map(float, over_seeds), strict=True))
