"""The GPU's attention over boundaries: what PyTorch's takes, and the same on a CPU."""

from __future__ import annotations

import inspect
from functools import wraps
from itertools import pairwise

import numpy as np
import pytest
import torch
from families import PAD, VOCAB, tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.varlen import varlen_attn

from maskery.core.errors import ConfigError
from maskery.models import attention
from maskery.models.attention import padded_attention
from maskery.models.layout import PACKABLE, first_position, pack, pad

HEADS, WIDTH = 4, 8


def plain(query, key, value, boundaries, scale, reach):
    """One segment after another, every score computed."""
    parts = []
    groups = query.shape[1] // key.shape[1]
    key, value = (t.repeat_interleave(groups, dim=1) for t in (key, value))
    for start, end in pairwise(boundaries):
        q, k, v = (t[start:end].transpose(0, 1) for t in (query, key, value))
        scores = q @ k.transpose(1, 2) * scale
        if reach is not None:
            index = torch.arange(end - start)
            far = (index[:, None] - index[None, :]).abs() > reach
            scores = scores.masked_fill(far, float("-inf"))
        parts.append((scores.softmax(-1) @ v).transpose(0, 1))
    return torch.cat(parts)


def inputs(total: int, key_heads: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(total, heads, WIDTH, generator=generator).requires_grad_()
        for heads in (HEADS, key_heads, key_heads)
    ]


@settings(max_examples=40)
@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=8).filter(any),
    st.sampled_from([None, 0, 1, 3, 20]),
    st.sampled_from([1, 2, 4]),
    st.integers(0, 5),
)
def test_padded_attention_equals_the_formula(
    lengths: list[int], reach: int | None, key_heads: int, more: int
) -> None:
    boundaries = np.concatenate(([0], np.cumsum(lengths))).tolist()
    own, other = (inputs(boundaries[-1], key_heads) for _ in range(2))
    result = padded_attention(
        *own,
        torch.tensor(boundaries, dtype=torch.int32),
        max(lengths) + more,
        attention.Attending(0.3, reach=reach),
    )
    expected = plain(*other, boundaries, 0.3, reach)
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-5)
    weights = torch.linspace(-1, 1, result.numel()).view_as(result)
    (result * weights).sum().backward()
    (expected * weights).sum().backward()
    for mine, theirs in zip(own, other, strict=True):
        assert mine.grad is not None
        torch.testing.assert_close(mine.grad, theirs.grad, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", sorted(PACKABLE))
def test_the_gpus_way_equals_padded_for_every_family(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, boundaries stay a tensor and one call serves all segments."""
    monkeypatch.setattr(attention, "stays_on_device", lambda query: True)
    generator = np.random.default_rng(0)
    boundaries = np.concatenate(([0], np.cumsum([5, 1, 22, 5, 13])))
    ids = generator.integers(5, VOCAB, int(boundaries[-1]))
    everything = np.arange(len(ids))
    model = tiny(family)
    packed = pack(ids, boundaries, everything, first_position=first_position(model.config))
    padded = pad(ids, boundaries, everything, pad_token_id=PAD)
    rows = []
    for call in (packed, padded):
        with torch.no_grad():
            logits = model(input_ids=call.input_ids, **call.arguments).logits
        rows.append(logits.reshape(-1, VOCAB)[call.rows])
    torch.testing.assert_close(*rows, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("reach", "window"), [(None, (-1, -1)), (3, (3, 3))])
def test_flash_attention_is_called_by_its_own_signature(
    reach: int | None, window: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a GPU would be called with, checked against the installed PyTorch."""
    calls = []

    @wraps(varlen_attn)  # shows its signature
    def recorded(*args, **kwargs):
        bound = inspect.signature(varlen_attn).bind(*args, **kwargs)
        calls.append(bound.arguments)
        return args[0]

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", recorded)
    monkeypatch.setattr(attention, "can_flash", lambda query: True)
    query, key, value = inputs(6, 2)
    boundaries = torch.tensor([0, 4, 6, 6], dtype=torch.int32)
    result = attention.varlen_attention(
        query, key, value, boundaries, 5, attention.Attending(0.5, reach=reach)
    )
    assert result is query
    (call,) = calls
    assert call["cu_seq_q"] is boundaries
    assert call["cu_seq_k"] is boundaries
    assert (call["max_q"], call["max_k"], call["scale"]) == (5, 5, 0.5)
    assert call["window_size"] == window
    assert call["enable_gqa"] is True


@pytest.mark.parametrize("key_heads", [2, HEADS])
def test_where_pytorch_takes_no_shared_heads_they_are_repeated(
    key_heads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in PyTorch 2.11, whose flash attention wants as many key heads as query heads."""
    calls = []

    def older(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale, window_size):
        calls.append((key, value))
        return query

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", older)
    monkeypatch.setattr(attention, "can_flash", lambda query: True)
    query, key, value = inputs(6, key_heads)
    boundaries = torch.tensor([0, 4, 6], dtype=torch.int32)
    attention.varlen_attention(query, key, value, boundaries, 4, attention.Attending(0.5))
    for passed, (got,) in zip((key, value), zip(*calls, strict=True), strict=True):
        # Query head h reads key head h // (H / G).
        heads = [head * key_heads // HEADS for head in range(HEADS)]
        torch.testing.assert_close(got, passed[:, heads], rtol=0, atol=0)


def test_flash_attention_is_for_half_precision_on_a_gpu() -> None:
    assert not attention.can_flash(torch.zeros(3, 2, 8, dtype=torch.bfloat16))


def test_dropout_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"has none.*--layout padded"):
        attention.varlen_attention(
            *inputs(2, HEADS),
            torch.tensor([0, 2], dtype=torch.int32),
            2,
            attention.Attending(1.0, 0.1),
        )
