"""The pictures and captions of a split, whole and in order, for evaluation.

Shapes: I pictures, T captions, B pictures of a batch, H height, W width.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch

from maskery.core.batch import TokenBatch
from maskery.core.errors import DataError
from maskery.data.images.config import ViewConfig
from maskery.data.images.views import normalise, view_pixels
from maskery.data.pairs.captions import CaptionTokens
from maskery.data.pairs.pairs import Pairs
from maskery.data.pairs.pictures import Pictures


class HeldOutPersons:
    """Every picture of a split as a gallery, and every caption of them as a query.

    Args:
        pairs: The split.
        captions: Its captions.
        pictures: Its pictures; those that cannot be read leave the gallery with their captions.
        view: With size and normalisation set.
        batch_images: Pictures read at once; nothing else depends on it.
    """

    def __init__(
        self,
        pairs: Pairs,
        captions: CaptionTokens,
        pictures: Pictures,
        view: ViewConfig,
        *,
        batch_images: int = 64,
    ) -> None:
        self.pairs, self.captions, self.pictures, self.view = pairs, captions, pictures, view
        self.batch_images = batch_images

    @cached_property
    def gallery(self) -> npt.NDArray[np.int64]:
        """(I,) int64: the pairs whose picture can be read.

        Raises:
            DataError: There is none.
        """
        sound = [
            index
            for members in self._members(np.arange(len(self.pairs)))
            for index, image in zip(members, self.pictures.load(members), strict=True)
            if image is not None
        ]
        if not sound:
            raise DataError(f"no picture of the gallery can be read ({self.pictures.skipped})")
        return np.array(sound, np.int64)

    @cached_property
    def queries(self) -> npt.NDArray[np.int64]:
        """(T,) int64: the captions of the gallery's pictures."""
        return np.flatnonzero(np.isin(self.captions.owners, self.gallery))

    @property
    def image_persons(self) -> npt.NDArray[np.int64]:
        """(I,) int64: who each picture shows."""
        return self.pairs.persons[self.gallery]

    @property
    def text_persons(self) -> npt.NDArray[np.int64]:
        """(T,) int64: who each caption describes."""
        return self.pairs.persons[self.captions.owners[self.queries]]

    def texts_of(self, queries: npt.NDArray[np.int64]) -> TokenBatch:
        """Some of the T captions."""
        captions = self.queries[queries]
        return self.captions.batch(captions, self.pairs.ids[self.captions.owners[captions]])

    def caption(self, query: int) -> str:
        """The words of one of the T captions."""
        index = self.queries[query]
        owner, place = int(self.captions.owners[index]), int(self.captions.places[index])
        return self.pairs[owner].captions[place]

    def images(self) -> Iterator[torch.Tensor]:
        """(B, 3, H, W) float32, normalised: the I pictures in order."""
        for members in self._members(self.gallery):
            loaded = self.pictures.load(members)
            pixels = [view_pixels(image, self.view) for image in loaded if image is not None]
            yield normalise(np.stack(pixels), self.view)

    def _members(self, indices: npt.NDArray[np.int64]) -> Iterator[list[int]]:
        for first in range(0, len(indices), self.batch_images):
            yield indices[first : first + self.batch_images].tolist()
