"""What a masked token is shown as: `[MASK]`, a random token, or itself (BERT, section 3.1)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from maskery.core.batch import TokenBatch
from maskery.core.random import Stream, random_words, to_integers, to_uniforms
from maskery.core.vocabulary import Vocabulary
from maskery.masking.config import MaskingConfig
from maskery.masking.policies import Draws


def corrupt(
    batch: TokenBatch,
    positions: npt.NDArray[np.int64],
    anchors: npt.NDArray[np.int64] | None,
    vocabulary: Vocabulary,
    draws: Draws,
    config: MaskingConfig,
) -> npt.NDArray[np.int64]:
    """The ids of a batch with its masked tokens corrupted.

    Args:
        batch: The sequences, T tokens; not modified.
        positions: (M,) int64, ascending: the masked tokens.
        anchors: (M,) int64 or None: tokens with the same anchor fare alike (all shown as `[MASK]`,
            all replaced or all kept).
        vocabulary: The mask token and the ids that may replace one.
        draws: The randomness.
        config: The shares.

    Returns:
        (T,) int64.
    """
    corrupted = batch.input_ids.copy()
    sequence = np.searchsorted(batch.boundaries, positions, side="right") - 1
    ids = batch.example_ids[sequence]
    offset = batch.starts[sequence] - batch.boundaries[sequence]
    if config.mask_share >= 1.0:
        corrupted[positions] = vocabulary.mask_token_id
        return corrupted
    deciding = positions if anchors is None else anchors
    fate = to_uniforms(
        random_words(draws.seed, Stream.CORRUPT, draws.epoch, ids, deciding + offset)
    )
    corrupted[positions[fate < np.float32(config.mask_share)]] = vocabulary.mask_token_id
    replaced = fate >= np.float32(config.mask_share)
    replaced &= fate < np.float32(config.mask_share + config.random_share)
    words = random_words(
        draws.seed,
        Stream.REPLACE,
        draws.epoch,
        ids[replaced],
        (positions + offset)[replaced],
    )
    choices = to_integers(words, len(vocabulary.replacements))
    corrupted[positions[replaced]] = vocabulary.replacements[choices]
    return corrupted
