"""Dropout from 16-bit slices: shares, scaling, gradients, all four slices alike."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from maskery.models.attention import FastDropout, keep_mask, use_fast_dropout


@pytest.mark.parametrize("chance", [0.1, 0.5, 0.9])
def test_every_slice_drops_the_same_share(chance: float) -> None:
    torch.manual_seed(0)
    keep, gain = keep_mask(torch.Size([400_000]), chance, torch.device("cpu"))
    error = np.sqrt(chance * (1 - chance) / 100_000)
    for lane in range(4):
        dropped = 1.0 - keep[lane::4].float().mean().item()
        assert abs(dropped - chance) < 5 * error
    assert gain == pytest.approx(1 / (1 - chance), rel=1e-3)


def test_neighbouring_slices_are_independent() -> None:
    torch.manual_seed(1)
    keep, _ = keep_mask(torch.Size([400_000]), 0.5, torch.device("cpu"))
    table = keep.view(-1, 4).float().numpy()
    correlation = np.corrcoef(table.T) - np.eye(4)
    assert np.abs(correlation).max() < 5 / np.sqrt(100_000)


def test_gradients_pass_where_values_did() -> None:
    values = torch.ones(50, 3, requires_grad=True)
    layer = FastDropout(0.4).train()
    result = layer(values)
    result.sum().backward()
    assert values.grad is not None
    assert torch.equal(values.grad, result.detach())
    assert torch.equal(layer.eval()(values), values)


def test_everything_is_dropped_at_one_and_nothing_at_zero() -> None:
    values = torch.ones(9)
    assert float(FastDropout(1.0).train()(values).sum()) == 0.0
    assert int(keep_mask(values.shape, 1.0, values.device)[0].sum()) == 0
    assert torch.equal(FastDropout(0.0).train()(values), values)


def test_plain_dropouts_of_a_model_are_replaced() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Dropout(0.3)))
    use_fast_dropout(model)
    inner = model[1][0]
    assert isinstance(inner, FastDropout)
    assert inner.p == 0.3
