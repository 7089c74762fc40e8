"""95% intervals of figures over few, unequal, dependent examples, and the verdict they allow.

A figure is `sum of y / sum of w` over N examples: their loss or hits over their tokens. Examples
are taken to be independent, the tokens of one are not. The variance is the cluster-robust one with
each residual divided by sqrt(1 - its example's share of the tokens), and the quantile is Student's
with the degrees of freedom that match it (Bell and McCaffrey, Survey Methodology 28(2), 2002;
Imbens and Kolesar, Review of Economics and Statistics 98(4), 2016). Shares use Wilson's interval at
the effective sample size (Franco, Little, Louis and Slud, Journal of Survey Statistics and
Methodology 7(3), 2019), so that 0 of 20 is no certain 0. A difference of shares gets half a
made-up answer that got better and half a one that got worse (after Agresti and Min, Statistics in
Medicine 24, 2005). `benchmarks/interval_coverage.py` measures how often they hold the true value.

Shapes: N examples.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from scipy.special import stdtrit

from maskery.core.batch import Floats, Ids, Ints

Kind = Literal["mean", "share", "difference of shares"]
LEAST_EXAMPLES = 8  # with fewer, no method that was tried held the true value in 93% of the cases


class Interval(NamedTuple):
    """A figure with its 95% interval."""

    value: float
    low: float  # NaN where there are too few examples for an interval
    high: float  # NaN likewise

    @property
    def known(self) -> bool:
        """True if there were enough examples for an interval."""
        return not math.isnan(self.low)


def interval_note(examples: int, over: str = "examples") -> str:
    """Return the words that say what a table's intervals are over, or why it has none."""
    if examples < LEAST_EXAMPLES:
        return f"too few {over} for an interval (n={examples})"
    return f"95% intervals over {over}"


def ratio_interval(numerators: Floats, weights: Floats, kind: Kind = "mean") -> Interval:
    """Return `sum(numerators) / sum(weights)` with its 95% interval.

    Of each example, (N,) its sum and (N,) its tokens; those without any do not count. A token
    counts any number in a `mean`, 0 to 1 in a `share`, -1 to 1 in a `difference of shares`.
    """
    counted = weights > 0
    sums, tokens = numerators[counted], weights[counted]
    total = float(tokens.sum())
    value = float(sums.sum()) / total
    if len(sums) < LEAST_EXAMPLES:
        return Interval(value, math.nan, math.nan)
    share = tokens / total
    residuals = (sums - value * tokens) / np.sqrt(1.0 - share)
    squares = float(residuals @ residuals)
    if kind == "difference of shares":
        squares += 1.0
    leverage = share**2 / (1.0 - share)
    freedom = 1.0 / float(share @ share + leverage.sum() ** 2 - leverage @ leverage)
    quantile = float(stdtrit(freedom, 0.975))
    if kind == "share":
        return _wilson(value, squares / total**2, freedom, quantile)
    half = quantile * math.sqrt(squares) / total
    low, high = value - half, value + half
    if kind == "difference of shares":
        low, high = max(low, -1.0), min(high, 1.0)
    return Interval(value, low, high)


def grouped_interval(values: Floats, groups: Ints | Ids, kind: Kind = "share") -> Interval:
    """Return the mean of (N,) values, such as hits, with an interval over their groups (N,)."""
    numbers = np.unique(groups, return_inverse=True)[1]
    sums, counts = (np.bincount(numbers, each).astype(np.float64) for each in (values, None))
    return ratio_interval(sums, counts, kind)


def _wilson(share: float, variance: float, freedom: float, quantile: float) -> Interval:
    """Return Wilson's interval for as many independent tokens as the variance amounts to."""
    spread = share * (1.0 - share)
    # Where all tokens agree, nothing shows that those of one example are independent.
    effective = spread / variance if variance > 0.0 and spread > 0.0 else freedom + 1.0
    pull = quantile**2 / effective
    middle = (share + pull / 2.0) / (1.0 + pull)
    half = math.sqrt(quantile**2 * spread / effective + pull**2 / 4.0) / (1.0 + pull)
    # Wilson's interval always holds the share; rounding must not take it out.
    return Interval(share, min(middle - half, share), max(middle + half, share))


Word = Literal["better", "worse", "undecided"]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The effect of a run on filling words and on the encoder's vectors."""

    filling: Word  # Better if the held-out loss fell beyond its interval
    others: Mapping[str, Word]  # The same for other held-out texts, by name
    vectors: Word | None  # Better if texts find their neighbours, or their halves, more often
    advice: str  # The next thing to do

    def __str__(self) -> str:
        parts = [f"filling words: {self.filling}"]
        parts += [f"of {name}: {word}" for name, word in self.others.items()]
        if self.vectors is not None:
            parts.append(f"vectors: {self.vectors}")
        return f"{'; '.join(parts)}. {self.advice}"


def judge(
    loss: Interval,  # of a masked token, held out; below 0 is better
    vectors: Interval | None,  # of a share that is right by the vectors; above 0 is better
    *,
    keeps: bool = False,  # True if the run held its vectors to the start's (`--keep-embedding`)
    others: Mapping[str, Interval] | None = None,  # as `loss`, of other held-out texts by name
) -> Verdict:
    """Judge a run by its differences, after minus before."""
    filling = _word(loss, lower_is_better=True)
    other = {name: _word(one, lower_is_better=True) for name, one in (others or {}).items()}
    judged = None if vectors is None else _word(vectors, lower_is_better=False)
    advice = _advice(filling, judged, keeps=keeps)
    forgotten = " and ".join(name for name, word in other.items() if word == "worse")
    if forgotten and filling == "better":
        advice += f" It forgets {forgotten}: lower --learning-rate, or train on such text, too."
    return Verdict(filling=filling, others=other, vectors=judged, advice=advice)


def _word(difference: Interval, *, lower_is_better: bool) -> Word:
    if not difference.known or difference.low <= 0.0 <= difference.high:
        return "undecided"
    return "better" if (difference.value < 0.0) == lower_is_better else "worse"


def _advice(filling: Word, vectors: Word | None, *, keeps: bool) -> str:
    if vectors == "worse":
        flag = "raise --keep-embedding" if keeps else "train with --keep-embedding 10"
        return f"Its vectors tell less apart than before: do not embed texts with it; {flag}."
    if filling == "worse":
        return "No gain: stop, or lower --learning-rate."
    if filling == "undecided":
        return "No gain is shown: run longer, or hold out more text (--held-out-share)."
    if vectors == "undecided":
        return "It fills better, and no loss of its vectors is shown; probe it on your own labels."
    if vectors == "better":
        return "Use it."
    return "Probe its vectors before you embed texts with it (maskery probe)."
