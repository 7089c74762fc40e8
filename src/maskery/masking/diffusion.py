"""Masks of masked diffusion, with the weight that makes their loss a bound on the text's own.

Sahoo et al., "MDLM" (NeurIPS 2024), section 3; Nie et al., "LLaDA" (2025), equations 3 and 6. With
each token of a text masked with chance t, which the model is not told (Ou et al., ICLR 2025), the
negative evidence lower bound (NELBO) is

    mean over t in (0, 1] of  1/t * (sum over masked tokens of -log p(token | the masked text)),

at least the text's negative log-likelihood. The mean over t is, exactly, that over k = 1 ... L of
the same with k of L tokens masked and weighted L/k: of less variance, so evaluations draw k.

Shapes: B sequences, T tokens, M masked tokens.
"""

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from maskery.core.batch import Floats, Ints, MaskedTokens, TokenBatch
from maskery.core.random import Stream
from maskery.masking.masker import Masker

# MDLM's least t: no weight is above 1,000, and the mean over t moves by less than a thousandth.
FLOOR = 1e-3
# The bell is a normal density around 1/2, cut to [0, 1]: no weight is above 4.5 times uniform t's.
SPREAD = 0.25


@dataclass(frozen=True, kw_only=True)
class DiffusionMasker(Masker):
    """Draws t for each sequence and epoch, and masks each maskable token with that chance."""

    bell: bool = False  # Draw t more often around 1/2, weighted by 1 / density

    def mask(self, batch: TokenBatch, *, epoch: int, progress: float = 0.0) -> MaskedTokens:
        """Mask a batch, always by `[MASK]`; a sequence may be left without any."""
        del progress  # t has one distribution over the whole run
        tokens = np.flatnonzero(~self.vocabulary.protected[batch.input_ids])
        uniforms = self._draws(epoch).uniforms(Stream.SELECT, batch)[tokens]
        chosen, weights = self._choose(batch, epoch, tokens, uniforms)
        corrupted = batch.input_ids.copy()
        corrupted[chosen] = self.vocabulary.mask_token_id
        own = weights[batch.sequences_of(chosen)].astype(np.float32)
        masked = MaskedTokens.unmasked(batch, chosen)
        return replace(masked, input_ids=corrupted, weights=own, count=len(tokens))

    def _choose(
        self, batch: TokenBatch, epoch: int, tokens: Ints, uniforms: npt.NDArray[np.float32]
    ) -> tuple[Ints, Floats]:
        """Choose among the maskable tokens, ascending; returns the weights (B,), too."""
        times, density = drawn_times(self._sequence_uniforms(batch, epoch), bell=self.bell)
        return tokens[uniforms < times[batch.sequences_of(tokens)]], 1.0 / (times * density)

    def _sequence_uniforms(self, batch: TokenBatch, epoch: int) -> Floats:
        """Return a number in (0, 1] for each sequence, (B,)."""
        words = self._draws(epoch).at("diffusion time", batch.example_ids, batch.starts)
        return (words.astype(np.float64) + 1.0) / 2.0**32


class NelboMasker(DiffusionMasker):
    """Masks exactly k tokens of each sequence, k uniform from 1 to all of them, in four draws.

    The k of four epochs in a row are of four quarters of its range. Weights sum to the number of
    maskable tokens over these, so weighted sums are those of a text that is masked once.
    """

    draws: ClassVar[int] = 4

    def _choose(
        self, batch: TokenBatch, epoch: int, tokens: Ints, uniforms: npt.NDArray[np.float32]
    ) -> tuple[Ints, Floats]:
        sequence = batch.sequences_of(tokens)
        sizes = np.bincount(sequence, minlength=len(batch.lengths))
        share = (self._sequence_uniforms(batch, epoch) + epoch % self.draws) / self.draws
        most = np.maximum(np.ceil(share * sizes), 1)
        order = np.lexsort((uniforms, sequence))
        rank = np.arange(len(tokens)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        return np.sort(tokens[order[rank < most[sequence]]]), sizes / most / self.draws


def drawn_times(uniforms: Floats, *, bell: bool) -> tuple[Floats, Floats]:
    """Return t in (`FLOOR`, 1] for uniform numbers in (0, 1], and its density among uniform t."""
    density = np.ones_like(uniforms)
    if bell:  # Hong et al., "Understanding and accelerating ..." (arXiv 2605.13026)
        from scipy.special import ndtr, ndtri

        tail = ndtr(-0.5 / SPREAD)
        scores = ndtri(tail + uniforms * (1.0 - 2.0 * tail))
        uniforms = 0.5 + SPREAD * scores
        density = np.exp(-0.5 * scores**2) / (SPREAD * math.sqrt(2 * math.pi) * (1 - 2 * tail))
    return FLOOR + (1.0 - FLOOR) * uniforms, density
