from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from maskery.training.guards import BadSteps, SpikeWatch
from maskery.training.stepper import poison_if_not_finite, update_if_finite


@pytest.mark.parametrize("value", [0.0, 1.5, -3e38, 1e-42])
def test_a_finite_loss_keeps_its_gradients_to_the_last_bit(value: float) -> None:
    plain = torch.tensor([0.1, 0.7], requires_grad=True)
    guarded = plain.detach().clone().requires_grad_(True)
    (plain.sin().sum() + value).backward()
    poison_if_not_finite(guarded.sin().sum() + value).backward()
    assert guarded.grad is not None
    assert plain.grad is not None
    assert torch.equal(guarded.grad, plain.grad)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_a_loss_that_is_no_number_leaves_no_finite_gradient(value: float) -> None:
    weights = torch.tensor([0.1, 0.7], requires_grad=True)
    poison_if_not_finite(weights.sin().sum() + value).backward()
    assert weights.grad is not None
    assert not torch.isfinite(weights.grad).any()


@pytest.mark.parametrize("fused", [True, False])
def test_an_update_is_left_out_where_the_norm_is_not_finite(fused: bool) -> None:
    guarded, plain = nn.Linear(3, 2), nn.Linear(3, 2)
    plain.load_state_dict(guarded.state_dict())
    optimisers = [torch.optim.AdamW(m.parameters(), lr=0.1, fused=fused) for m in (guarded, plain)]
    for bad in (False, True, True, False):
        for model in (guarded, plain):
            model(torch.ones(1, 3)).sum().backward()
        assert guarded.weight.grad is not None
        if bad:
            guarded.weight.grad[0, 0] = math.nan
        norm = torch.nn.utils.clip_grad_norm_(guarded.parameters(), 1e9)
        before = [p.clone() for p in guarded.parameters()]
        update_if_finite(optimisers[0], list(guarded.parameters()), norm)
        assert all(p.grad is None for p in guarded.parameters())
        if bad:  # nothing moves, no count either
            assert all(torch.equal(a, b) for a, b in zip(before, guarded.parameters(), strict=True))
        else:
            optimisers[1].step()
        optimisers[1].zero_grad(set_to_none=True)
    for one, other in zip(guarded.parameters(), plain.parameters(), strict=True):
        assert torch.equal(one, other)
        states = [o.state[p] for o, p in zip(optimisers, (one, other), strict=True)]
        assert states[0].keys() == states[1].keys()
        assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_bad_steps_in_a_row() -> None:
    bad = BadSteps(3, in_a_row=1)
    counts = []
    for norm in (math.nan, 1.0, math.inf, -math.inf, math.nan, 0.0):
        bad.add(torch.tensor(norm))
        counts.append((bad.in_a_row, bad.too_many))
    assert counts == [(2, False), (0, False), (1, False), (2, False), (3, True), (0, False)]
    assert bad.free_to_ask


def test_spikes_stand_out_of_the_lines_before() -> None:
    generator = np.random.default_rng(0)
    quiet = [2.0 + 0.05 * float(x) for x in generator.normal(size=200)]
    watch = SpikeWatch()
    assert [watch.usual(loss) for loss in quiet] == [None] * 200
    usual = watch.usual(4.0)
    assert usual is not None
    assert usual == pytest.approx(float(np.median(quiet[-32:])))
    # One spike does not make the next one usual.
    assert watch.usual(4.0) is not None
    assert watch.usual(2.0) is None
    # A fall is none, nor is a steady fall from high up.
    assert watch.usual(0.1) is None
    falling = SpikeWatch(10.0 * 0.9**step for step in range(40))
    assert falling.usual(10.0 * 0.9**40) is None


def test_the_first_lines_are_no_spikes() -> None:
    assert [SpikeWatch([1.0] * count).usual(50.0) for count in (0, 1, 7)] == [None] * 3
    assert SpikeWatch([1.0] * 8).usual(50.0) == 1.0
    assert SpikeWatch([1.0] * 8).usual(1.05) is None
