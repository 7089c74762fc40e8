"""The pictures of pairs, decoded in threads and kept in memory while there is room."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Literal

from maskery.data.images.decoding import decode_many
from maskery.data.images.skipped import Skipped
from maskery.data.pairs.pairs import Pairs

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_WORKERS = 8
BICUBIC = 3
"""Pillow's number of the filter that views resize with."""
BYTES_PER_PIXEL = 4
"""Pillow pads red, green and blue to a word."""


class Pictures:
    """Decodes the pictures of pairs by index.

    A picture that cannot be read is reported once and is None from then on.

    Attributes:
        skipped: Pictures that could not be read.
    """

    def __init__(
        self,
        pairs: Pairs,
        on_bad_image: Literal["skip", "fail"],
        *,
        near: tuple[int, int] | None,
        cache_bytes: int = 0,
    ) -> None:
        """Nothing is read yet.

        Args:
            pairs: Whose pictures.
            on_bad_image: `"fail"` raises at the first that cannot be read.
            near: (width, height) that will be asked of them: they are brought to it once, before
                they are kept. None where they are still to be cropped.
            cache_bytes: How much decoded pictures may take in memory; those that come first stay,
                because every epoch comes back to them in another order.
        """
        self.skipped = Skipped("image", on_bad_image)
        self._pairs, self._near = pairs, near
        self._room = cache_bytes
        self._kept: dict[int, Image | None] = {}
        self._pool = ThreadPoolExecutor(min(MAX_WORKERS, os.cpu_count() or 1), "decode")

    def load(self, indices: Sequence[int]) -> list[Image | None]:
        """The RGB pictures of some pairs, None for those that were skipped.

        Raises:
            DataError: One cannot be read, and the policy is to fail.
        """
        wanted = [i for i in dict.fromkeys(indices) if i not in self._kept]
        refs = [self._pairs[i].image for i in wanted]
        images = decode_many(refs, self.skipped, near=self._near, pool=self._pool)
        decoded = dict(zip(wanted, map(self._resized, images), strict=True))
        for index, image in decoded.items():
            size = 0 if image is None else image.width * image.height * BYTES_PER_PIXEL
            if size <= self._room:
                self._room -= size
                self._kept[index] = image
        return [decoded[i] if i in decoded else self._kept[i] for i in indices]

    def _resized(self, image: Image | None) -> Image | None:
        """What a view would make of the picture first, so that no epoch does it again."""
        if image is None or self._near is None:
            return image
        return image.resize(self._near, BICUBIC)
