"""Measure how fast this device multiplies matrices, to compare everything else with."""

from __future__ import annotations

import time

import torch

from maskery.training.optimiser import multiplies_bf16

REPEATS = 5


def matrix_peak(size: int | None = None) -> float:
    """The most floating-point operations a second seen in large matrix products.

    In bf16 on a GPU and on a CPU that multiplies it, else in float32.
    """
    cuda = torch.cuda.is_available()
    half = cuda or multiplies_bf16(torch.device("cpu"))
    device = torch.device("cuda" if cuda else "cpu")
    size = size or (8192 if cuda else 2048)
    # Random: of ones, a GPU computes a tenth faster than of anything real, since it switches less.
    kind = torch.bfloat16 if half else torch.float32
    matrix = torch.randn(size, size, device=device, dtype=kind)
    best = float("inf")
    matrix @ matrix  # loads the kernel
    if cuda:
        torch.cuda.synchronize()
    for _ in range(REPEATS):
        began = time.perf_counter()
        product = matrix @ matrix
        if cuda:
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
        del product
    return 2.0 * size**3 / best
