"""Masking of spans of whole words (SpanBERT, section 3.1).

Shapes: B sequences, T tokens, W words, S spans.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from maskery.core.batch import TokenBatch
from maskery.core.random import Stream, random_rows
from maskery.masking.policies import BoolArray, Draws, IntArray, Selection, words_of

# Longer than any sequence, and small enough for sums of many gaps in 64 bits.
FAR = 1 << 32


@dataclass(frozen=True, kw_only=True)
class SpanPolicy:
    """Mask spans of whole words, their lengths geometric and cut at `longest` (SpanBERT, 3.1).

    SpanBERT draws spans one after another until 15% of a sequence is masked. Here the words of a
    sequence are walked once, unmasked gaps and masked spans in turn, both drawn independently (a
    renewal process started in its steady state). Span lengths have SpanBERT's distribution exactly,
    spans never touch, the expected share is the rate, and all sequences are walked at once. As in
    SpanBERT, the tokens of a span are corrupted alike.

    Attributes:
        p: Parameter of the geometric distribution of lengths.
        longest: Longest span, in words.
    """

    p: float = 0.2
    longest: int = 10

    def select(
        self, batch: TokenBatch, maskable: BoolArray, rate: float, draws: Draws
    ) -> Selection:
        """Choose spans."""
        first, word = words_of(batch)
        num_words = np.diff(np.searchsorted(first, batch.boundaries))
        span_of_word, firsts = walk_spans(batch, num_words, rate, draws, self.p, self.longest)
        # A word outside spans is named by itself: it may be the one mask of a bare example.
        named = first.copy()
        inside = span_of_word >= 0
        named[inside] = first[firsts[span_of_word[inside]]]
        return Selection(
            selected=inside[word] & maskable,
            anchors=named[word],
            values=draws.uniforms(Stream.SELECT, batch)[first][word],
        )


def span_lengths(p: float, longest: int) -> npt.NDArray[np.float64]:
    """(longest,) float64: P(length = 1), ..., P(length = longest), SpanBERT's distribution."""
    weights = p * (1.0 - p) ** np.arange(longest)
    chances: npt.NDArray[np.float64] = weights / weights.sum()
    return chances


def walk_spans(
    batch: TokenBatch, num_words: IntArray, rate: float, draws: Draws, p: float, longest: int
) -> tuple[IntArray, IntArray]:
    """Walk every sequence in gaps and spans.

    Args:
        batch: The sequences.
        num_words: (B,) int64.
        rate: Expected share of words in spans.
        draws: The randomness.
        p: Parameter of the span lengths.
        longest: Longest span, in words.

    Returns:
        (W,) int64, the span of each word or -1; (S,) int64, the first word of each span.
    """
    chances = span_lengths(p, longest)
    mean_span = float(np.arange(1, longest + 1) @ chances)
    # A gap is geometric from 1 on, so that spans never touch, with the mean that gives the rate.
    mean_gap = max(mean_span * (1.0 - rate) / rate, 1.0)  # the config keeps the rate in reach
    # A gap and a span take two words at least; the first span may start before the sequence.
    num_pairs = num_words // 2 + 1
    words = random_rows(
        draws.seed, Stream.SPAN, draws.epoch, batch.example_ids, 2 * batch.starts, 2 * num_pairs
    )
    uniform = (words.astype(np.float64) + 0.5) * 2.0**-32
    gaps = geometric(uniform[0::2], 1.0 / mean_gap)
    spans = np.searchsorted(np.cumsum(chances), uniform[1::2]).clip(max=longest - 1) + 1
    pair_starts = np.cumsum(num_pairs) - num_pairs
    begin_in_steady_state(gaps, spans, pair_starts, uniform, rate, chances, mean_span)
    # Where each span lies within its sequence.
    ends = np.cumsum(gaps + spans)
    ends -= np.repeat(ends[pair_starts] - (gaps + spans)[pair_starts], num_pairs)
    firsts = ends - spans
    limits, bases = np.repeat(num_words, num_pairs), np.repeat(cumulative(num_words), num_pairs)
    kept = firsts < limits
    firsts, lasts = (firsts + bases)[kept], (np.minimum(ends, limits) + bases)[kept]
    span_of_word = np.full(int(num_words.sum()), -1, np.int64)
    lengths = lasts - firsts
    inside = np.arange(int(lengths.sum())) + np.repeat(firsts - cumulative(lengths), lengths)
    span_of_word[inside] = np.repeat(np.arange(len(firsts)), lengths)
    return span_of_word, firsts


def begin_in_steady_state(
    gaps: IntArray,
    spans: IntArray,
    pair_starts: IntArray,
    uniform: npt.NDArray[np.float64],
    rate: float,
    chances: npt.NDArray[np.float64],
    mean_span: float,
) -> None:
    """Replace each sequence's first gap and span, in place, as if the walk had gone on for ever.

    With probability `rate` the sequence starts inside a span, of which P(rest = k) =
    P(length >= k) / mean length is left; otherwise inside a gap, which has no memory.
    """
    first = uniform[0::2][pair_starts]
    inside = first < rate
    at_least = np.cumsum(chances[::-1])[::-1]
    rest = np.searchsorted(np.cumsum(at_least / mean_span), uniform[1::2][pair_starts])
    rest = rest.clip(max=len(chances) - 1) + 1
    gap_chance = rate / (mean_span * (1.0 - rate))
    fresh = (first - rate) / (1.0 - rate)
    gaps[pair_starts] = np.where(
        inside, 0, geometric(np.clip(fresh, 1e-12, 1.0 - 1e-12), min(gap_chance, 1.0))
    )
    spans[pair_starts] = np.where(inside, rest, spans[pair_starts])


def geometric(uniform: npt.NDArray[np.float64], chance: float) -> IntArray:
    """Geometric numbers from 1 on, by inversion; those past any sequence are cut to `FAR`."""
    if chance >= 1.0:
        return np.ones(len(uniform), np.int64)
    numbers = np.floor(np.log(uniform) / np.log1p(-max(chance, 1.0 / FAR))) + 1.0
    cut: IntArray = np.minimum(numbers, FAR).astype(np.int64)
    return cut


def cumulative(lengths: IntArray) -> IntArray:
    """Where each run starts when runs of these lengths lie end to end."""
    starts: IntArray = np.cumsum(lengths) - lengths
    return starts
