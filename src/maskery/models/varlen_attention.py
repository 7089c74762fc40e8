"""Attention within the segments of a packed batch by one kernel, as GPUs want it.

Segments are given by a tensor of boundaries that never leaves the device, so that nothing waits for
it and the call can be compiled. PyTorch's variable-length flash attention takes half precision on
recent NVIDIA GPUs; `padded_attention` computes the same with ordinary operations, on any device and
in any precision: where flash attention cannot be had, and in tests on a CPU.

Shapes: T packed tokens, H heads, G key heads, E head width, S segments, L the longest of them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from maskery.core.errors import ConfigError

# What PyTorch's flash attention asks for.
FLASH_DTYPES = (torch.float16, torch.bfloat16)
FLASH_CAPABILITY = (8, 0)
FLASH_WIDTH, FLASH_WIDTH_MULTIPLE = 256, 8


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
    """Bidirectional attention of each segment to itself.

    Args:
        query: (T, H, E).
        key: (T, G, E), G dividing H.
        value: (T, G, E).
        boundaries: (S + 1,) int32, from 0 to T; segments may be empty.
        longest: At least the tokens of the longest segment.
        scale: What scores are multiplied by.
        dropout: Must be 0: neither kernel has any.
        reach: With a sliding window, the furthest distance |i - j| attended to.

    Returns:
        (T, H, E).

    Raises:
        ConfigError: Dropout is asked for.
    """
    if dropout > 0.0:
        raise ConfigError(
            f"attention dropout is {dropout}, and variable-length attention has none; leave it "
            f"off, or train with --layout padded"
        )
    if not can_flash(query):
        return padded_attention(query, key, value, boundaries, longest, scale=scale, reach=reach)
    from torch.nn.attention.varlen import varlen_attn

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
        enable_gqa=query.shape[1] != key.shape[1],
    )
    assert isinstance(output, torch.Tensor)
    return output


def can_flash(query: torch.Tensor) -> bool:
    """Whether variable-length flash attention takes this."""
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
    """The same by padding every segment to `longest`: slow, but made of ordinary operations.

    Args and returns: as `varlen_attention`.
    """
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (t.repeat_interleave(groups, dim=1) for t in (key, value))
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
