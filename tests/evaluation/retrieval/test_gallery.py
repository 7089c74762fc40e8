from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_image_text import new_image_text, save_tiny_image_text

from maskery.core.errors import DataError, ModelError
from maskery.data.gallery import GalleryStore
from maskery.data.images.loading import ImageRef
from maskery.data.images.views import view
from maskery.evaluation.image_text.opening import OpenImageText, open_image_text
from maskery.evaluation.retrieval.search import Gallery, fingerprint, index_folder, open_gallery


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> OpenImageText:
    return open_image_text(str(save_tiny_image_text(tmp_path_factory.mktemp("model"))))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pictures = tmp_path / "pictures"
    (pictures / "more").mkdir(parents=True)
    for number in range(7):
        draw(pictures / f"{number}.png", number)
    draw(pictures / "more" / "7.png", 7)
    return pictures


def draw(path: Path, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 255, (16, 16, 3), np.uint8)
    Image.fromarray(pixels).save(path)


def look(opened: OpenImageText, folder: Path, *, rehash: bool = False) -> Gallery:
    return open_gallery(
        opened, folder, cache_dir=folder.parent / "cache", batch_images=3, rehash=rehash
    )


def test_rows_are_the_features_of_the_pictures(opened: OpenImageText, folder: Path) -> None:
    gallery = look(opened, folder)
    assert (gallery.changes.read, gallery.changes.encoded, len(gallery)) == (8, 8, 8)
    paths = gallery.paths
    assert paths == [*(f"{n}.png" for n in range(7)), "more/7.png"]
    pixels = torch.stack(
        [view(ImageRef.file(path, folder, 999).load(), opened.view) for path in paths]
    )
    with torch.no_grad():
        expected = opened.model.image_feature(opened.model.encode_image(pixels))
    np.testing.assert_allclose(gallery.matrix, expected.numpy(), atol=1e-3)


def test_only_what_is_new_is_encoded(opened: OpenImageText, folder: Path) -> None:
    first = look(opened, folder)
    again = look(opened, folder)
    assert (again.changes.read, again.changes.encoded, again.changes.removed) == (0, 0, 0)

    (folder / "0.png").unlink()  # gone
    (folder / "1.png").rename(folder / "one.png")  # moved
    draw(folder / "2.png", 22)  # changed
    draw(folder / "8.png", 8)  # new
    (folder / "copy.png").write_bytes((folder / "3.png").read_bytes())  # a copy
    (folder / "notes.txt").touch()
    changed = look(opened, folder)
    assert changed.changes.encoded == 2
    assert changed.changes.removed == 2
    paths = changed.paths
    assert paths == sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.png"))
    rows = dict(zip(paths, changed.matrix.tolist(), strict=True))
    assert rows["one.png"] == first.matrix[1].tolist()
    assert rows["copy.png"] == rows["3.png"] == first.matrix[3].tolist()
    assert rows["2.png"] != first.matrix[2].tolist()


def test_a_change_that_size_and_time_hide_is_found_by_rehash(
    opened: OpenImageText, folder: Path
) -> None:
    Image.new("RGB", (9, 9), (1, 2, 3)).save(folder / "a.bmp")
    look(opened, folder)
    status = (folder / "a.bmp").stat()
    Image.new("RGB", (9, 9), (200, 2, 3)).save(folder / "a.bmp")
    os.utime(folder / "a.bmp", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert look(opened, folder).changes.encoded == 0
    assert look(opened, folder, rehash=True).changes.encoded == 1


def test_an_interrupted_run_is_continued(
    opened: OpenImageText, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, calls = GalleryStore.save, []

    def interrupted(self: GalleryStore, *batch: Any) -> None:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        save(self, *batch)

    monkeypatch.setattr(GalleryStore, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        look(opened, folder)
    monkeypatch.undo()
    gallery = look(opened, folder)
    assert (gallery.changes.encoded, len(gallery)) == (2, 8)


def test_pictures_that_cannot_be_read_are_told_every_time(
    opened: OpenImageText, folder: Path
) -> None:
    (folder / "3.png").write_bytes(b"no picture")
    (folder / "4.png").write_bytes(b"")
    for again in range(2):
        gallery = look(opened, folder)
        assert len(gallery) == 6
        assert gallery.changes.encoded == (0 if again else 6)
        assert [("3.png" in t, "4.png" in t) for t in gallery.troubles] == [
            (True, False),
            (False, True),
        ]


def test_a_damaged_index_is_made_anew(
    opened: OpenImageText, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = look(opened, folder).matrix.tolist()
    index = index_folder(folder.parent / "cache", folder, fingerprint(opened))
    content = bytearray((index / "index.sqlite").read_bytes())
    content[4096:] = b"\x07" * (len(content) - 4096)
    (index / "index.sqlite").write_bytes(bytes(content))
    with caplog.at_level(logging.WARNING, "maskery"):
        gallery = look(opened, folder)
    assert "is damaged" in caplog.text
    assert gallery.changes.encoded == 8
    assert gallery.matrix.tolist() == expected


def test_another_model_or_preparation_has_an_index_of_its_own(
    opened: OpenImageText, tmp_path: Path
) -> None:
    import dataclasses

    other = open_image_text(str(save_tiny_image_text(tmp_path / "other", new_image_text(1))))
    smaller = dataclasses.replace(opened, view=dataclasses.replace(opened.view, height=8))
    prints = [fingerprint(one) for one in (opened, other, smaller)]
    assert len(set(prints)) == 3
    assert fingerprint(opened) == prints[0]


@pytest.mark.parametrize("letter", ["n", "é", "\udcff"])
def test_long_and_odd_names_of_galleries(
    opened: OpenImageText, tmp_path: Path, letter: str
) -> None:
    name = letter * (254 // len(os.fsencode(letter)))
    (tmp_path / name).mkdir()
    draw(tmp_path / name / "0.png", 0)
    assert len(look(opened, tmp_path / name)) == 1
    index = index_folder(tmp_path / "cache", tmp_path / name, fingerprint(opened))
    assert (index / "index.sqlite").is_file()
    index.name.encode("utf-8")
    # What tells galleries apart is the whole path.
    other = index_folder(tmp_path / "cache", tmp_path / f"{name[:-1]}m", fingerprint(opened))
    assert other != index


def test_galleries_without_pictures_are_one_line(opened: OpenImageText, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "notes.txt").touch()
    with pytest.raises(DataError, match="no picture in it"):
        look(opened, empty)
    (empty / "a.jpg").write_bytes(b"x")
    (empty / "b.jpg").write_bytes(b"y")
    with pytest.raises(DataError, match="no readable picture: 2 were skipped; the first: image"):
        look(opened, empty)


def test_a_model_without_contrast_is_refused(folder: Path, tmp_path: Path) -> None:
    mute = new_image_text(contrast=False)
    opened = open_image_text(str(save_tiny_image_text(tmp_path / "mute", mute)))
    with pytest.raises(ModelError, match="were never trained"):
        look(opened, folder)
