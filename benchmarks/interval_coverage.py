"""How often 95% intervals of few examples hold the true value.

Examples are drawn from a large population of sums like those of real runs (masked tokens heavy
tailed, difficulty differing between examples, two models that agree on many tokens), whose true
figures are known. Percentile bootstrap intervals, which earlier versions had, stand beside.
"""

from __future__ import annotations

import argparse
import math

import numpy as np
import numpy.typing as npt

from maskery.evaluation.intervals import Interval, Kind, ratio_interval

Floats = npt.NDArray[np.float64]
POPULATION = 50_000
SIZES = (5, 8, 13, 26, 100)


def population(generator: np.random.Generator) -> tuple[Floats, dict[str, tuple[Floats, Kind]]]:
    """Return the masked tokens of each example, and by figure the examples' sums and their kind."""
    tokens = 1 + generator.poisson(np.exp(generator.normal(2.6, 0.7, POPULATION)))
    hard = generator.normal(0.0, 0.5, POPULATION)
    before = generator.gamma(tokens * 0.9, 5.5 * np.exp(0.25 * hard) / 0.9)
    after = 0.5 * before + 0.5 * generator.gamma(tokens * 0.9, 3.0 * np.exp(0.3 * hard) / 0.9)
    example = np.repeat(np.arange(POPULATION), tokens)
    uniform = generator.random(len(example))
    # Half of the tokens are as easy for the one model as for the other.
    other = np.where(generator.random(len(example)) < 0.5, uniform, generator.random(len(example)))

    def hits(uniforms: Floats, level: float) -> Floats:
        right = uniforms < 1.0 / (1.0 + np.exp(hard[example] - level))
        return np.bincount(example, right, POPULATION)

    first, second = hits(uniform, -2.1), hits(other, -1.5)
    return tokens.astype(np.float64), {
        "loss": (after, "mean"),
        "loss, difference": (after - before, "mean"),
        "top-1": (second, "share"),
        "top-1, difference": (second - first, "difference of shares"),
    }


def percentile(sums: Floats, tokens: Floats, generator: np.random.Generator) -> Interval:
    """Return the percentile bootstrap interval over examples."""
    times = generator.multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=400)
    low, high = np.percentile((times @ sums) / (times @ tokens), (2.5, 97.5))
    return Interval(float(sums.sum() / tokens.sum()), float(low), float(high))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=4000)
    trials = parser.parse_args().trials
    generator = np.random.default_rng(0)
    tokens, figures = population(generator)
    error = 100 * math.sqrt(0.95 * 0.05 / trials)
    print(
        f"share of {trials:,} intervals that hold the true value (+- {error:.1f}); in brackets, "
        "of percentile bootstrap intervals"
    )
    print("| examples | " + " | ".join(figures) + " |")
    print("| ---: |" + " ---: |" * len(figures))
    for size in SIZES:
        cells = []
        for sums, kind in figures.values():
            truth = sums.sum() / tokens.sum()
            held = np.zeros(2)
            for _ in range(trials):
                chosen = generator.integers(0, POPULATION, size)
                own = ratio_interval(sums[chosen], tokens[chosen], kind)
                old = percentile(sums[chosen], tokens[chosen], generator)
                held += [i.low <= truth <= i.high for i in (own, old)]
            ours, theirs = 100 * held / trials
            cells.append(f"{ours:.1f}% ({theirs:.1f}%)" if own.known else f"none ({theirs:.1f}%)")
        print(f"| {size} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
