"""Measure how well scores tell two kinds apart.

Shapes: N things.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import torch

from maskery.core.errors import DataError

log = logging.getLogger(__name__)


def auc(scores: npt.NDArray[np.float64], labels: npt.NDArray[np.int64]) -> float:
    """Return the area under the ROC curve: the chance that a positive scores above a negative.

    Ties count half (Mann and Whitney's U over its largest value; Hanley and McNeil, 1982).

    Scores (N,) are higher for positives; labels (N,) are 1 or 0.
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


def judged_auc(batches: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> float | None:
    """Return the AUC of replaced words over batches of (P,) log-odds and (P,) labels.

    None if all words are replaced, or none are: a generator that knows every word replaces nothing.
    """
    scores, labels = [], []
    for log_odds, replaced in batches:
        scores.append(log_odds.double().cpu().numpy())
        labels.append(replaced.cpu().numpy())
    judged = np.concatenate(labels) if labels else np.empty(0, np.int64)
    if len(np.unique(judged)) < 2:
        log.warning("replaced words are not judged: %d of %d are", judged.sum(), len(judged))
        return None
    return auc(np.concatenate(scores), judged)
