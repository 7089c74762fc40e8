"""Attention within segments against the formula written out, forward and backward."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from maskery.models.attention import Attending, runs_of, segment_attention

HEADS, WIDTH = 2, 8


def plain(query, key, value, boundaries, scale, reach=None):
    """One segment after another, every score computed."""
    parts = []
    for start, end in pairwise(boundaries):
        q, k, v = (t[start:end].transpose(0, 1) for t in (query, key, value))
        scores = q @ k.transpose(1, 2) * scale
        if reach is not None:
            index = torch.arange(end - start)
            far = (index[:, None] - index[None, :]).abs() > reach
            scores = scores.masked_fill(far, float("-inf"))
        parts.append((scores.softmax(-1) @ v).transpose(0, 1))
    return torch.cat(parts)


def inputs(total: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(total, HEADS, WIDTH, generator=generator).requires_grad_() for _ in range(3)
    ]


@settings(max_examples=40)
@given(
    st.lists(st.integers(0, 12), min_size=1, max_size=8).filter(any),
    st.sampled_from([None, 0, 1, 3, 20]),
    st.sampled_from([0.0, 1e-9]),
)
def test_values_and_gradients_equal_the_formula(
    lengths: list[int], reach: int | None, dropout: float
) -> None:
    """A dropout that rounds to nothing takes the written-out path, with the same result."""
    boundaries = [0]
    for length in lengths:
        boundaries.append(boundaries[-1] + length)
    own, other = inputs(boundaries[-1]), inputs(boundaries[-1])
    result = segment_attention(*own, boundaries, Attending(0.3, dropout, reach))
    expected = plain(*other, boundaries, 0.3, reach)
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-5)
    weights = torch.linspace(-1, 1, result.numel()).view_as(result)
    (result * weights).sum().backward()
    (expected * weights).sum().backward()
    for mine, theirs in zip(own, other, strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 1e-9])
def test_bfloat16_comes_and_goes_and_is_computed_in_float32(dropout: float, autocast: bool) -> None:
    boundaries = [0, 5, 10, 11, 30]
    own = [t.detach().bfloat16().requires_grad_() for t in inputs(30)]
    other = [t.detach().float().requires_grad_() for t in own]
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        result = segment_attention(*own, boundaries, Attending(0.3, dropout))
    expected = plain(*other, boundaries, 0.3)
    assert result.dtype == torch.bfloat16
    # One rounding to bfloat16, which has 8 bits, and none before.
    torch.testing.assert_close(result.float(), expected, atol=1e-6, rtol=2**-8)
    weights = torch.linspace(-1, 1, result.numel()).view_as(result)
    (result * weights).sum().backward()
    (expected * weights).sum().backward()
    for mine, theirs in zip(own, other, strict=True):
        assert mine.grad.dtype == torch.bfloat16
        torch.testing.assert_close(mine.grad.float(), theirs.grad, atol=1e-2, rtol=2**-8)


def test_neighbours_of_equal_length_form_one_run() -> None:
    assert runs_of([0, 3, 6, 6, 10, 14, 15]) == [(3, 2), (4, 2), (1, 1)]  # one segment is empty


def test_dropout_keeps_the_mean_and_has_exact_gradients() -> None:
    boundaries = [0, 6]
    query, key, value = (t.detach() for t in inputs(6, seed=2))
    expected = plain(query, key, value, boundaries, 0.3)
    torch.manual_seed(0)
    draws = [
        segment_attention(query, key, value, boundaries, Attending(0.3, dropout=0.25))
        for _ in range(3000)
    ]
    stacked = torch.stack(draws)
    error = stacked.std(0) / len(draws) ** 0.5
    assert bool(((stacked.mean(0) - expected).abs() < 5 * error + 1e-6).all())
    double = [t.detach().double().requires_grad_() for t in (query, key, value)]

    def seeded(*tensors: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(7)
        return segment_attention(*tensors, boundaries, Attending(0.3, dropout=0.25))

    assert torch.autograd.gradcheck(seeded, double)


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_a_segment_does_not_see_another(dropout: float) -> None:
    query, key, value = (t.detach() for t in inputs(9))
    other = [t.clone() for t in (query, key, value)]
    for tensor in other:
        tensor[5:] += 1.0
    results = []
    for tensors in ((query, key, value), other):
        torch.manual_seed(1)
        results.append(segment_attention(*tensors, [0, 5, 9], Attending(0.3, dropout)))
    assert torch.equal(results[0][:5], results[1][:5])
    assert not torch.equal(results[0][5:], results[1][5:])
