"""Ranks of partners among all partners.

Shapes: N pairs, P different partners, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from maskery.evaluation.probe.classify import BLOCK_BYTES

Floats = npt.NDArray[np.float64]


def pair_scores(first: Any, second: Any, partners: Sequence[str]) -> tuple[Floats, Floats]:
    """Return whether each text finds its partner first, and the reciprocal of its rank.

    Partners of equal score share their place: each is as likely to stand first as the others.

    Args:
        first: (N, D) rows of length 1, dense or sparse.
        second: (N, D) rows of the partners.
        partners: N names of the partners; those of one name are one.

    Returns:
        (N,) the chance that the partner stands first; (N,) 1 / its mean rank.
    """
    names, one_each, own = np.unique(
        np.array(partners, object).astype(str), return_index=True, return_inverse=True
    )
    candidates = second[one_each]
    num = first.shape[0]
    size = max(1, BLOCK_BYTES // (8 * len(names)))
    found, reciprocal = np.zeros(num), np.zeros(num)
    for start in range(0, num, size):
        block = first[start : start + size] @ candidates.T
        similar = np.asarray(block.todense()) if hasattr(block, "todense") else np.array(block)
        rows = np.arange(len(similar))
        right = similar[rows, own[start : start + size]][:, None]
        better, equal = (similar > right).sum(axis=1), (similar == right).sum(axis=1)
        found[start : start + size] = (better == 0) / equal
        reciprocal[start : start + size] = 1.0 / (better + (equal + 1) / 2.0)
    return found, reciprocal
