"""Attention within the segments of a packed batch, on the CPU.

Each segment is a slice of the flat tensors, so no score is computed across segments or for padding.
The functions below write their own backward passes because autograd's, for slices, fills a tensor
of the full length with zeros for every segment. Neighbours of equal length run as one batch.

Shapes: T packed tokens, H heads, E head width, n segments of L tokens each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch

from maskery.models.dropout import apply, keep_mask, thin


@dataclass(frozen=True, kw_only=True)
class SegmentRun:
    """`count` neighbouring segments of `length` tokens each, from token `start` on."""

    start: int
    length: int
    count: int

    def slice(self, tensor: torch.Tensor) -> torch.Tensor:
        """View (T, H, E) as this run's (n, H, L, E)."""
        part = tensor[self.start : self.start + self.length * self.count]
        shape = (self.count, self.length, *part.shape[1:])
        return part.view(shape).transpose(1, 2)


def runs_of(boundaries: Sequence[int]) -> list[SegmentRun]:
    """Group neighbouring segments of equal length; empty ones are left out."""
    runs: list[SegmentRun] = []
    for start, end in pairwise(boundaries):
        if runs and runs[-1].length == end - start:
            last = runs.pop()
            runs.append(SegmentRun(start=last.start, length=last.length, count=last.count + 1))
        elif end > start:
            runs.append(SegmentRun(start=start, length=end - start, count=1))
    return runs


def segment_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    boundaries: Sequence[int],
    *,
    scale: float,
    dropout: float = 0.0,
    reach: int | None = None,
) -> torch.Tensor:
    """Bidirectional attention of each segment to itself.

    Args:
        query: (T, H, E).
        key: (T, H, E).
        value: (T, H, E).
        boundaries: Of the segments, from 0 to T.
        scale: What scores are multiplied by.
        dropout: Chance of an attention weight to be dropped.
        reach: With a sliding window, the furthest distance |i - j| attended to.

    Returns:
        (T, H, E).
    """
    runs = runs_of(boundaries)
    if dropout > 0.0:
        return apply(_DropoutAttention, query, key, value, runs, scale, dropout, reach)
    return apply(_FlashAttention, query, key, value, runs, scale, reach)


def window_mask(run: SegmentRun, reach: int | None, like: torch.Tensor) -> torch.Tensor | None:
    """(1, 1, L, L), 0 within reach and -inf beyond, or None where everything is within reach."""
    if reach is None or run.length - 1 <= reach:
        return None
    index = torch.arange(run.length, device=like.device)
    far = (index[:, None] - index[None, :]).abs() > reach
    return torch.zeros_like(far, dtype=like.dtype).masked_fill_(far, float("-inf"))[None, None]


class _FlashAttention(torch.autograd.Function):
    """PyTorch's CPU flash attention, run by run, forward and backward into whole tensors."""

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        runs: list[SegmentRun],
        scale: float,
        reach: int | None,
    ) -> torch.Tensor:
        dtype = query.dtype
        # In bfloat16, PyTorch's backward takes 3 times as long as with the conversion to float32.
        wide = torch.promote_types(dtype, torch.float32)
        query, key, value = query.to(wide), key.to(wide), value.to(wide)
        out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
        sums = []
        for run in runs:
            part, log_sum = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                run.slice(query),
                run.slice(key),
                run.slice(value),
                attn_mask=window_mask(run, reach, query),
                scale=scale,
            )
            run.slice(out).copy_(part)
            sums.append(log_sum)
        ctx.save_for_backward(query, key, value, out, *sums)
        ctx.runs, ctx.scale, ctx.reach, ctx.dtype = runs, scale, reach, dtype
        return out.to(dtype)

    @staticmethod
    def backward(ctx: Any, grad_out: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, out, *sums = ctx.saved_tensors
        grad_out = grad_out.to(query.dtype)
        grads = [torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (query, key, value)]
        for run, log_sum in zip(ctx.runs, sums, strict=True):
            parts = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                run.slice(grad_out),
                run.slice(query),
                run.slice(key),
                run.slice(value),
                run.slice(out),
                log_sum,
                0.0,
                False,
                attn_mask=window_mask(run, ctx.reach, query),
                scale=ctx.scale,
            )
            for grad, part in zip(grads, parts, strict=True):
                run.slice(grad).copy_(part)
        return *(grad.to(ctx.dtype) for grad in grads), None, None, None


class _DropoutAttention(torch.autograd.Function):
    """The softmax written out, since the CPU's flash attention knows no dropout."""

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        runs: list[SegmentRun],
        scale: float,
        dropout: float,
        reach: int | None,
    ) -> torch.Tensor:
        out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
        saved = []
        for run in runs:
            scores = torch.matmul(run.slice(query) * scale, run.slice(key).transpose(2, 3))
            mask = window_mask(run, reach, query)
            if mask is not None:
                scores += mask
            weights = torch.softmax(scores, dim=-1)
            keep, gain = keep_mask(weights.shape, dropout, weights.device)
            run.slice(out).copy_(torch.matmul(thin(weights, keep), run.slice(value)).mul_(gain))
            saved += [weights, keep]
        ctx.save_for_backward(query, key, value, *saved)
        ctx.runs, ctx.scale, ctx.gain = runs, scale, gain if runs else 1.0
        return out

    @staticmethod
    def backward(ctx: Any, grad_out: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, *saved = ctx.saved_tensors
        grads = [torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (query, key, value)]
        for index, run in enumerate(ctx.runs):
            weights, keep = saved[2 * index : 2 * index + 2]
            grad = run.slice(grad_out) * ctx.gain
            dropped = thin(weights, keep)
            run.slice(grads[2]).copy_(torch.matmul(dropped.transpose(2, 3), grad))
            # The softmax's backward: w * (g - sum(w * g)), with g zero where dropped.
            inner = torch.matmul(grad, run.slice(value).transpose(2, 3)).mul_(dropped)
            scores = inner.sub_(weights * inner.sum(dim=-1, keepdim=True)).mul_(ctx.scale)
            run.slice(grads[0]).copy_(torch.matmul(scores, run.slice(key)))
            run.slice(grads[1]).copy_(torch.matmul(scores.transpose(2, 3), run.slice(query)))
        return *grads, None, None, None, None
