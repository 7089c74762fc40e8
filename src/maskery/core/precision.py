"""The precision of what a GPU computes without gradients; training's is the stepper's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TypeVar

import torch
from torch import nn

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def allow_half() -> None:
    """Let this process use TF32, and bfloat16 in `inference`, on a GPU that has them."""
    if torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False):
        torch.set_float32_matmul_precision("high")


@contextmanager
def inference() -> Iterator[None]:
    """Compute without gradients and, after `allow_half`, in bfloat16 on a GPU."""
    # PyTorch's own setting is the switch: a run with --precision fp32 leaves it at "highest".
    half = torch.cuda.is_available() and torch.get_float32_matmul_precision() != "highest"
    with torch.no_grad(), torch.autocast("cuda", torch.bfloat16) if half else nullcontext():
        yield


def to_gpu(model: ModuleT) -> ModuleT:
    """Move an opened model to the GPU, where there is one."""
    if torch.cuda.is_available():
        allow_half()
        model.cuda()
    return model
