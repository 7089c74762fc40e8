"""R@k, mAP and mINP of rankings.

Means over texts. Of one, its G right images at ranks r_1 < ... < r_G of the whole gallery, R@k is 1
if r_1 <= k; the average precision is the mean of j / r_j; the inverse negative penalty is G / r_G
(Ye et al., "Deep Learning for Person Re-identification", TPAMI 2021, section 3.3).

Shapes: T texts (queries), I images (gallery), G right images of a text, F = 5 figures.
"""

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt
import torch

from maskery.core.batch import Floats, Ints
from maskery.core.errors import DataError
from maskery.evaluation.intervals import Interval, grouped_interval

CUTOFFS = (1, 5, 10)  # the ranks that the literature of person search reports
NONE = torch.iinfo(torch.int64).max  # in the place of a rank where there is none


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
    """Sort (T, I) scores, higher is better, to (T, I) int64 columns, best first."""
    # Stable, ties stay in the gallery's order; else as the release leaves them.
    return torch.sort(scores, dim=1, descending=True, stable=stable).indices


def best(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Return the first `count` columns of `rank`, (T, count), without sorting the others."""
    values, columns = scores.topk(min(count + 1, scores.shape[1]), dim=1)
    found = columns[:, :count].contiguous()
    tied = (values[:, 1:] == values[:, :-1]).any(dim=1).nonzero().flatten()
    found[tied] = rank(scores[tied])[:, :count]
    return found


def right_columns(text_persons: torch.Tensor, image_persons: torch.Tensor) -> torch.Tensor:
    """Return the images of the person whom each text describes: (T, G), -1 where it has fewer."""
    order = image_persons.argsort(stable=True)
    shown = image_persons[order]
    first = torch.searchsorted(shown, text_persons)
    counts = torch.searchsorted(shown, text_persons, right=True) - first
    if len(unseen := text_persons[counts == 0]):
        problem = f"{len(unseen)} of {len(counts)} texts describe persons that no image shows"
        told = f"{problem} (the first: person {int(unseen[0])})"
        raise DataError(f"{told}; leave these texts out, or bring the images")
    steps = torch.arange(int(counts.max()), device=order.device)
    places = (first[:, None] + steps).clamp(max=len(order) - 1)
    return order[places].where(steps < counts[:, None], -1)


def right_ranks(scores: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Return the ranks of `right_columns` among (T, I) scores, (T, G) int64 from 1, rising.

    As `rank` sorts them; `NONE` stands where a text has fewer.
    """
    columns, there = right.clamp(min=0).to(scores.device), right.to(scores.device) >= 0
    values = scores.gather(1, columns)
    if scores.dtype == torch.float32 and scores.device.type == "cpu":
        # NumPy has vectorised sorting, a tenth of PyTorch's time.
        ordered = torch.from_numpy(np.sort(scores.detach().contiguous().numpy()))
    else:
        ordered = scores.sort(dim=1).values
    end = torch.searchsorted(ordered, values, right=True)
    ranks = scores.shape[1] - end + 1
    equal = end - torch.searchsorted(ordered, values) > 1
    tied = (equal & there).any(dim=1).nonzero().flatten()
    ranks[tied] = rank(scores[tied]).argsort(dim=1).gather(1, columns[tied]) + 1
    return ranks.masked_fill(~there, NONE).sort(dim=1).values


def text_figures(ranks: torch.Tensor) -> Floats:
    """Return each text's own figures from its `right_ranks`: (T, G) to (T, F), as `FIGURES`."""
    there = ranks != NONE
    found_by = [(ranks[:, 0] <= cutoff).double() for cutoff in CUTOFFS]
    numbers = torch.arange(1, ranks.shape[1] + 1, device=ranks.device, dtype=torch.float64)
    total = there.sum(dim=1).double()
    precision = torch.where(there, numbers / ranks, 0.0).sum(dim=1) / total
    last = ranks.where(there, 0).amax(dim=1)
    return torch.stack((*found_by, precision, total / last), dim=1).cpu().numpy()


def summarise_texts(figures: Floats, text_persons: Ints) -> RankingFigures:
    """Return means over texts, with intervals over persons, since texts of one are dependent."""
    intervals = (grouped_interval(column, text_persons) for column in figures.T)
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
        DataError: A text has no right image, the shapes do not fit, or a score is NaN.
    """
    matrix, texts, images = (torch.as_tensor(v) for v in (scores, text_persons, image_persons))
    if matrix.shape != (len(texts), len(images)) or not len(texts):
        given = f"{len(texts)} texts and {len(images)} images"
        problem = f"the scores have shape {tuple(matrix.shape)}, with {given}"
        raise DataError(f"{problem}; give one row a text and one column an image")
    if matrix.isnan().any():
        raise DataError("a score is not a number (NaN), which has no rank; mend the scores")
    if not stable:
        matrix = -rank(matrix, stable=False).argsort(dim=1)
    ranks = right_ranks(matrix, right_columns(texts, images))
    return summarise_texts(text_figures(ranks), texts.cpu().numpy())
