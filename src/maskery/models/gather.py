"""Gather the rows of all processes in one tensor; with one process, nothing happens.

Shapes: B rows of this process, G rows of all.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.distributed


@dataclass(frozen=True, kw_only=True)
class Crowd:
    """The rows of all processes in the order in which they were dealt out.

    A step's examples are dealt one to each process in turn, so the first rows of all processes come
    before the second ones: any number of processes computes the same of them, but for rounding.
    """

    sizes: tuple[int, ...]  # The rows of each process
    longest: int  # The greatest length of a row on any process
    order: torch.Tensor  # (G,): the place of each row of the crowd among those by process
    mine: torch.Tensor  # (B,): where this process's rows stand in the crowd

    @classmethod
    def of(cls, num_rows: int, length: int, device: torch.device) -> Self:
        """Agree with the other processes on B and on the length of rows (padded text)."""
        me, told = 0, [(num_rows, length)]  # alone, without asking the device
        group = torch.distributed
        if group.is_available() and group.is_initialized() and group.get_world_size() > 1:
            mine = torch.tensor([num_rows, length], device=device)
            me, told = torch.distributed.get_rank(), [tuple(o.tolist()) for o in _everyones(mine)]
        sizes = tuple(size for size, _ in told)
        turns = [(row, process) for process, size in enumerate(sizes) for row in range(size)]
        dealt = sorted(range(len(turns)), key=turns.__getitem__)
        own = [place for place, row in enumerate(dealt) if turns[row][1] == me]
        order, mine = (torch.tensor(one).to(device, non_blocking=True) for one in (dealt, own))
        return cls(sizes=sizes, longest=max(length for _, length in told), order=order, mine=mine)

    @property
    def is_alone(self) -> bool:
        """True with one process."""
        return len(self.sizes) == 1

    @torch.no_grad()
    def gather(self, rows: torch.Tensor) -> torch.Tensor:
        """Gather (B, ...) of each process to (G, ...) on every one; gradients do not pass."""
        return rows if self.is_alone else self._joined(_everyones(self._padded(rows)))

    def gather_with_gradients(self, rows: torch.Tensor) -> torch.Tensor:
        """Gather rows; each process gets the gradients of its rows back from all others."""
        if self.is_alone:
            return rows
        parts: torch.Tensor = _PassedAround.apply(self._padded(rows))  # type: ignore[no-untyped-call]
        return self._joined(parts)

    def _padded(self, rows: torch.Tensor) -> torch.Tensor:
        # Collectives want equal shapes: every process sends as many rows as the largest has.
        return torch.cat((rows, rows.new_zeros(max(self.sizes) - len(rows), *rows.shape[1:])))

    def _joined(self, parts: Iterable[torch.Tensor]) -> torch.Tensor:
        real = [part[:size] for part, size in zip(parts, self.sizes, strict=True)]
        return torch.cat(real)[self.order]


class _PassedAround(torch.autograd.Function):
    """Gather (R, ...) to (processes, R, ...); gradients are summed on the way back."""

    @staticmethod
    def forward(_ctx: Any, rows: torch.Tensor) -> torch.Tensor:
        return torch.stack(_everyones(rows))

    @staticmethod
    def backward(_ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        summed = gradients[0].contiguous()
        torch.distributed.all_reduce(summed)
        return summed[torch.distributed.get_rank()]


def _everyones(rows: torch.Tensor) -> list[torch.Tensor]:
    """Return the rows of every process, which must be of one shape."""
    received = [torch.empty_like(rows) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(received, rows.contiguous())
    return received
