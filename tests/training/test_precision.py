"""Which precision `auto` means for a device and a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils import deterministic

from maskery.training import optimiser
from maskery.training.config import TrainingConfig
from maskery.training.optimiser import (
    cpu_multiplies_bf16,
    exact_sums,
    mean_width,
    multiplies_bf16,
    resolve_precision,
)


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
    monkeypatch.setattr(optimiser, "multiplies_bf16", lambda device: multiplies)
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


@pytest.mark.parametrize(("capabilities", "fast"), [
    ({}, False),  # an older torch, or a CPU that it does not know
    ({"cpu_name": "Intel Xeon", "avx512_f": True}, False),
    ({"cpu_name": "Intel Xeon", "avx512_bf16": True, "amx_tile": False}, False),
    ({"cpu_name": "Intel Xeon", "avx512_bf16": True, "amx_tile": True}, True),
    ({"cpu_name": "AMD EPYC 9R14", "avx512_bf16": True}, True),
])  # fmt: skip
def test_bf16_is_for_cpus_that_are_faster_at_it(
    capabilities: Mapping[str, Any], fast: bool
) -> None:
    assert cpu_multiplies_bf16(capabilities) is fast


def test_a_torch_that_does_not_tell_means_no(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert not multiplies_bf16(torch.device("cpu"))


def test_mean_width_counts_matrices_by_their_elements() -> None:
    layers = nn.Sequential(nn.Linear(3, 100, bias=True), nn.Linear(50, 40, bias=False))
    assert mean_width(layers) == pytest.approx((3 * 300 + 40 * 2000) / 2300)
    assert mean_width(nn.LayerNorm(5)) == 0.0


CPU = torch.device("cpu")


@pytest.fixture
def _two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_two_threads")
def test_rows_that_are_read_often_get_the_same_gradient_every_time() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(8, 20, 64, generator=generator, requires_grad=True)
    weights = torch.randn(64, 20, 64, generator=generator)
    read = torch.randint(8, (64,), generator=generator)
    expected = torch.zeros(8, 20, 64)
    for row, weight in zip(read.tolist(), weights, strict=True):
        expected[row] += weight
    with exact_sums(CPU):
        for _ in range(200):  # without it, about one in four differs on two free threads
            (found,) = torch.autograd.grad((rows[read] * weights).sum(), rows)
            assert torch.equal(found, expected)


def settings() -> tuple[bool, bool, bool]:
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        deterministic.fill_uninitialized_memory,
    )


def test_settings_are_as_before_afterwards() -> None:
    before = settings()
    with exact_sums(CPU):
        assert settings() == (True, True, False)
    assert settings() == before
    with pytest.raises(ZeroDivisionError), exact_sums(CPU):
        1 / 0  # noqa: B018
    assert settings() == before


def test_a_stricter_setting_stays() -> None:
    torch.use_deterministic_algorithms(True)
    try:
        with exact_sums(CPU):
            assert settings()[:2] == (True, False)
        assert settings()[:2] == (True, False)
    finally:
        torch.use_deterministic_algorithms(False)


def test_other_devices_keep_the_settings_of_the_caller() -> None:
    before = settings()
    with exact_sums(torch.device("meta")):
        assert settings() == before
