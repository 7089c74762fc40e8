"""Attention within packed sequences, known to Transformers as `maskery`, and dropout for the CPU.

Packed batches come with `cu_seq_lens_q` among the forward arguments; everything else is passed on
to the stock SDPA attention with its own masks, so that a model can be used either way. There are
two ways to compute a packed batch:

- `segment_attention`, on the CPU: one sequence after another, equally long neighbours as a batch.
- `varlen_attention`, on GPUs and in compiled steps: boundaries stay on the device, so nothing waits
  for them. PyTorch's variable-length flash attention takes half precision on recent NVIDIA GPUs;
  `padded_attention` computes the same elsewhere, with ordinary operations.

Shapes: T packed tokens, H heads, G key heads, E head width, n sequences of L tokens, S sequences.
"""

import inspect
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import groupby, pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from maskery.core.errors import ConfigError

NAME = "maskery"
LEVELS = 1 << 16  # Values of a 16-bit slice: chances are rounded to multiples of 2**-16
HALF = (torch.float16, torch.bfloat16)
# The limits of PyTorch's flash attention, which takes half precision.
FLASH_CAPABILITY = (8, 0)
FLASH_WIDTH, FLASH_WIDTH_MULTIPLE = 256, 8


class Attending(NamedTuple):
    """Settings by which the tokens of a segment attend to each other."""

    scale: float  # Of the products of queries and keys
    dropout: float = 0.0
    reach: int | None = None  # The furthest |i - j| of a sliding window
    causal: bool = False  # True to attend to oneself and what is before alone


def attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    causal: Tensor | bool = False,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend, with Transformers' signature of attention functions; returns (B, L, H, E) and None.

    Queries are (B, H, L, E), keys and values (B, G, L, E), G dividing H. When packed, they are (1,
    H, T, E), `cu_seq_lens_q` is (S + 1,) int32 and `max_length_q` the length of the longest
    segment. A sliding window attends where |i - j| < `sliding_window`. `causal` tokens, all or
    those of (T,) bool, attend to themselves and to what is before them.
    """
    if cu_seq_lens_q is None:
        kwargs |= {"dropout": dropout, "scaling": scaling}
        with in_float32(query, key, value) as wide:
            output, _ = sdpa_attention_forward(module, *wide, attention_mask, **kwargs)
        return output.to(query.dtype), None
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    reach = None if sliding_window is None else sliding_window - 1
    queries, keys, values = (t.squeeze(0).transpose(0, 1) for t in (query, key, value))

    def attend(causal: bool) -> Tensor:
        how = Attending(scale, dropout, reach, causal)
        if stays_on_device(query):
            assert max_length_q is not None
            return varlen_attention(queries, keys, values, cu_seq_lens_q, max_length_q, how)
        key, value = _repeated(queries, keys, values)
        return segment_attention(queries, key, value, cu_seq_lens_q.tolist(), how)

    if isinstance(causal, bool):
        return attend(causal).unsqueeze(0), None
    # Both ways for all: which tokens need which lies on the device, and attention is cheap here.
    return torch.where(causal[:, None, None], attend(True), attend(False)).unsqueeze(0), None


@contextmanager
def in_float32(*tensors: Tensor) -> Iterator[list[Tensor]]:
    """Hand out tensors in float32 or wider on a CPU, and keep autocast from converting them back.

    On a CPU the backward pass of PyTorch's attention in bfloat16 takes up to four times as long.
    """
    half = tensors[0].dtype in HALF or torch.is_autocast_enabled("cpu")
    if tensors[0].device.type != "cpu" or not half:
        yield list(tensors)
        return
    with torch.autocast("cpu", enabled=False):
        yield [t.to(torch.promote_types(t.dtype, torch.float32)) for t in tensors]


def _repeated(query: Tensor, *others: Tensor) -> list[Tensor]:
    """Repeat the heads of keys and values (T, G, E) to as many as the queries (T, H, E) have."""
    groups = query.shape[1] // others[0].shape[1]
    return [t if groups == 1 else t.repeat_interleave(groups, dim=1) for t in others]


def stays_on_device(query: Tensor) -> bool:
    """Return True where boundaries are kept on the device: on GPUs, and in compiled steps."""
    # Elsewhere they are read back and each segment is computed by itself: a CPU does that faster.
    return query.is_cuda or torch.compiler.is_compiling()


def attention_mask(*args: Any, **kwargs: Any) -> Tensor | None:
    """Return SDPA's own mask, or None when none was passed (packed, or nothing to hide)."""
    passed = kwargs.get("attention_mask") is not None
    mask: Tensor | None = sdpa_mask(*args, **kwargs) if passed else None
    return mask


AttentionInterface.register(NAME, attention_forward)
AttentionMaskInterface.register(NAME, attention_mask)


def runs_of(boundaries: Sequence[int]) -> list[tuple[int, int]]:
    """Return (length, how many) of neighbouring segments of equal length; empty ones left out."""
    lengths = (end - start for start, end in pairwise(boundaries) if end > start)
    return [(length, len(list(same))) for length, same in groupby(lengths)]


def segment_attention(
    query: Tensor, key: Tensor, value: Tensor, boundaries: Sequence[int], how: Attending
) -> Tensor:
    """Attend within each segment, `boundaries` of which go from 0 to T; tensors are (T, H, E)."""
    runs, dtype = runs_of(boundaries), query.dtype
    sizes = [length * count for length, count in runs]
    with in_float32(query, key, value) as wide:
        # Split, not sliced: the gradients of slices would each fill a tensor of the full length.
        splits = (t.split(sizes) for t in wide)
        outputs = []
        for (length, count), *parts in zip(runs, *splits, strict=True):
            # (n, H, L, E) each
            q, k, v = (t.view(count, length, *t.shape[1:]).transpose(1, 2) for t in parts)
            output = _attend(q, k, v, seen_from(length, how, q.device), how)
            outputs.append(output.transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs).to(dtype) if outputs else query.new_empty(query.shape)


def _attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, how: Attending
) -> Tensor:
    """Attend in sequences of one length, all (n, H, L, E), where the mask (L, L) is True."""
    if how.dropout == 0.0:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=how.scale)
    # Written out, since the CPU's flash attention knows no dropout.
    scores = torch.matmul(query * how.scale, key.transpose(2, 3))
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return torch.matmul(fast_dropout(torch.softmax(scores, dim=-1), how.dropout), value)


def seen_from(length: int, how: Attending, device: torch.device) -> Tensor | None:
    """Return which tokens j (columns) each token i (rows) sees: (length, length) bool, or None."""
    reach = length if how.reach is None else how.reach
    if not how.causal and reach >= length - 1:
        return None  # everything
    index = torch.arange(length, device=device)
    apart = index[:, None] - index
    seen = apart.abs() <= reach
    return seen & (apart >= 0) if how.causal else seen


def varlen_attention(
    query: Tensor, key: Tensor, value: Tensor, boundaries: Tensor, longest: int, how: Attending
) -> Tensor:
    """Attend within each segment as `segment_attention` does, with boundaries on the device.

    Queries are (T, H, E), keys and values (T, G, E), G dividing H; `boundaries` (S + 1,) int32
    from 0 to T, of segments that may be empty and have at most `longest` tokens.
    """
    if how.dropout > 0.0:
        problem = f"attention dropout is {how.dropout}, and variable-length attention has none"
        raise ConfigError(f"{problem}; leave it off, or train with --layout padded")
    if not can_flash(query):
        return padded_attention(query, key, value, boundaries, longest, how)
    from torch.nn.attention.varlen import varlen_attn

    # PyTorch has taken fewer key heads than query heads since 2.12.
    shares = query.shape[1] != key.shape[1] and _takes(varlen_attn, "enable_gqa")
    shared: dict[str, Any] = {"enable_gqa": True} if shares else {}
    if not shares:
        key, value = _repeated(query, key, value)
    behind = -1 if how.reach is None else how.reach  # -1: all
    window = behind, 0 if how.causal else behind
    ends = boundaries, boundaries, longest, longest  # of queries and of keys
    output = varlen_attn(query, key, value, *ends, scale=how.scale, window_size=window, **shared)
    assert isinstance(output, Tensor)
    return output


@cache
def _takes(function: Any, argument: str) -> bool:
    return argument in inspect.signature(function).parameters


def can_flash(query: Tensor) -> bool:
    """Return True if variable-length flash attention takes these queries."""
    width = query.shape[-1]
    fits = width <= FLASH_WIDTH and width % FLASH_WIDTH_MULTIPLE == 0
    taken = query.is_cuda and query.dtype in HALF and fits
    return taken and torch.cuda.get_device_capability(query.device) >= FLASH_CAPABILITY


def padded_attention(
    query: Tensor, key: Tensor, value: Tensor, boundaries: Tensor, longest: int, how: Attending
) -> Tensor:
    """Attend as `varlen_attention` does, by padding every segment to `longest`: slow, but plain."""
    key, value = _repeated(query, key, value)
    starts, ends = boundaries[:-1].long(), boundaries[1:].long()
    inside = torch.arange(longest, device=query.device)
    places = starts[:, None] + inside
    # The first key is always there to attend to: a softmax over nothing would be NaN.
    seen = ((places < ends[:, None]) | (inside == 0))[:, None, None, :]
    if (near := seen_from(longest, how, query.device)) is not None:
        # Padding may be out of reach of every key; it attends to itself.
        seen = (seen & near) | torch.eye(longest, dtype=torch.bool, device=query.device)
    places = places.clamp(max=len(query) - 1)
    q, k, v = (t[places].transpose(1, 2) for t in (query, key, value))
    output = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=how.scale)
    tokens = torch.arange(len(query), device=query.device)
    segments = torch.searchsorted(ends, tokens, right=True)
    return output.transpose(1, 2)[segments, tokens - starts[segments]]


# Dropout, from 16-bit slices of random 64-bit words: four decisions a draw.
def keep_mask(shape: torch.Size, chance: float, device: torch.device) -> tuple[Tensor, float]:
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


class _Dropout(torch.autograd.Function):
    """Multiply by a mask and a gain; keep only the mask for the backward pass."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, chance: float) -> Tensor:
        keep, ctx.gain = keep_mask(values.shape, chance, values.device)
        ctx.save_for_backward(keep)
        return keep.to(values.dtype).mul_(values).mul_(ctx.gain)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (keep,) = ctx.saved_tensors
        return keep.to(grad.dtype).mul_(grad).mul_(ctx.gain), None


class FastDropout(nn.Dropout):
    """`nn.Dropout` with cheaper random bits on the CPU."""

    def forward(self, input: Tensor) -> Tensor:
        """Drop elements while training."""
        if not self.training or self.p == 0.0:
            return input
        return fast_dropout(input, self.p) if input.device.type == "cpu" else super().forward(input)


def fast_dropout(values: Tensor, chance: float) -> Tensor:
    """Drop elements of a tensor on the CPU with a chance, and scale up the others."""
    dropped: Tensor = _Dropout.apply(values, chance)  # type: ignore[no-untyped-call]
    return dropped


def use_fast_dropout(model: nn.Module) -> None:
    """Replace every plain `nn.Dropout` of a model, in place."""
    for parent in model.modules():
        for name, child in parent.named_children():
            if type(child) is nn.Dropout:
                setattr(parent, name, FastDropout(child.p))
