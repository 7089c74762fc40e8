"""Dropout for the CPU, from 16-bit slices of random 64-bit words: four decisions a draw."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

# Values of a 16-bit slice: chances are rounded to multiples of 2**-16.
LEVELS = 1 << 16


def keep_mask(shape: torch.Size, chance: float, device: torch.device) -> tuple[torch.Tensor, float]:
    """Return an int8 mask, 0 with a chance (rounded to 2**-16ths), and 1 / (1 - chance)."""
    threshold = round(chance * LEVELS)
    if threshold >= LEVELS:
        return torch.zeros(shape, dtype=torch.int8, device=device), 0.0
    num = math.prod(shape)
    # From -2**63 on: all 64 bits are random; plain random_() leaves the sign bit 0.
    words = torch.empty(-(-num // 4), dtype=torch.int64, device=device).random_(-(1 << 63), None)
    slices = words.view(torch.int16)[:num].view(shape)
    # In place, so that the result is an integer: PyTorch compares and converts integers with vector
    # instructions, and bools one by one (20 and 8 times as slow on AVX-512).
    keep = slices.ge_(threshold - LEVELS // 2).to(torch.int8)
    return keep, LEVELS / (LEVELS - threshold)


def thin(values: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """Copy `values`, with 0 where `keep` is 0."""
    return keep.to(values.dtype).mul_(values)


class _Dropout(torch.autograd.Function):
    """Multiply by a mask and a gain; keep only the mask for the backward pass."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, chance: float) -> torch.Tensor:
        keep, ctx.gain = keep_mask(values.shape, chance, values.device)
        ctx.save_for_backward(keep)
        return thin(values, keep).mul_(ctx.gain)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        (keep,) = ctx.saved_tensors
        return thin(grad, keep).mul_(ctx.gain), None


class FastDropout(nn.Dropout):
    """`nn.Dropout` with cheaper random bits on the CPU."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Drop elements while training."""
        if not self.training or self.p == 0.0:
            return input
        return fast_dropout(input, self.p) if input.device.type == "cpu" else super().forward(input)


def fast_dropout(values: torch.Tensor, chance: float) -> torch.Tensor:
    """Drop elements of a tensor on the CPU with a chance, and scale up the others."""
    dropped: torch.Tensor = _Dropout.apply(values, chance)  # type: ignore[no-untyped-call]
    return dropped


def use_fast_dropout(model: nn.Module) -> None:
    """Replace every plain `nn.Dropout` of a model, in place."""
    for parent in model.modules():
        for name, child in parent.named_children():
            if type(child) is nn.Dropout:
                setattr(parent, name, FastDropout(child.p))
