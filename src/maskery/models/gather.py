"""Rows of all processes in one tensor; with one process, nothing happens.

Shapes: B rows of this process, G rows of all.
"""

from __future__ import annotations

import torch
import torch.distributed


@torch.no_grad()
def gather_rows(rows: torch.Tensor) -> torch.Tensor:
    """Collect rows from every process, in the order of their ranks.

    Args:
        rows: (B, ...); B may differ between processes. Gradients do not pass.

    Returns:
        (G, ...), the same on every process.
    """
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return rows
    world_size = torch.distributed.get_world_size()
    if world_size == 1:
        return rows
    count = torch.tensor([len(rows)], device=rows.device)
    counts = [torch.empty_like(count) for _ in range(world_size)]
    torch.distributed.all_gather(counts, count)
    sizes = [int(c) for c in counts]
    # Collectives want equal shapes: everyone sends as many rows as the largest has.
    padded = rows.new_zeros(max(sizes), *rows.shape[1:])
    padded[: len(rows)] = rows
    received = [torch.empty_like(padded) for _ in range(world_size)]
    torch.distributed.all_gather(received, padded)
    return torch.cat([part[:size] for part, size in zip(received, sizes, strict=True)])
