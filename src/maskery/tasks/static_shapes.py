"""How large the constant shapes of a compiled text run must be.

Tokens and sequences are bounded by the plan of every epoch, so they never overflow. How many tokens
a batch masks is random: room is made for six standard deviations above what is expected.
"""

from __future__ import annotations

import math

import numpy as np

from maskery.core.batch import StaticShapes
from maskery.core.task import StandIn
from maskery.data.planned import PlannedSource
from maskery.masking.masker import Masker

# Sizes are rounded up to a multiple that the tiles of a GPU's matrix products divide.
MULTIPLE = 64
SAMPLED_STEPS = 16
DEVIATIONS = 6.0


def static_shapes(
    source: PlannedSource,
    masker: Masker,
    *,
    epochs: int,
    num_processes: int = 1,
    masked_capacity: float | None = None,
) -> StaticShapes:
    """Shapes that hold every micro-batch of a run.

    Args:
        source: Of the run's batches, packed.
        masker: Of the run.
        epochs: Of the run.
        num_processes: That share each step.
        masked_capacity: Rows for masked tokens as a share of the tokens. Default: estimated from
            the masks of some steps.
    """
    bounds = source.bounds(epochs, num_processes)
    num_tokens = round_up(bounds.num_tokens)
    share = expected_share(source, masker, bounds.num_tokens)
    if masked_capacity is not None:
        share = masked_capacity
    num_masked = min(round_up(math.ceil(share * num_tokens)), num_tokens)
    return StaticShapes(
        num_tokens=num_tokens,
        num_segments=bounds.num_sequences + -(-num_tokens // bounds.longest),
        longest=bounds.longest,
        num_masked=num_masked,
    )


def expected_share(source: PlannedSource, masker: Masker, num_tokens: int) -> float:
    """The share of a batch's tokens that is masked, six standard deviations above its mean."""
    progress = max((0.0, 1.0), key=masker.config.rate_at)
    lengths, counts = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    num_steps = source.num_steps(0)
    for step in range(0, num_steps, max(1, num_steps // SAMPLED_STEPS)):
        for batch in source.micro_batches(0, step):
            assert not isinstance(batch, StandIn)  # one process has a share of every step
            masked = masker.mask(batch, epoch=0, progress=progress)
            inside = np.searchsorted(batch.boundaries, masked.positions, side="right") - 1
            counts.append(np.bincount(inside, minlength=len(batch.lengths)))
            lengths.append(batch.lengths)
    length, count = np.concatenate(lengths), np.concatenate(counts)
    share = count.sum() / max(length.sum(), 1)
    # Sequences are masked independently, so a batch's variance is the sum of theirs.
    variance = ((count - share * length) ** 2).sum() / max(length.sum(), 1)
    return float(share + DEVIATIONS * math.sqrt(variance / max(num_tokens, 1)))


def round_up(size: int) -> int:
    """To the next multiple of `MULTIPLE`."""
    return -(-size // MULTIPLE) * MULTIPLE
