"""A few held-out captions with the pictures that were found for them, to be looked at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from maskery.data.person_search.batches import HeldOutPersons

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, kw_only=True)
class FoundPicture:
    """A picture of the gallery.

    Attributes:
        image: RGB, as loaded.
        right: Whether it shows who is described.
    """

    image: Image
    right: bool


@dataclass(frozen=True, kw_only=True)
class SearchSample:
    """A caption and its best pictures.

    Attributes:
        caption: As written.
        found: Best first.
    """

    caption: str
    found: tuple[FoundPicture, ...]


def spread_queries(num_texts: int, count: int = 5) -> npt.NDArray[np.int64]:
    """At most `count` of T texts, evenly over all of them whatever is found for them: (Q,) int64.

    Args:
        num_texts: T, at least 1.
        count: Q, where there are as many.
    """
    return np.unique(np.linspace(0, num_texts - 1, count + 2).astype(np.int64)[1:-1])


def sample_searches(
    split: HeldOutPersons,
    queries: npt.NDArray[np.int64],
    ranking: torch.Tensor,
    *,
    count: int = 10,
) -> tuple[SearchSample, ...]:
    """The best pictures of some captions.

    Args:
        split: Whose captions and pictures.
        queries: (Q,) int64, of its T captions.
        ranking: (Q, K) int64, the best of its I pictures for each, best first.
        count: Pictures of each caption.
    """
    samples = []
    for query, row in zip(queries.tolist(), ranking[:, :count].tolist(), strict=True):
        person = split.text_persons[query]
        images = split.pictures.load(split.gallery[row].tolist())
        found = tuple(
            FoundPicture(image=image, right=bool(split.image_persons[place] == person))
            for place, image in zip(row, images, strict=True)
            if image is not None
        )
        samples.append(SearchSample(caption=split.caption(query), found=found))
    return tuple(samples)
