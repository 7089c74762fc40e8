"""The nearest of many feature vectors: an exact scan of a memory-mapped float16 matrix.

Blocks that fit the processor's cache are widened to float32 and multiplied. A million vectors of
256 numbers take less than a tenth of a second on two cores, which leaves nothing for an approximate
index to gain; docs/search.md has the figures, and those of the libraries that were tried.

Shapes: I vectors, E features, K nearest.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

BLOCK_NUMBERS = 1 << 19
"""Of a block: 2 MiB as float32, which stays in the second-level cache."""
MARGIN = 16
"""As many more than wanted are compared again, exactly."""


def nearest(
    matrix: npt.NDArray[np.float16], query: npt.NDArray[np.float32], count: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """The vectors with the largest inner product with a query.

    Args:
        matrix: (I, E), writable, or memory-mapped copy-on-write.
        query: (E,).
        count: K, at most I.

    Returns:
        (K,) indices and inner products, best first; ties by index.
    """
    vectors, column = torch.from_numpy(matrix), torch.from_numpy(query)
    products = torch.empty(len(vectors))
    rows = max(1, BLOCK_NUMBERS // vectors.shape[1])
    for first in range(0, len(vectors), rows):
        block = slice(first, first + rows)
        torch.mv(vectors[block].float(), column, out=products[block])
    found = products.topk(min(len(vectors), count + MARGIN)).indices.sort().values
    # Sums by block differ in their last digit by where a row lies; these do not.
    exact = (vectors[found].double() * column.double()).sum(dim=1).float()
    order = exact.argsort(descending=True, stable=True)[:count]
    return found[order].numpy(), exact[order].numpy()
