"""Masking policies: which tokens are masked together, and with which chance.

A policy is an object that owns its settings and is asked for a selection. It is a pure function of
its arguments: all randomness comes from `draws`, which is named by (seed, epoch, example id,
position), so that a token's fate does not depend on its batch. A policy of your own is such an
object in a file, named `--policy FILE.py:NAME`, or a callable that makes one from the tokenizer.

Shapes: B sequences, T tokens, W words.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from maskery.core.batch import TokenBatch
from maskery.core.random import Stream, random_rows, random_words, to_uniforms

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BoolArray: TypeAlias = npt.NDArray[np.bool_]
IntArray: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Draws:
    """The random numbers of one epoch's masks.

    Each method takes a stream: one of Maskery's, or any name of your own, such as "phrases". Draws
    of different streams are independent; the same name gives the same numbers again.

    Attributes:
        seed: From 0 to 2**64 - 1.
        epoch: From 0 to 2**24 - 1.
    """

    seed: int
    epoch: int

    def rows(self, stream: Stream | str, batch: TokenBatch) -> npt.NDArray[np.uint32]:
        """Return a random word for each token of the batch: (T,) uint32."""
        seed, stream = self._stream(stream)
        return random_rows(seed, stream, self.epoch, batch.example_ids, batch.starts, batch.lengths)

    def uniforms(self, stream: Stream | str, batch: TokenBatch) -> npt.NDArray[np.float32]:
        """Return a uniform number in [0, 1) for each token of the batch: (T,) float32."""
        return to_uniforms(self.rows(stream, batch))

    def at(
        self, stream: Stream | str, example_ids: npt.NDArray[np.uint64], positions: IntArray
    ) -> npt.NDArray[np.uint32]:
        """Return a random word for each (example id, position): (N,) uint32.

        Args:
            stream: What the draws are for.
            example_ids: (N,) uint64.
            positions: (N,) int64, from 0; in documents, as `batch.starts`.
        """
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
    """The tokens that a policy chose.

    Attributes:
        selected: (T,) bool; only maskable tokens.
        anchors: (T,) int64 or None. Tokens with the same anchor, the index of a token of their
            example, are corrupted alike: all `[MASK]`, all replaced or all kept. None: each token
            on its own.
        values: (T,) float32 or None. An example in which nothing was chosen gets one mask all the
            same: the maskable tokens of least value, several where they share it (a word, a
            phrase). None: one token, by draws of its own.
    """

    selected: BoolArray
    anchors: IntArray | None = None
    values: npt.NDArray[np.float32] | None = None


class Policy(Protocol):
    """Chooses the masked tokens of a batch."""

    def select(
        self, batch: TokenBatch, maskable: BoolArray, rate: float, draws: Draws
    ) -> Selection:
        """Choose tokens.

        Args:
            batch: The sequences, T tokens with their special ones; not to be written to.
            maskable: (T,) bool; False at special tokens.
            rate: Share of the maskable tokens to be chosen, in expectation.
            draws: All the randomness, so that the choice is repeated in any batch.
        """


PolicyMaker: TypeAlias = "Callable[[PreTrainedTokenizerBase], Policy]"


@dataclass(frozen=True, kw_only=True)
class TokenPolicy:
    """Mask each maskable token with probability `rate` (BERT, section 3.1)."""

    def select(
        self, batch: TokenBatch, maskable: BoolArray, rate: float, draws: Draws
    ) -> Selection:
        """Choose single tokens."""
        uniforms = draws.uniforms(Stream.SELECT, batch)
        return Selection(selected=(uniforms < np.float32(rate)) & maskable, values=uniforms)


@dataclass(frozen=True, kw_only=True)
class WordPolicy:
    """Mask each word, all its tokens together, with probability `rate` (whole-word masking).

    The expected share of masked tokens is `rate`, whatever the lengths of the words.
    """

    def select(
        self, batch: TokenBatch, maskable: BoolArray, rate: float, draws: Draws
    ) -> Selection:
        """Choose whole words, each by the draw of its first token."""
        first, word = words_of(batch)
        uniforms = draws.uniforms(Stream.SELECT, batch)[first][word]
        return Selection(selected=(uniforms < np.float32(rate)) & maskable, values=uniforms)


def words_of(batch: TokenBatch) -> tuple[IntArray, IntArray]:
    """Return the words of a batch; a word never crosses a sequence's start.

    Returns:
        (W,) int64, the first token of each word; (T,) int64, the word of each token.
    """
    starts = batch.word_starts.copy()
    starts[batch.boundaries[:-1][batch.lengths > 0]] = True
    return np.flatnonzero(starts), np.cumsum(starts) - 1
