"""The masking engine: a config, a vocabulary and a seed become masks for flat batches."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from maskery.core.batch import MaskedTokens, TokenBatch
from maskery.core.vocabulary import Vocabulary
from maskery.masking.config import MaskingConfig
from maskery.masking.corruption import corrupt
from maskery.masking.policies import POLICIES, Draws
from maskery.masking.schedules import mask_rate


@dataclass(frozen=True, kw_only=True)
class Masker:
    """Masks batches as a pure function of (seed, epoch, example id, position).

    Attributes:
        vocabulary: From `Vocabulary.of(tokenizer)`.
        config: Policy, rate and shares.
        seed: From 0 to 2**64 - 1.
    """

    vocabulary: Vocabulary
    config: MaskingConfig = field(default_factory=MaskingConfig)
    seed: int = 0

    def mask(self, batch: TokenBatch, *, epoch: int, progress: float = 0.0) -> MaskedTokens:
        """Mask a batch.

        Args:
            batch: Sequences with their special tokens; not modified.
            epoch: From 0; with `static` masks, every epoch has those of epoch 0.
            progress: The share of the run that is done, for the rate's schedule.
        """
        draws = Draws(seed=self.seed, epoch=0 if self.config.static else epoch)
        maskable = ~self.vocabulary.protected[batch.input_ids]
        rate = mask_rate(self.config, progress)
        selection = POLICIES[self.config.policy](batch, maskable, rate, draws, self.config)
        positions = np.flatnonzero(selection.selected)
        anchors = None if selection.anchors is None else selection.anchors[positions]
        return MaskedTokens(
            batch=batch,
            input_ids=corrupt(batch, positions, anchors, self.vocabulary, draws, self.config),
            positions=positions,
            targets=batch.input_ids[positions],
        )

    def for_generator(self, mask_rate: float) -> Masker:
        """The masker of the words that a momentum twin fills for replaced-token detection.

        The same policy at a constant rate, every masked token a `[MASK]` (RaSa, section 3.2), drawn
        independently of this masker's.

        Args:
            mask_rate: Share of maskable tokens.
        """
        config = replace(
            self.config,
            mask_rate=mask_rate,
            mask_rate_end=None,
            mask_schedule="constant",
            mask_share=1.0,
            random_share=0.0,
        )
        return replace(self, config=config, seed=(self.seed + 1) % (1 << 64))
