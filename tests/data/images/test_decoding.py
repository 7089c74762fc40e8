from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest
from PIL import Image

from maskery.core.errors import DataError
from maskery.data.images.loading import Skipped, decode_many


@dataclass
class Ref:
    """A picture as wide as its number; every third is broken."""

    number: int

    def load(self, near: tuple[int, int] | None = None) -> Image.Image:
        if self.number % 3 == 2:
            raise DataError(f"image {self.number} is damaged")
        return Image.new("RGB", (self.number + 1, 1))


REFS = [Ref(number) for number in range(8)]


@pytest.mark.parametrize("threads", [0, 3])
def test_order_is_kept_and_broken_ones_are_counted(threads: int) -> None:
    skipped = Skipped("image", "skip")
    if threads:
        with ThreadPoolExecutor(threads) as pool:
            images = decode_many(REFS, skipped, pool=pool)
    else:
        images = decode_many(REFS, skipped)
    assert [image and image.width for image in images] == [1, 2, None, 4, 5, None, 7, 8]
    assert skipped.count == 2
    assert str(skipped) == "2 images skipped; the first: image 2 is damaged"


def test_failing_raises_the_first_in_order() -> None:
    with ThreadPoolExecutor(3) as pool, pytest.raises(DataError, match="image 2 is damaged"):
        decode_many(REFS, Skipped("image", "fail"), pool=pool)


def test_nothing_to_tell() -> None:
    assert str(Skipped("image", "skip")) == ""
