"""Which precision `auto` means for a device and a model."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from maskery.training import precision
from maskery.training.config import TrainingConfig
from maskery.training.precision import mean_width, resolve_precision


def model(width: int) -> nn.Module:
    return nn.Sequential(
        nn.Embedding(1000, width), nn.Linear(width, 4 * width), nn.LayerNorm(width)
    )


@pytest.mark.parametrize(("width", "multiplies", "chosen"), [
    (256, True, "bf16"),
    (255, True, "fp32"),
    (1024, False, "fp32"),
])  # fmt: skip
def test_a_cpu_computes_wide_models_in_bf16_if_it_multiplies_it(
    width: int, multiplies: bool, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(precision, "cpu_multiplies_bf16", lambda: multiplies)
    assert resolve_precision(TrainingConfig(), model(width)) == chosen


@pytest.mark.parametrize("supported", [True, False])
def test_a_gpu_computes_in_bf16_if_it_has_it(
    supported: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: supported)
    chosen = resolve_precision(TrainingConfig(), model(8))
    assert chosen == ("bf16" if supported else "fp32")


@pytest.mark.parametrize("asked", ["fp32", "bf16"])
def test_what_is_asked_for_is_done(asked: str) -> None:
    config = TrainingConfig(precision=asked)  # type: ignore[arg-type]
    assert resolve_precision(config, model(8)) == asked


def test_a_torch_without_the_private_questions_means_no(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.delattr(torch.cpu, name, raising=False)
    assert not precision.cpu_multiplies_bf16()


def test_mean_width_counts_matrices_by_their_elements() -> None:
    layers = nn.Sequential(nn.Linear(3, 100, bias=True), nn.Linear(50, 40, bias=False))
    assert mean_width(layers) == pytest.approx((3 * 300 + 40 * 2000) / 2300)
    assert mean_width(nn.LayerNorm(5)) == 0.0
