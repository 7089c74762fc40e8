"""From flat batches to what a Hugging Face encoder takes: packed or padded.

Shapes: B sequences, L longest, T tokens, M masked.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch


@dataclass(frozen=True, kw_only=True)
class EncoderInputs:
    """One encoder call.

    Attributes:
        input_ids: (1, T) packed or (B, L) padded, int64.
        rows: (M,) int64: where the masked tokens lie in `input_ids`, flattened.
        arguments: The other forward arguments.
    """

    input_ids: torch.Tensor
    rows: torch.Tensor
    arguments: dict[str, Any]

    def to(self, device: torch.device) -> EncoderInputs:
        """The same on `device`."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> EncoderInputs:
        """The same in page-locked memory, from where a GPU copies while it computes."""
        return self.map(torch.Tensor.pin_memory)

    def map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> EncoderInputs:
        """The same with every tensor replaced by what a function makes of it."""
        # Forward arguments may share a tensor; what is made of it is shared, too.
        made: dict[int, torch.Tensor] = {}

        def one(value: Any) -> Any:
            if not isinstance(value, torch.Tensor):
                return value
            if id(value) not in made:
                made[id(value)] = function(value)
            return made[id(value)]

        return replace(
            self,
            input_ids=one(self.input_ids),
            rows=one(self.rows),
            arguments={name: one(value) for name, value in self.arguments.items()},
        )


def pack(
    input_ids: npt.NDArray[np.int64],
    boundaries: npt.NDArray[np.int64],
    positions: npt.NDArray[np.int64],
    *,
    first_position: int = 0,
    longest: int | None = None,
) -> EncoderInputs:
    """Sequences end to end in one row, told apart by their boundaries.

    Args:
        input_ids: (T,) int64.
        boundaries: (B + 1,) int64.
        positions: (M,) int64, indices into the T.
        first_position: The position id of a sequence's first token; RoBERTa-like models number
            from `padding_idx + 1`.
        longest: What the longest sequence is said to have, where that must not change from batch
            to batch; found out if None.
    """
    lengths = np.diff(boundaries)
    position_ids = np.arange(len(input_ids)) - np.repeat(boundaries[:-1], lengths) + first_position
    cumulative = torch.from_numpy(boundaries.astype(np.int32))
    if longest is None:
        longest = int(lengths.max(initial=0))
    return EncoderInputs(
        input_ids=torch.from_numpy(input_ids).unsqueeze(0),
        rows=torch.from_numpy(positions),
        arguments={
            "position_ids": torch.from_numpy(position_ids).unsqueeze(0),
            "cu_seq_lens_q": cumulative,
            "cu_seq_lens_k": cumulative,
            "max_length_q": longest,
            "max_length_k": longest,
        },
    )


def pad(
    input_ids: npt.NDArray[np.int64],
    boundaries: npt.NDArray[np.int64],
    positions: npt.NDArray[np.int64],
    *,
    pad_token_id: int,
) -> EncoderInputs:
    """One row a sequence, padded on the right to the longest.

    Args:
        input_ids: (T,) int64.
        boundaries: (B + 1,) int64.
        positions: (M,) int64, indices into the T.
        pad_token_id: What fills the rest.
    """
    lengths = np.diff(boundaries)
    longest = int(lengths.max(initial=0))
    inside = np.arange(longest)[None, :] < lengths[:, None]
    padded = np.full(inside.shape, pad_token_id, np.int64)
    padded[inside] = input_ids
    return EncoderInputs(
        input_ids=torch.from_numpy(padded),
        rows=torch.from_numpy(np.flatnonzero(inside)[positions]),
        arguments={"attention_mask": torch.from_numpy(inside.astype(np.int64))},
    )
