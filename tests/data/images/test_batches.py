from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from maskery.core.errors import DataError
from maskery.data.images.config import HALF_MEAN, HALF_STD, ViewConfig
from maskery.data.images.loading import ImageRef, Skipped
from maskery.data.images.views import view, view_batches

VIEW = ViewConfig(height=8, width=4, mean=HALF_MEAN, std=HALF_STD)


def refs(folder: Path, broken: tuple[int, ...] = ()) -> list[ImageRef]:
    for number in range(7):
        path = folder / f"{number}.png"
        if number in broken:
            path.write_bytes(b"no picture")
        else:
            Image.new("RGB", (9, 9), (number * 30, 0, 0)).save(path)
    return [ImageRef.file(f"{n}.png", folder, 10_000) for n in range(7)]


def test_batches_hold_the_views_of_evaluation_in_order(tmp_path: Path) -> None:
    pictures = refs(tmp_path)
    batches = list(view_batches(pictures, VIEW, Skipped("image", "fail"), batch_images=3))
    assert [indices for indices, _ in batches] == [[0, 1, 2], [3, 4, 5], [6]]
    expected = torch.stack([view(ref.load(), VIEW) for ref in pictures])
    assert torch.equal(torch.cat([pixels for _, pixels in batches]), expected)


def test_pictures_that_cannot_be_read_are_left_out_and_told(tmp_path: Path) -> None:
    pictures, skipped = refs(tmp_path, broken=(1, 6)), Skipped("image", "skip")
    batches = list(view_batches(pictures, VIEW, skipped, batch_images=3))
    assert [indices for indices, _ in batches] == [[0, 2], [3, 4, 5]]
    assert skipped.count == 2
    with pytest.raises(DataError, match="not a picture"):
        list(view_batches(pictures, VIEW, Skipped("image", "fail")))
