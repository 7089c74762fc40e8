from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from tiny_pairs import save_tiny_pairs

from maskery.core.errors import DataError
from maskery.data.images.loading import ImageRef
from maskery.data.pairs.batches import BYTES_PER_PIXEL, Pictures
from maskery.data.pairs.pairs import Pairs
from maskery.data.pairs.records import Reader


def test_what_fits_stays_in_memory_and_the_rest_is_read_again(tmp_path: Path) -> None:
    pairs = Pairs.open(save_tiny_pairs(tmp_path, 4))
    pictures = Pictures(pairs, "skip", near=None, cache_bytes=2 * 16 * 16 * BYTES_PER_PIXEL)
    first = pictures.load([0, 1, 2, 3])
    assert all(image is not None for image in first)
    for number in range(4):
        (tmp_path / f"{number:03d}.png").unlink()
    again = pictures.load([3, 2, 1, 0, 0])
    assert [image is not None for image in again] == [False, False, True, True, True]
    np.testing.assert_array_equal(np.asarray(again[3]), np.asarray(first[0]))
    assert pictures.skipped.count == 2
    pictures.load([3, 2])
    assert pictures.skipped.count == 2  # told of once


def ref(root: Path, name: str, max_pixels: int = 10_000) -> ImageRef:
    return ImageRef.file(name, root, max_pixels)


def test_a_file_is_loaded(root: Path) -> None:
    assert ref(root, "imgs/0.png").load().size == (4, 3)


def test_links_within_the_root_are_followed(root: Path) -> None:
    (root / "link.png").symlink_to(root / "imgs" / "0.png")
    assert ref(root, "link.png").load().size == (4, 3)


def test_the_root_itself_may_be_a_link(root: Path, tmp_path: Path) -> None:
    (tmp_path / "linked").symlink_to(root)
    assert ref(tmp_path / "linked", "imgs/0.png").load().size == (4, 3)


def test_links_out_of_the_root_are_refused(root: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.png"
    outside.write_bytes((root / "imgs" / "0.png").read_bytes())
    (root / "link.png").symlink_to(outside)
    (root / "folder").symlink_to(tmp_path)
    for name in ("link.png", "folder/outside.png"):
        with pytest.raises(DataError, match="leads out of the image folder"):
            ref(root, name).load()


def test_missing_files_and_loops(root: Path) -> None:
    with pytest.raises(DataError, match=r"nothing\.png cannot be read \(No such file"):
        ref(root, "nothing.png").load()
    (root / "loop.png").symlink_to(root / "loop.png")
    with pytest.raises(DataError, match=r"loop\.png cannot be read"):
        ref(root, "loop.png").load()
    with pytest.raises(DataError, match="cannot be read"):
        ref(root, "x" * 5000).load()


def test_folders_and_pipes_are_no_images(root: Path) -> None:
    os.mkfifo(root / "pipe.png")
    for name in ("imgs", "pipe.png"):
        with pytest.raises(DataError, match="is no regular file"):
            ref(root, name).load()


def test_limits_reach_the_decoder(root: Path) -> None:
    with pytest.raises(DataError, match="4 x 3 pixels, more than the 11 allowed"):
        ref(root, "imgs/0.png", max_pixels=11).load()


def test_stored_images_are_read_at_their_place(pictures: list[bytes]) -> None:
    class Store:
        def read(self, place: tuple[int, int, int]) -> bytes:
            return pictures[place[1]]

    image = Reader((), Path(), 10_000, Store().read).ref("shard/1.png", (0, 1, 0))
    assert image.load().getpixel((0, 0)) == (0, 250, 0)
    with pytest.raises(DataError, match=r"shard/1\.png has 4 x 3 pixels"):
        Reader((), Path(), 1, Store().read).ref("shard/1.png", (0, 1, 0)).load()
