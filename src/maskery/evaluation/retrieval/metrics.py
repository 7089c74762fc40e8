"""R@k, mAP and mINP of rankings.

Of one text, with its G right images at ranks r_1 < ... < r_G of the whole gallery: R@k is whether
r_1 <= k; the average precision is the mean of j / r_j; the inverse negative penalty is G / r_G (Ye
et al., "Deep Learning for Person Re-identification", TPAMI 2021, section 3.3). The figures are
means over texts.

Shapes: T texts (queries), I images (gallery), F = 5 figures.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt
import torch

from maskery.core.errors import DataError
from maskery.evaluation.intervals import Interval, ratio_interval

# The ranks that the literature of person search reports.
CUTOFFS = (1, 5, 10)
# Rows of a (T, I) matrix whose ranks are held as float64 at once.
ROWS_AT_ONCE = 1024


@dataclass(frozen=True, kw_only=True)
class RankingFigures:
    """Figures of one ranking, each in [0, 1] with its 95% interval over persons."""

    r1: Interval  # share of the texts whose best image is right
    r5: Interval  # with a right one among the best five
    r10: Interval  # among the best ten
    map: Interval  # mean average precision
    minp: Interval  # mean inverse negative penalty


FIGURES = tuple(field.name for field in fields(RankingFigures))


def rank(scores: torch.Tensor, *, stable: bool = True) -> torch.Tensor:
    """Sort (T, I) scores, higher is better, to (T, I) int64 columns, best first.

    With `stable`, ties stay in the gallery's order; else as the release leaves them.
    """
    return torch.sort(scores, dim=1, descending=True, stable=stable).indices


def matches_of(
    order: torch.Tensor, text_persons: torch.Tensor, image_persons: torch.Tensor
) -> torch.Tensor:
    """Return (T, I) bool: True where the image at a rank is right."""
    return image_persons[order] == text_persons[:, None]


def text_figures(matches: torch.Tensor) -> npt.NDArray[np.float64]:
    """Return each text's own figures: (T, I) bool to (T, F), columns as `FIGURES`."""
    without = int((~matches.any(dim=1)).sum())
    if without:
        raise DataError(
            f"{without} of {len(matches)} texts have no right image in the gallery, so nothing can "
            f"be found for them; leave them out, or bring their images"
        )
    ranks = torch.arange(1, matches.shape[1] + 1, device=matches.device, dtype=torch.float64)
    parts = []
    for rows in matches.split(ROWS_AT_ONCE):
        found = rows.cumsum(dim=1)
        total = found[:, -1].double()
        found_by = [(found[:, min(cutoff, len(ranks)) - 1] > 0).double() for cutoff in CUTOFFS]
        precision = torch.where(rows, found / ranks, 0.0).sum(dim=1) / total
        last = torch.where(rows, ranks, 0.0).amax(dim=1)
        parts.append(torch.stack((*found_by, precision, total / last), dim=1))
    return torch.cat(parts).cpu().numpy()


def summarise_texts(
    figures: npt.NDArray[np.float64], text_persons: npt.NDArray[np.int64]
) -> RankingFigures:
    """Return means over texts, with intervals over persons, whose texts are not independent."""
    unique, inverse = np.unique(text_persons, return_inverse=True)
    sums = np.zeros((len(unique), figures.shape[1]))
    np.add.at(sums, inverse, figures)
    counts = np.bincount(inverse).astype(np.float64)
    intervals = [ratio_interval(column, counts, "share") for column in sums.T]
    return RankingFigures(**dict(zip(FIGURES, intervals, strict=True)))


def retrieval_figures(
    scores: npt.ArrayLike | torch.Tensor,
    text_persons: npt.ArrayLike | torch.Tensor,
    image_persons: npt.ArrayLike | torch.Tensor,
    *,
    stable: bool = True,
) -> RankingFigures:
    """Measure a ranking: R@1, R@5, R@10, mAP and mINP of a whole matrix of scores.

    Args:
        scores: (T, I), the score of each image for each text; higher is better.
        text_persons: (T,) integers, the person (or class) that each text describes.
        image_persons: (I,) integers, the person that each image shows.
        stable: As in `rank`.

    Raises:
        DataError: A text has no right image, or the shapes do not fit.
    """
    matrix, texts, images = (torch.as_tensor(v) for v in (scores, text_persons, image_persons))
    if matrix.shape != (len(texts), len(images)):
        raise DataError(
            f"the scores have shape {tuple(matrix.shape)}, with {len(texts)} texts and "
            f"{len(images)} images; give one row a text and one column an image"
        )
    matches = matches_of(rank(matrix, stable=stable), texts, images)
    return summarise_texts(text_figures(matches), texts.cpu().numpy())
