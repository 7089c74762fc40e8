"""R@k, mAP and mINP of rankings.

Of one text, with its G right images at ranks r_1 < ... < r_G of the whole gallery: R@k is whether
r_1 <= k; the average precision is the mean of j / r_j; the inverse negative penalty is G / r_G (Ye
et al., "Deep Learning for Person Re-identification", TPAMI 2021, section 3.3). The figures are
means over texts.

Shapes: T texts (queries), I images (gallery), G right images of a text, F = 5 figures.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from maskery.core.errors import DataError
from maskery.evaluation.intervals import Interval, ratio_interval

# The ranks that the literature of person search reports.
CUTOFFS = (1, 5, 10)
# In the place of a rank where there is none.
NONE = torch.iinfo(torch.int64).max


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


def best(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Return the first `count` columns of `rank`, (T, count), without sorting the others."""
    values, columns = scores.topk(min(count + 1, scores.shape[1]), dim=1)
    columns = columns[:, :count].sort(dim=1).values
    found = columns.gather(1, rank(scores.gather(1, columns)))
    if values.shape[1] > count:
        # Of equal ones at the end, `topk` may have taken any.
        tied = (values[:, count - 1] == values[:, count]).nonzero().flatten()
        found[tied] = rank(scores[tied])[:, :count]
    return found


class Right(NamedTuple):
    """The right images of each text, at most G of them."""

    columns: torch.Tensor  # (T, G) int64
    there: torch.Tensor  # (T, G) bool: False where a text has fewer

    @classmethod
    def of(cls, text_persons: torch.Tensor, image_persons: torch.Tensor) -> Right:
        """Find the images (I,) of the person whom each text (T,) describes."""
        order = image_persons.argsort(stable=True)
        shown = image_persons[order]
        first = torch.searchsorted(shown, text_persons)
        counts = torch.searchsorted(shown, text_persons, right=True) - first
        if without := int((counts == 0).sum()):
            raise DataError(
                f"{without} of {len(counts)} texts have no right image in the gallery, so nothing "
                f"can be found for them; leave them out, or bring their images"
            )
        steps = torch.arange(int(counts.max()), device=order.device)
        places = (first[:, None] + steps).clamp(max=len(order) - 1)
        return cls(order[places], steps < counts[:, None])


def right_ranks(scores: torch.Tensor, right: Right) -> torch.Tensor:
    """Return the ranks of right images among (T, I) scores as `rank` sorts them: (T, G) int64.

    From 1, in rising order; `NONE` stands where a text has fewer. Only scores are sorted, and not
    their columns with them: ten times as fast.
    """
    values, ordered = scores.gather(1, right.columns), _sorted(scores)
    end = torch.searchsorted(ordered, values, right=True)
    ranks = scores.shape[1] - end + 1
    tied = right.there & (end - torch.searchsorted(ordered, values) > 1)
    for place in tied.any(dim=0).nonzero().flatten().tolist():
        texts = tied[:, place].nonzero().flatten()
        equal = scores[texts] == values[texts, place, None]
        earlier = (
            torch.arange(scores.shape[1], device=scores.device) < right.columns[texts, place, None]
        )
        ranks[texts, place] += (equal & earlier).sum(dim=1)
    return ranks.masked_fill(~right.there, NONE).sort(dim=1).values


def _sorted(scores: torch.Tensor) -> torch.Tensor:
    """Sort each row, lowest first."""
    if scores.dtype == torch.float32 and scores.device.type == "cpu":
        # NumPy has vectorised sorting, a tenth of PyTorch's time.
        return torch.from_numpy(np.sort(scores.detach().contiguous().numpy(), axis=1))
    return scores.sort(dim=1).values


def text_figures(ranks: torch.Tensor) -> npt.NDArray[np.float64]:
    """Return each text's own figures from its `right_ranks`: (T, G) to (T, F), as `FIGURES`."""
    there = ranks != NONE
    found_by = [(ranks[:, 0] <= cutoff).double() for cutoff in CUTOFFS]
    numbers = torch.arange(1, ranks.shape[1] + 1, device=ranks.device, dtype=torch.float64)
    total = there.sum(dim=1).double()
    precision = torch.where(there, numbers / ranks, 0.0).sum(dim=1) / total
    last = ranks.where(there, 0).amax(dim=1)
    return torch.stack((*found_by, precision, total / last), dim=1).cpu().numpy()


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
    if not stable:
        matrix = -rank(matrix, stable=False).argsort(dim=1)
    ranks = right_ranks(matrix, Right.of(texts, images))
    return summarise_texts(text_figures(ranks), texts.cpu().numpy())
