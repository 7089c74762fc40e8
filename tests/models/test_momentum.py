from __future__ import annotations

import pytest
import torch
from torch import nn

from maskery.core.errors import CheckpointError, ConfigError
from maskery.models.momentum import MomentumTwin


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.BatchNorm1d(4), nn.Linear(4, 2))


def test_update_is_the_moving_average() -> None:
    online = network()
    twin = MomentumTwin(online, 0.9)
    before = [p.clone() for p in twin.model.parameters()]
    with torch.no_grad():
        for parameter in online.parameters():
            parameter.add_(torch.randn_like(parameter))
    twin.update()
    for old, new, target in zip(before, twin.model.parameters(), online.parameters(), strict=True):
        torch.testing.assert_close(new, 0.9 * old + 0.1 * target, rtol=1e-6, atol=1e-7)


def test_the_twin_stands_still_between_updates_and_takes_no_gradient() -> None:
    online = network()
    twin = MomentumTwin(online, 0.9)
    before = [p.clone() for p in twin.model.parameters()]
    twin.model(torch.randn(5, 3))
    with torch.no_grad():
        next(online.parameters()).add_(1)
    assert all(torch.equal(a, b) for a, b in zip(before, twin.model.parameters(), strict=True))
    assert not any(p.requires_grad for p in twin.model.parameters())
    assert all(p.requires_grad for p in online.parameters())


def test_extremes() -> None:
    online = network()
    still, close = MomentumTwin(online, 1.0), MomentumTwin(online, 0.0)
    first = next(online.parameters())
    before = first.detach().clone()
    with torch.no_grad():
        first.add_(1)
    still.update()
    close.update()
    assert torch.equal(next(still.model.parameters()), before)
    assert torch.equal(next(close.model.parameters()), first)


def test_evaluation_mode_is_the_default() -> None:
    assert not MomentumTwin(network(), 0.9).model.training
    assert MomentumTwin(network(), 0.9, train_mode=True).model.training


def test_buffers_follow() -> None:
    online = network()
    twin = MomentumTwin(online, 0.9)
    online(torch.randn(8, 3) + 5)
    twin.update()
    for mine, theirs in zip(twin.model.buffers(), online.buffers(), strict=True):
        assert torch.equal(mine, theirs)


def test_tied_weights_move_once() -> None:
    online = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    online[1].weight = online[0].weight
    twin = MomentumTwin(online, 0.5)
    before = twin.model[0].weight.clone()
    with torch.no_grad():
        online[0].weight.add_(1)
    twin.update()
    torch.testing.assert_close(twin.model[0].weight, before + 0.5)
    assert twin.model[1].weight is twin.model[0].weight


def test_state_goes_through_a_checkpoint_exactly() -> None:
    online = network()
    twin = MomentumTwin(online, 0.9)
    with torch.no_grad():
        next(online.parameters()).add_(1)
    twin.update()
    other = MomentumTwin(online, 0.9)
    other.load_state_dict({name: tensor.clone() for name, tensor in twin.state_dict().items()})
    for mine, theirs in zip(twin.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_errors_are_one_line() -> None:
    with pytest.raises(ConfigError, match="momentum is"):
        MomentumTwin(network(), 1.5)
    with pytest.raises(CheckpointError, match="does not fit") as caught:
        MomentumTwin(network(), 0.9).load_state_dict({"0.weight": torch.zeros(9, 9)})
    assert "\n" not in str(caught.value)
