"""Masking policies: which tokens are masked together, and with which chance.

A policy is an object that owns its settings and is asked for a selection. It is a pure function of
its arguments: all randomness comes from `draws`, which is named by (seed, epoch, example id,
position), so that a token's fate does not depend on its batch. A policy of your own is such an
object in a file, named `--policy FILE.py:NAME`, or a callable that makes one from the tokenizer.

Shapes: B sequences, T tokens, W words.
"""

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from maskery.core.batch import Bools, Floats, Ids, Ints, TokenBatch
from maskery.core.random import Stream, random_rows, random_words, to_uniforms

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PolicyMaker: TypeAlias = "Callable[[PreTrainedTokenizerBase], Policy]"


@dataclass(frozen=True, kw_only=True)
class Draws:
    """The random numbers of one epoch's masks.

    Each method takes a stream: one of Maskery's, or any name of your own, such as "phrases". Draws
    of different streams are independent; the same name gives the same numbers again.
    """

    seed: int  # From 0 to 2**64 - 1
    epoch: int  # From 0 to 2**24 - 1

    def rows(self, stream: Stream | str, batch: TokenBatch) -> npt.NDArray[np.uint32]:
        """Return a random word for each token of the batch: (T,) uint32."""
        seed, stream = self._stream(stream)
        return random_rows(seed, stream, self.epoch, batch.example_ids, batch.starts, batch.lengths)

    def uniforms(self, stream: Stream | str, batch: TokenBatch) -> npt.NDArray[np.float32]:
        """Return a uniform number in [0, 1) for each token of the batch: (T,) float32."""
        return to_uniforms(self.rows(stream, batch))

    def at(self, stream: Stream | str, example_ids: Ids, positions: Ints) -> npt.NDArray[np.uint32]:
        """Return a random word for each (example id, position in its document): (N,) uint32."""
        seed, stream = self._stream(stream)
        return random_words(seed, stream, self.epoch, example_ids, positions)

    def _stream(self, stream: Stream | str) -> tuple[int, Stream]:
        if isinstance(stream, Stream):
            return self.seed, stream
        # The counter has 8 bits for our streams alone; a name makes a key of its own.
        named = blake2b(stream.encode(), digest_size=8, key=self.seed.to_bytes(8, "little"))
        return int.from_bytes(named.digest(), "little"), Stream.SELECT


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The tokens that a policy chose."""

    selected: Bools  # (T,) bool; only maskable tokens
    # (T,) int64. Tokens with the same anchor, the index of a token of their example, are corrupted
    # alike: all `[MASK]`, all replaced or all kept. None: each token on its own.
    anchors: Ints | None = None
    # (T,) float32. Where nothing was chosen, an example gets one mask: the maskable tokens of least
    # value, several where they share it (a word, a phrase). None: one token, by draws of its own.
    values: npt.NDArray[np.float32] | None = None


class Policy(Protocol):
    """Chooses the masked tokens of a batch."""

    def select(self, batch: TokenBatch, maskable: Bools, rate: float, draws: Draws) -> Selection:
        """Choose tokens, in expectation a share `rate` of those that are `maskable` (T,) bool.

        All randomness comes from `draws`, so that the choice is repeated in any batch; the batch, T
        tokens with their special ones, is not to be written to.
        """


@dataclass(frozen=True, kw_only=True)
class TokenPolicy:
    """Mask each maskable token with probability `rate` (BERT, section 3.1)."""

    def select(self, batch: TokenBatch, maskable: Bools, rate: float, draws: Draws) -> Selection:
        """Choose single tokens."""
        uniforms = draws.uniforms(Stream.SELECT, batch)
        return Selection(selected=(uniforms < np.float32(rate)) & maskable, values=uniforms)


@dataclass(frozen=True, kw_only=True)
class WordPolicy:
    """Mask each word, all its tokens together, with probability `rate` (whole-word masking).

    The expected share of masked tokens is `rate`, whatever the lengths of the words.
    """

    def select(self, batch: TokenBatch, maskable: Bools, rate: float, draws: Draws) -> Selection:
        """Choose whole words, each by the draw of its first token."""
        first, word = words_of(batch)
        uniforms = draws.uniforms(Stream.SELECT, batch)[first][word]
        return Selection(selected=(uniforms < np.float32(rate)) & maskable, values=uniforms)


def words_of(batch: TokenBatch) -> tuple[Ints, Ints]:
    """Return the first token of each word (W,), and the word of each token (T,)."""
    starts = batch.word_starts.copy()
    # A word never crosses a sequence's start.
    starts[batch.boundaries[:-1][batch.lengths > 0]] = True
    return np.flatnonzero(starts), np.cumsum(starts) - 1


@dataclass(frozen=True, kw_only=True)
class SpanPolicy:
    """Mask spans of whole words, their lengths geometric and cut at `longest` (SpanBERT, 3.1).

    SpanBERT draws spans one after another until 15% of a sequence is masked. Here the words of a
    sequence are walked once, unmasked gaps and masked spans in turn, both drawn independently (a
    renewal process started in its steady state). Span lengths have SpanBERT's distribution exactly,
    spans never touch, the expected share is the rate, and the tokens of a span are corrupted alike.

    Each word decides by a draw of its own, named by its place in the document, whether a span
    starts there. So windows of other lengths (`--max-length`) have the same spans, but for a few
    words after the start of a window, where a span that comes in from before cannot be seen.
    """

    p: float = 0.2  # Parameter of the geometric distribution of lengths
    longest: int = 10  # Longest span, in words

    def select(self, batch: TokenBatch, maskable: Bools, rate: float, draws: Draws) -> Selection:
        """Choose spans."""
        first, word = words_of(batch)
        span_of_word = walk_spans(batch, first, rate, draws, self.p, self.longest)
        inside = span_of_word >= 0
        # A word outside spans is named by itself: it may be the one mask of a bare example.
        named = first[np.where(inside, span_of_word, np.arange(len(first)))]
        values = draws.uniforms(Stream.SELECT, batch)[first][word]
        return Selection(selected=inside[word] & maskable, anchors=named[word], values=values)


def span_lengths(p: float, longest: int) -> Floats:
    """Return P(length = 1), ..., P(length = longest), SpanBERT's distribution."""
    weights = p * (1.0 - p) ** np.arange(longest)
    chances: Floats = weights / weights.sum()
    return chances


def walk_spans(
    batch: TokenBatch, first: Ints, rate: float, draws: Draws, p: float, longest: int
) -> Ints:
    """Walk every sequence in gaps and spans, from the first tokens (W,) of the words.

    Returns (W,) int64, the first word of the span that each word is in, or -1.
    """
    chances = span_lengths(p, longest)
    mean_span = float(np.arange(1, longest + 1) @ chances)
    # Gaps are geometric from 1 on, so that spans never touch, with the mean that gives the rate;
    # the configuration keeps the rate in reach.
    chance = min(rate / (mean_span * (1.0 - rate)), 1.0)
    begin = draws.uniforms(Stream.SPAN, batch)[first]
    length = draws.uniforms("span lengths", batch)[first]
    bounds = np.searchsorted(first, batch.boundaries)
    begins = begin < np.float32(chance)
    lengths = np.searchsorted(np.cumsum(chances), length).clip(max=longest - 1) + 1
    # A sequence starts as if the walk had gone on for ever: inside a span with probability `rate`,
    # of which P(rest = k) = P(length >= k) / mean length is left; else in a gap, without memory.
    heads = bounds[:-1][np.diff(bounds) > 0]
    rests = np.cumsum(np.cumsum(chances[::-1])[::-1] / mean_span)
    begins[heads] = begin[heads] < np.float32(rate)
    lengths[heads] = np.searchsorted(rests, length[heads]).clip(max=longest - 1) + 1
    starts = np.flatnonzero(begins)
    limits = bounds[np.searchsorted(bounds, starts, side="right")]
    ends = np.minimum(starts + lengths[starts], limits)
    span_of_word, free = np.full(len(first), -1, np.int64), 0
    for start, end, limit in zip(starts.tolist(), ends.tolist(), limits.tolist(), strict=True):
        # One that an earlier span covers or touches is left out; those of two sequences may touch.
        if start >= free:
            span_of_word[start:end] = start
            free = end + 1 if end < limit else end
    return span_of_word
