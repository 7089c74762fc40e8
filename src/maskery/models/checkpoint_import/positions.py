"""Position tables of vision transformers at another image size.

Shapes: P patches, S leading tokens (class, distillation), W width.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from maskery.core.errors import ModelError


def square_grid(num_patches: int) -> tuple[int, int]:
    """The grid of a square image with that many patches.

    Raises:
        ModelError: No square has.
    """
    side = math.isqrt(num_patches)
    if side * side != num_patches:
        raise ModelError(
            f"the checkpoint has {num_patches} patch positions, which is no square: give the image "
            f"size it was trained with"
        )
    return side, side


def resize_positions(
    table: torch.Tensor, old: tuple[int, int], new: tuple[int, int], num_leading: int = 1
) -> torch.Tensor:
    """Interpolate a position table to another grid, bicubically, as ALBEF does.

    Args:
        table: (1, S + P, W).
        old: Rows and columns of patches in the table.
        new: Those wanted.
        num_leading: S; these positions stay as they are.

    Returns:
        (1, S + new P, W).
    """
    if old == new:
        return table
    leading, patches = table[:, :num_leading], table[:, num_leading:]
    grid = patches.reshape(1, *old, -1).permute(0, 3, 1, 2)
    resized = F.interpolate(grid.float(), size=new, mode="bicubic", align_corners=False)
    return torch.cat((leading, resized.permute(0, 2, 3, 1).flatten(1, 2).to(table.dtype)), dim=1)
