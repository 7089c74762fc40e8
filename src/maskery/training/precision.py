"""Numerics of a run: float32 or bfloat16, and sums that are the same however threads take turns."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from maskery.training.config import BaseTrainingConfig, Precision

# On a CPU that multiplies bfloat16, narrower matrices lose more by converting than they gain.
NARROW = 256
# Its attribute is made at run time, so type checkers do not know of it.
UNINITIALIZED: Any = torch.utils.deterministic


def resolve_precision(config: BaseTrainingConfig, model: nn.Module) -> Precision:
    """Return the precision that the config names or, for auto, the faster one for this model."""
    if config.precision != "auto":
        return config.precision
    on_gpu = torch.cuda.is_available()
    fast = multiplies_bf16(torch.device("cuda" if on_gpu else "cpu"))
    return "bf16" if fast and (on_gpu or mean_width(model) >= NARROW) else "fp32"


def multiplies_bf16(device: torch.device) -> bool:
    """Return True if a device has instructions for products of bfloat16."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and cpu_multiplies_bf16()


def cpu_multiplies_bf16() -> bool:
    """Return True if this CPU has instructions for products of bfloat16 (AVX512-BF16 or AMX)."""
    return any(
        getattr(torch.cpu, name, lambda: False)()  # private, and not in every version
        for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    )


def mean_width(model: nn.Module) -> float:
    """Return the mean over all matrix elements of their matrix's smaller side; 0 without any."""
    matrices = [p for p in model.parameters() if p.dim() == 2]
    elements = sum(p.numel() for p in matrices)
    return sum(min(p.shape) * p.numel() for p in matrices) / max(elements, 1)


@contextmanager
def exact_sums(device: torch.device) -> Iterator[None]:
    """Add gradients in one order on a CPU, so that a run repeats bit for bit on several threads.

    Where a row is read more than once (`features[negatives]`), PyTorch's threads add its gradients
    as they come, and the last digits differ from run to run. The step is no slower for it. On other
    devices the caller's settings stay: what an order costs there has not been measured.
    """
    if device.type != "cpu":
        yield
        return
    was = torch.are_deterministic_algorithms_enabled()
    only_warned = torch.is_deterministic_algorithms_warn_only_enabled()
    filled = UNINITIALIZED.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=only_warned if was else True)
    UNINITIALIZED.fill_uninitialized_memory = False  # it is for finding faults, and takes time
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(was, warn_only=only_warned)
        UNINITIALIZED.fill_uninitialized_memory = filled
