"""Maskery's attention, registered with Transformers under the name `maskery`.

Packed batches come with `cu_seq_lens_q` among the forward arguments; everything else is passed on
to the stock SDPA attention with its own masks, so that a model can be used either way.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from maskery.models.segment_attention import segment_attention
from maskery.models.varlen_attention import varlen_attention

NAME = "maskery"


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
    """Transformers' attention signature.

    Args:
        module: The layer that asks.
        query: (B, H, L, E); (1, H, T, E) when packed.
        key: (B, G, L, E), G dividing H.
        value: (B, G, L, E).
        attention_mask: None when packed.
        dropout: Chance of an attention weight to be dropped.
        scaling: What scores are multiplied by.
        sliding_window: Attend where |i - j| < sliding_window.
        cu_seq_lens_q: (segments + 1,) int32 when packed.
        max_length_q: The longest segment when packed.
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
    flat = [tensor.squeeze(0).transpose(0, 1) for tensor in (query, key, value)]
    if stays_on_device(query):
        assert max_length_q is not None
        output = varlen_attention(
            flat[0],
            flat[1],
            flat[2],
            cu_seq_lens_q,
            max_length_q,
            scale=scale,
            dropout=dropout,
            reach=reach,
        )
        return output.unsqueeze(0), None
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        flat[1:] = [tensor.repeat_interleave(groups, dim=1) for tensor in flat[1:]]
    packed = segment_attention(
        flat[0],
        flat[1],
        flat[2],
        cu_seq_lens_q.tolist(),
        scale=scale,
        dropout=dropout,
        reach=reach,
    )
    return packed.unsqueeze(0), None


def stays_on_device(query: torch.Tensor) -> bool:
    """Whether boundaries are kept on the device: on GPUs, and wherever a step is compiled.

    Elsewhere they are read back and each segment is computed by itself, which a CPU does faster.
    """
    return query.is_cuda or torch.compiler.is_compiling()


def attention_mask(*args: Any, **kwargs: Any) -> torch.Tensor | None:
    """No mask when none was passed (packed, or nothing to hide); SDPA's own mask otherwise."""
    if kwargs.get("attention_mask") is None:
        return None
    mask: torch.Tensor | None = sdpa_mask(*args, **kwargs)
    return mask


def register() -> None:
    """Make `attn_implementation="maskery"` known to Transformers; may be called again."""
    AttentionInterface.register(NAME, attention_forward)
    AttentionMaskInterface.register(NAME, attention_mask)
