from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from maskery.training.parallel import shard, unshard


@pytest.fixture
def mesh() -> Iterator[DeviceMesh]:
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


class Stack(nn.Module):
    """Two layers, and an output whose weight is tied to nothing."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
        self.out = nn.Linear(4, 2)
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x).relu()
        return self.scale * self.out(x)


def one_group(state: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a state of FSDP's like one of PyTorch 2.11: one group, which may be None."""
    (group,) = state.__dict__.pop("_fsdp_param_groups") or (None,)
    groups[id(state)] = group
    monkeypatch.setattr(type(state), "_fsdp_param_group", property(lambda self: groups[id(self)]))


groups: dict[int, Any] = {}


@pytest.mark.parametrize("old", [False, True])
def test_a_sharded_model_becomes_a_plain_one_again(
    mesh: DeviceMesh, old: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = Stack(), torch.ones(3, 4)
    expected, names = model(x), list(model.state_dict())
    shard(model, mesh)
    assert isinstance(model, FSDPModule)
    torch.testing.assert_close(model(x), expected)
    if old:
        for module in model.modules():
            if isinstance(module, FSDPModule):
                one_group(module._get_fsdp_state(), monkeypatch)
    unshard(model)
    assert type(model) is Stack
    assert all(type(layer) is nn.Linear for layer in model.layers)
    assert not any(isinstance(parameter, DTensor) for parameter in model.parameters())
    assert list(model.state_dict()) == names
    torch.testing.assert_close(model(x), expected, rtol=0, atol=0)
    model(x).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
