"""Maskery's attention within packed sequences, known to Transformers as `maskery`.

Packed batches come with `cu_seq_lens_q` among the forward arguments; everything else is passed on
to the stock SDPA attention with its own masks, so that a model can be used either way. There are
two ways to compute a packed batch:

- `segment_attention`, on the CPU: each sequence is a slice of the flat tensors, neighbours of equal
  length run as one batch, and the backward passes are written out, because autograd's, for slices,
  fills a tensor of the full length with zeros for every sequence.
- `varlen_attention`, on GPUs and in compiled steps: boundaries stay on the device, so nothing waits
  for them. PyTorch's variable-length flash attention takes half precision on recent NVIDIA GPUs;
  `padded_attention` computes the same elsewhere, with ordinary operations.

Shapes: T packed tokens, H heads, G key heads, E head width, n sequences of L tokens each, S
sequences.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from maskery.core.errors import ConfigError
from maskery.models.dropout import apply, keep_mask, thin

NAME = "maskery"
# The limits of PyTorch's flash attention.
FLASH_DTYPES = (torch.float16, torch.bfloat16)
FLASH_CAPABILITY = (8, 0)
FLASH_WIDTH, FLASH_WIDTH_MULTIPLE = 256, 8


def attention_forward(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attend, with Transformers' signature of attention functions.

    Args:
        module: The layer that calls.
        query: (B, H, L, E); (1, H, T, E) when packed. Keys and values have G heads, dividing H.
        key: (B, G, L, E).
        value: (B, G, L, E).
        attention_mask: None when packed.
        dropout: Chance of an attention weight to be dropped.
        scaling: Factor of the scores. Default: 1 / sqrt(E).
        sliding_window: Attend where |i - j| < sliding_window.
        cu_seq_lens_q: (S + 1,) int32 when packed, with the longest segment as `max_length_q`.
        max_length_q: See above.
        kwargs: Passed on to SDPA when not packed.

    Returns:
        (B, L, H, E) and None.
    """
    if cu_seq_lens_q is None:
        output, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return output, None
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    reach = None if sliding_window is None else sliding_window - 1
    how: dict[str, Any] = {"scale": scale, "dropout": dropout, "reach": reach}
    queries, keys, values = (t.squeeze(0).transpose(0, 1) for t in (query, key, value))
    if stays_on_device(query):
        assert max_length_q is not None
        output = varlen_attention(queries, keys, values, cu_seq_lens_q, max_length_q, **how)
    else:
        keys, values = _repeated(queries, keys, values)
        output = segment_attention(queries, keys, values, cu_seq_lens_q.tolist(), **how)
    return output.unsqueeze(0), None


def _repeated(query: torch.Tensor, *others: torch.Tensor) -> list[torch.Tensor]:
    """Repeat the heads of keys and values (T, G, E) to as many as the queries (T, H, E) have."""
    groups = query.shape[1] // others[0].shape[1]
    return [t if groups == 1 else t.repeat_interleave(groups, dim=1) for t in others]


def stays_on_device(query: torch.Tensor) -> bool:
    """Return True where boundaries are kept on the device: on GPUs, and in compiled steps.

    Elsewhere they are read back and each segment is computed by itself, which a CPU does faster.
    """
    return query.is_cuda or torch.compiler.is_compiling()


def attention_mask(*args: Any, **kwargs: Any) -> torch.Tensor | None:
    """Return SDPA's own mask, or None when none was passed (packed, or nothing to hide)."""
    if kwargs.get("attention_mask") is None:
        return None
    mask: torch.Tensor | None = sdpa_mask(*args, **kwargs)
    return mask


def register() -> None:
    """Make `attn_implementation="maskery"` known to Transformers; may be called again."""
    AttentionInterface.register(NAME, attention_forward)
    AttentionMaskInterface.register(NAME, attention_mask)


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
    """Attend in both directions within each segment; all tensors are (T, H, E).

    `boundaries` go from 0 to T; `reach` is the furthest |i - j| of a sliding window.
    """
    runs = runs_of(boundaries)
    if dropout > 0.0:
        return apply(_DropoutAttention, query, key, value, runs, scale, dropout, reach)
    return apply(_FlashAttention, query, key, value, runs, scale, reach)


def window_mask(run: SegmentRun, reach: int | None, like: torch.Tensor) -> torch.Tensor | None:
    """Return (1, 1, L, L), 0 within reach and -inf beyond; None if everything is within reach."""
    if reach is None or run.length - 1 <= reach:
        return None
    index = torch.arange(run.length, device=like.device)
    far = (index[:, None] - index[None, :]).abs() > reach
    return torch.zeros_like(far, dtype=like.dtype).masked_fill_(far, float("-inf"))[None, None]


class _FlashAttention(torch.autograd.Function):
    """Run PyTorch's CPU flash attention run by run, forward and backward into whole tensors."""

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
    """Write the softmax out, since the CPU's flash attention knows no dropout."""

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


def varlen_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    boundaries: torch.Tensor,
    longest: int,
    *,
    scale: float,
    dropout: float = 0.0,
    reach: int | None = None,
) -> torch.Tensor:
    """Attend within each segment as `segment_attention` does, with boundaries on the device.

    Args:
        query: (T, H, E); keys and values are (T, G, E), G dividing H.
        key: See above.
        value: See above.
        boundaries: (S + 1,) int32, from 0 to T; segments may be empty.
        longest: At least the tokens of the longest segment.
        scale: Factor of the scores.
        dropout: Must be 0, else a ConfigError: neither kernel has any.
        reach: The furthest distance |i - j| of a sliding window.
    """
    if dropout > 0.0:
        raise ConfigError(
            f"attention dropout is {dropout}, and variable-length attention has none; leave it "
            f"off, or train with --layout padded"
        )
    if not can_flash(query):
        return padded_attention(query, key, value, boundaries, longest, scale=scale, reach=reach)
    from torch.nn.attention.varlen import varlen_attn

    shared: dict[str, Any] = {}
    if query.shape[1] != key.shape[1]:
        # PyTorch has taken fewer key heads than query heads since 2.12.
        if _takes(varlen_attn, "enable_gqa"):
            shared = {"enable_gqa": True}
        else:
            key, value = _repeated(query, key, value)
    output = varlen_attn(
        query,
        key,
        value,
        boundaries,
        boundaries,
        longest,
        longest,
        scale=scale,
        window_size=(-1, -1) if reach is None else (reach, reach),
        **shared,
    )
    assert isinstance(output, torch.Tensor)
    return output


@cache
def _takes(function: Any, argument: str) -> bool:
    return argument in inspect.signature(function).parameters


def can_flash(query: torch.Tensor) -> bool:
    """Return True if variable-length flash attention takes these queries."""
    width = query.shape[-1]
    return (
        query.is_cuda
        and query.dtype in FLASH_DTYPES
        and width <= FLASH_WIDTH
        and width % FLASH_WIDTH_MULTIPLE == 0
        and torch.cuda.get_device_capability(query.device) >= FLASH_CAPABILITY
    )


def padded_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    boundaries: torch.Tensor,
    longest: int,
    *,
    scale: float,
    reach: int | None = None,
) -> torch.Tensor:
    """Attend as `varlen_attention` does, by padding every segment to `longest`: slow, but plain."""
    key, value = _repeated(query, key, value)
    starts, ends = boundaries[:-1].long(), boundaries[1:].long()
    inside = torch.arange(longest, device=query.device)
    places = starts[:, None] + inside
    # The first key is always there to attend to: a softmax over nothing would be NaN.
    seen = ((places < ends[:, None]) | (inside == 0))[:, None, None, :]
    if reach is not None:
        seen = seen & ((inside[:, None] - inside).abs() <= reach)
        # Padding may be out of reach of every key; it attends to itself.
        seen = seen | torch.eye(longest, dtype=torch.bool, device=query.device)
    places = places.clamp(max=len(query) - 1)
    query_rows, key_rows, value_rows = (t[places].transpose(1, 2) for t in (query, key, value))
    output = F.scaled_dot_product_attention(
        query_rows, key_rows, value_rows, attn_mask=seen, scale=scale
    )
    tokens = torch.arange(len(query), device=query.device)
    segments = torch.searchsorted(ends, tokens, right=True)
    return output.transpose(1, 2)[segments, tokens - starts[segments]]
