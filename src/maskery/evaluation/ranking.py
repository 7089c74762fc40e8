"""How well scores tell two kinds apart.

Shapes: N things.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from maskery.core.errors import DataError


def auc(scores: npt.NDArray[np.float64], labels: npt.NDArray[np.int64]) -> float:
    """The area under the ROC curve: the chance that a positive scores above a negative.

    Ties count half (Mann and Whitney's U over its largest value; Hanley and McNeil, 1982).

    Args:
        scores: (N,), higher means positive.
        labels: (N,), 1 or 0.

    Raises:
        DataError: Only one kind is there.
    """
    positives = int((labels == 1).sum())
    negatives = int((labels == 0).sum())
    if not positives or not negatives:
        raise DataError(
            f"there are {positives} replaced and {negatives} original words, and both kinds are "
            f"needed to tell them apart; hold out more"
        )
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    ranks = (ends - (counts - 1) / 2)[inverse]
    above = ranks[labels == 1].sum() - positives * (positives + 1) / 2
    return float(above / (positives * negatives))
