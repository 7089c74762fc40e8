"""Gradients that are the same however threads take turns."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

# Its attribute is made at run time, so type checkers do not know of it.
UNINITIALIZED: Any = torch.utils.deterministic


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
