"""Packed batches whose shapes never change, so that a compiled step is compiled once.

The real sequences come first, then padding in sequences of its own, then empty sequences: T tokens,
S boundaries and M masked rows are the same for every batch of a run.

Shapes: T tokens, S segments, M rows for masked tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from maskery.core.batch import IGNORE_INDEX, MaskedTokens, StaticShapes
from maskery.models.layout import EncoderInputs, pack


@dataclass(frozen=True, kw_only=True)
class StaticInputs:
    """One encoder call of constant shapes, with what it shall predict.

    Attributes:
        inputs: T tokens in S segments, with M rows.
        targets: (M,) int64, `IGNORE_INDEX` in rows that are not used.
        num_left_out: Masked tokens for which there was no row.
    """

    inputs: EncoderInputs
    targets: torch.Tensor
    num_left_out: int


def pack_static(
    masked: MaskedTokens, shapes: StaticShapes, *, pad_token_id: int, first_position: int = 0
) -> StaticInputs:
    """Pack a batch and fill it up.

    Where more tokens are masked than there are rows, those that are left out of the loss are spread
    evenly over the batch; they stay corrupted in the input.

    Args:
        masked: A batch that fits: at most T tokens, in few enough sequences.
        shapes: What it is filled up to.
        pad_token_id: What it is filled up with.
        first_position: The position id of a sequence's first token.
    """
    real, size = masked.batch.num_tokens, shapes.num_tokens
    ids = np.full(size, pad_token_id, np.int64)
    ids[:real] = masked.input_ids
    positions, targets = masked_rows(masked, shapes)
    return StaticInputs(
        inputs=pack(
            ids,
            filled_boundaries(masked.batch.boundaries, shapes),
            positions,
            first_position=first_position,
            longest=shapes.longest,
        ),
        targets=torch.from_numpy(targets),
        num_left_out=max(0, len(masked.positions) - shapes.num_masked),
    )


def filled_boundaries(
    boundaries: npt.NDArray[np.int64], shapes: StaticShapes
) -> npt.NDArray[np.int64]:
    """(S + 1,) int64: those of the sequences, then padding cut into pieces, then empty ones."""
    # A kernel computes no further than the constant maximum length, so padding is cut by it.
    real = int(boundaries[-1])
    pieces = np.arange(real + shapes.longest, shapes.num_tokens, shapes.longest)
    used = np.concatenate((boundaries, pieces))
    assert real <= shapes.num_tokens
    assert int(np.diff(boundaries).max(initial=0)) <= shapes.longest
    assert len(used) <= shapes.num_segments
    filled = np.full(shapes.num_segments + 1, shapes.num_tokens, np.int64)
    filled[: len(used)] = used
    return filled


def masked_rows(
    masked: MaskedTokens, shapes: StaticShapes
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """(M,) positions and (M,) targets; unused rows point anywhere and have no target."""
    count, room = len(masked.positions), shapes.num_masked
    if count > room:
        kept = np.arange(room) * count // room
        return masked.positions[kept], masked.targets[kept]
    # Different rows, so that adding their zero gradients does not pile up on one; and in order,
    # as they are in a batch as it comes.
    spare = np.arange(shapes.num_tokens - (room - count), shapes.num_tokens)
    nothing = np.full(room - count, IGNORE_INDEX, np.int64)
    positions = np.concatenate((masked.positions, spare))
    order = np.argsort(positions, kind="stable")
    return positions[order], np.concatenate((masked.targets, nothing))[order]
