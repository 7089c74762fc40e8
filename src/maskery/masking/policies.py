"""Which tokens are masked: single tokens, whole words, or spans of words.

A policy is a pure function from flat ids to a boolean selection. Its draws are named by
(seed, epoch, example id, position), so a token's fate does not depend on its batch.

Shapes: B sequences, T tokens, W words, S spans.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from maskery.core.batch import TokenBatch
from maskery.core.random import Stream, random_rows, to_uniforms
from maskery.masking.config import MaskingConfig

BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Draws:
    """Where a policy's randomness comes from."""

    seed: int
    epoch: int

    def rows(self, stream: Stream, batch: TokenBatch) -> npt.NDArray[np.uint32]:
        """(T,) words, one for each token of the batch."""
        return random_rows(
            self.seed, stream, self.epoch, batch.example_ids, batch.starts, batch.lengths
        )


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What a policy chose.

    Attributes:
        selected: (T,) bool.
        anchors: (T,) int64 or None; tokens with the same anchor are corrupted alike. None stands
            for each token on its own.
    """

    selected: BoolArray
    anchors: IntArray | None = None


Policy = Callable[[TokenBatch, BoolArray, float, Draws, MaskingConfig], Selection]


def select_tokens(
    batch: TokenBatch, maskable: BoolArray, rate: float, draws: Draws, config: MaskingConfig
) -> Selection:
    """Mask each maskable token with probability `rate` (BERT, section 3.1)."""
    del config
    uniforms = to_uniforms(draws.rows(Stream.SELECT, batch))
    selected = uniforms < np.float32(rate)
    selected &= maskable
    force_one_each(batch, maskable, uniforms, selected)
    return Selection(selected=selected)


def select_words(
    batch: TokenBatch, maskable: BoolArray, rate: float, draws: Draws, config: MaskingConfig
) -> Selection:
    """Mask each word, all its tokens together, with probability `rate` (whole-word masking).

    The expected share of masked tokens is `rate`, whatever the lengths of the words.
    """
    del config
    first, word = words_of(batch)
    uniforms = to_uniforms(draws.rows(Stream.SELECT, batch))[first][word]
    selected = uniforms < np.float32(rate)
    selected &= maskable
    force_one_each(batch, maskable, uniforms, selected)
    return Selection(selected=selected)


def select_spans(
    batch: TokenBatch, maskable: BoolArray, rate: float, draws: Draws, config: MaskingConfig
) -> Selection:
    """Mask spans of whole words, their lengths geometric and cut at `span_max` (SpanBERT, 3.1).

    SpanBERT draws spans one after another until 15% of a sequence is masked. Here the words of a
    sequence are walked once, unmasked gaps and masked spans in turn, both drawn independently (a
    renewal process started in its steady state). Span lengths have SpanBERT's distribution exactly,
    spans never touch, the expected share is `rate`, and all sequences are walked at once. As in
    SpanBERT, the tokens of a span are corrupted alike.
    """
    first, word = words_of(batch)
    word_boundaries = np.searchsorted(first, batch.boundaries)
    num_words = np.diff(word_boundaries)
    span_of_word, span_starts = walk_spans(
        batch, num_words, rate, draws, config.span_p, config.span_max
    )
    anchors = first[span_starts][np.maximum(span_of_word, 0)][word] if len(span_starts) else word
    selected = (span_of_word >= 0)[word]
    selected &= maskable
    uniforms = to_uniforms(draws.rows(Stream.SELECT, batch))[first][word]
    forced = force_one_each(batch, maskable, uniforms, selected)
    anchors = np.where(forced, first[word], anchors)
    return Selection(selected=selected, anchors=anchors)


POLICIES: dict[str, Policy] = {"token": select_tokens, "word": select_words, "span": select_spans}


def words_of(batch: TokenBatch) -> tuple[IntArray, IntArray]:
    """The words of a batch; a word never crosses a sequence's start.

    Returns:
        (W,) int64, the first token of each word; (T,) int64, the word of each token.
    """
    starts = batch.word_starts.copy()
    starts[batch.boundaries[:-1][batch.lengths > 0]] = True
    return np.flatnonzero(starts), np.cumsum(starts) - 1


def force_one_each(
    batch: TokenBatch, maskable: BoolArray, uniforms: npt.NDArray[np.float32], selected: BoolArray
) -> BoolArray:
    """Give every sequence with a maskable token and no mask the mask nearest to being drawn.

    Args:
        batch: The sequences.
        maskable: (T,) bool.
        uniforms: (T,) float32; the maskable token (and the word it shares its value with) of least
            value is masked.
        selected: (T,) bool, changed in place; the caller's own array.

    Returns:
        (T,) bool: what was added.
    """
    forced = np.zeros_like(selected)
    full = np.flatnonzero(batch.lengths > 0)
    if not len(full):
        return forced
    starts = batch.boundaries[:-1][full]
    has_none = ~np.logical_or.reduceat(selected, starts)
    if not has_none.any():
        return forced
    # Only the bare sequences are looked at again: one in a thousand at 50 tokens.
    bare = full[has_none]
    lengths = batch.lengths[bare]
    offsets = np.cumsum(lengths) - lengths
    tokens = np.arange(int(lengths.sum())) + np.repeat(batch.boundaries[bare] - offsets, lengths)
    values = np.where(maskable[tokens], uniforms[tokens], np.float32(2.0))
    least = np.minimum.reduceat(values, offsets)
    forced[tokens] = (values == np.repeat(least, lengths)) & maskable[tokens]
    selected |= forced
    return forced


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
    mean_gap = max(mean_span * (1.0 - rate) / rate, 1.0)
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
    """Geometric numbers from 1 on, by inversion."""
    if chance >= 1.0:
        return np.ones(len(uniform), np.int64)
    numbers: IntArray = (np.floor(np.log(uniform) / np.log1p(-chance)) + 1.0).astype(np.int64)
    return numbers


def cumulative(lengths: IntArray) -> IntArray:
    """Where each run starts when runs of these lengths lie end to end."""
    starts: IntArray = np.cumsum(lengths) - lengths
    return starts
