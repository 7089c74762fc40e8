"""Which precision a run computes in: float32, or bfloat16 where the device is faster at it."""

from __future__ import annotations

import torch
from torch import nn

from maskery.training.config import Precision, TrainingConfig

# On a CPU that multiplies bfloat16, narrower matrices lose more by converting than they gain.
NARROW = 256


def resolve_precision(config: TrainingConfig, model: nn.Module) -> Precision:
    """fp32 or bf16, whichever the config says or the device is fast at with this model."""
    if config.precision != "auto":
        return config.precision
    if torch.cuda.is_available():
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = cpu_multiplies_bf16() and mean_width(model) >= NARROW
    return "bf16" if fast else "fp32"


def cpu_multiplies_bf16() -> bool:
    """Whether this CPU has instructions for products of bfloat16 (AVX512-BF16 or AMX)."""
    return any(
        getattr(torch.cpu, name, lambda: False)()  # private, and not in every version
        for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    )


def mean_width(model: nn.Module) -> float:
    """The smaller side of a model's matrices, averaged over their elements; 0 without any."""
    matrices = [p for p in model.parameters() if p.dim() == 2]
    elements = sum(p.numel() for p in matrices)
    return sum(min(p.shape) * p.numel() for p in matrices) / max(elements, 1)
