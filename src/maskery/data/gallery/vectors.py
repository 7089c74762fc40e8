"""The nearest of many feature vectors: an exact scan of a memory-mapped float16 matrix.

USearch scans a million vectors of 256 numbers in a tenth of a second on one core, exactly, which
leaves nothing for an approximate index to gain at this size; see docs/search.md.

Shapes: I vectors, Q queries, E features, K nearest.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from maskery.core.optional import require

MARGIN = 16
"""As many more than wanted are scanned for: float16 may swap neighbours, float32 decides."""


def nearest(
    matrix: npt.NDArray[np.float16],
    queries: npt.NDArray[np.float32],
    count: int,
    *,
    threads: int = 0,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """The vectors with the largest inner product with each query.

    Args:
        matrix: (I, E), may be memory-mapped.
        queries: (Q, E).
        count: K, at most I.
        threads: 0 takes all.

    Returns:
        (Q, K) indices and inner products, best first; ties by index.

    Raises:
        MissingExtraError: USearch is not installed.
    """
    usearch = require("usearch.index", extra="search", purpose="search a gallery")
    wider = min(len(matrix), count + MARGIN)
    found = usearch.search(
        matrix, queries.astype(np.float16), wider, "ip", exact=True, threads=threads
    )
    indices = np.asarray(found.keys).astype(np.int64).reshape(len(queries), wider)
    indices.sort(axis=1)
    products = np.einsum("qke,qe->qk", matrix[indices].astype(np.float32), queries)
    order = np.argsort(-products, axis=1, kind="stable")[:, :count]
    return np.take_along_axis(indices, order, 1), np.take_along_axis(products, order, 1)
