"""Examples with a picture each: their order in an epoch, and two random views of their pictures.

Everything random is a function of (seed, epoch, example).

Shapes: N examples, B examples of a batch, H height, W width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from maskery.core.errors import DataError
from maskery.data.images.config import ViewConfig
from maskery.data.images.views import normalise, view_draws, view_pixels
from maskery.data.pairs.pictures import Pictures
from maskery.data.plan import Plan, plan_epoch

if TYPE_CHECKING:
    from PIL.Image import Image


class PicturedExamples:
    """What the training batches of pairs and of persons have in common.

    Args:
        ids: (N,) uint64, of the examples.
        pairs: (N,) int64: the pair whose picture an example has.
        pictures: Of the pairs.
        view: With size and normalisation set.
        batch_size: The examples of a step, over all processes.
        seed: Of order and views.
    """

    def __init__(
        self,
        ids: npt.NDArray[np.uint64],
        pairs: npt.NDArray[np.int64],
        pictures: Pictures,
        view: ViewConfig,
        *,
        batch_size: int,
        seed: int,
    ) -> None:
        self.ids, self.pairs, self.pictures, self.view = ids, pairs, pictures, view
        self.batch_size, self.seed = batch_size, seed
        self._plan: tuple[int, Plan] | None = None

    def plan(self, epoch: int) -> Plan:
        """The steps of an epoch; the latest is kept."""
        if self._plan is None or self._plan[0] != epoch:
            # Every example counts as one token of the budget.
            plan = plan_epoch(
                np.ones(len(self.ids), np.int64),
                seed=self.seed,
                epoch=epoch,
                batch_tokens=self.batch_size,
            )
            self._plan = (epoch, plan)
        return self._plan[1]

    def readable(
        self, members: npt.NDArray[np.int64], epoch: int
    ) -> tuple[npt.NDArray[np.int64], list[Image]]:
        """Those of some examples whose picture can be read, or else the next in the order.

        Raises:
            DataError: No picture can be read, or one cannot and none is to be skipped.
        """
        loaded = self.pictures.load(self.pairs[members].tolist())
        if any(image is not None for image in loaded):
            kept = np.array([image is not None for image in loaded])
            return members[kept], [image for image in loaded if image is not None]
        order = self.plan(epoch).order
        last = members[-1] if len(members) else order[-1]
        at = int(np.flatnonzero(order == last)[0])
        for example in np.roll(order, -at - 1).tolist():
            image = self.pictures.load([int(self.pairs[example])])[0]
            if image is not None:
                return np.array([example], np.int64), [image]
        raise DataError(f"no picture of the pairs can be read ({self.pictures.skipped})")

    def views(
        self, images: list[Image], ids: npt.NDArray[np.uint64], epoch: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Two random views of each picture: (B, 3, H, W) float32, normalised."""
        first, second = (
            self._view(images, view_draws(self.seed, epoch, ids, view=number)) for number in (0, 1)
        )
        return first, second

    def _view(self, images: list[Image], draws: npt.NDArray[np.float32]) -> torch.Tensor:
        pixels = [
            view_pixels(image, self.view, row) for image, row in zip(images, draws, strict=True)
        ]
        return normalise(np.stack(pixels), self.view)
