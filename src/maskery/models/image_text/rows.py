"""Text rows without their padding: which tokens are real, and the way there and back.

Shapes: R text rows, L tokens a row, T real tokens, D any width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True, kw_only=True)
class PackedRows:
    """How T real tokens lie in R rows of L.

    Attributes:
        count: R.
        length: L.
        places: (T,) int64, ascending indices into R * L.
    """

    count: int
    length: int
    places: torch.Tensor

    @classmethod
    def of(cls, attention_mask: torch.Tensor) -> PackedRows:
        """From (R, L), 0 at padding."""
        count, length = attention_mask.shape
        places = attention_mask.bool().flatten().nonzero().squeeze(-1)
        return cls(count=count, length=length, places=places)

    def gather(self, padded: torch.Tensor) -> torch.Tensor:
        """(R, L, D) to (T, D)."""
        packed: torch.Tensor = _Gather.apply(padded.flatten(0, 1), self.places)  # type: ignore[no-untyped-call]
        return packed

    def spread(self, hidden: torch.Tensor) -> torch.Tensor:
        """(T, D) to (R, L, D), with zeros at padding."""
        size = self.count * self.length
        flat: torch.Tensor = _Spread.apply(hidden, self.places, size)  # type: ignore[no-untyped-call]
        return flat.view(self.count, self.length, -1)


class _Gather(torch.autograd.Function):
    """Rows of a matrix, each at most once, so that the backward pass copies and adds nothing."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(places)
        ctx.size = len(values)
        return values.index_select(0, places)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        (places,) = ctx.saved_tensors
        return grad.new_zeros(ctx.size, *grad.shape[1:]).index_copy_(0, places, grad), None


class _Spread(torch.autograd.Function):
    """The reverse of `_Gather`."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, places: torch.Tensor, size: int) -> torch.Tensor:
        ctx.save_for_backward(places)
        return values.new_zeros(size, *values.shape[1:]).index_copy_(0, places, values)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (places,) = ctx.saved_tensors
        return grad.index_select(0, places), None, None
