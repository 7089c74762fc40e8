from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image

from maskery.core.errors import DataError
from maskery.data.gallery import digest_of, find_pictures, read_picture


def test_pictures_are_found_by_suffix_in_order(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("b.JPG", "a/c.png", "a/notes.txt", ".hidden.png", ".cache/d.png", "a/e.webp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"12345")
    (tmp_path / "lost.png").symlink_to(tmp_path / "nowhere.png")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    (tmp_path / "a" / "round").symlink_to(tmp_path)
    found = find_pictures(tmp_path)
    assert "passed over in the gallery: 2 entries, no regular files" in caplog.text
    assert "1 entry, without a picture's ending" in caplog.text
    assert "first 'a/notes.txt'" in caplog.text
    with pytest.raises(DataError, match="is no regular file"):
        read_picture(tmp_path, "pipe.png")
    assert list(found) == ["a/c.png", "a/e.webp", "b.JPG"]
    assert found["b.JPG"].size == 5
    before = found["b.JPG"]
    os.utime(tmp_path / "b.JPG", ns=(1, 1))
    assert find_pictures(tmp_path)["b.JPG"] == (before.size, 1)


def test_rare_endings_and_names_without_one(tmp_path: Path) -> None:
    names = ["a.jfif", "b.APNG", "c.jpe", "f00dcafe", "v1.2/picture"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert list(find_pictures(tmp_path)) == names


def test_folders_that_cannot_be_used_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="is a file"):
        find_pictures(tmp_path / "file")
    with pytest.raises(DataError, match="does not exist"):
        find_pictures(tmp_path / "nowhere")
    with pytest.raises(DataError, match="cannot be read"):
        read_picture(tmp_path, "nowhere.png")


def test_equal_contents_have_equal_digests(tmp_path: Path) -> None:
    for name, colour in (("a.png", "red"), ("b.png", "red"), ("c.png", "blue")):
        Image.new("RGB", (4, 6), colour).save(tmp_path / name)
    first, same, other = (read_picture(tmp_path, f"{name}.png") for name in "abc")
    assert digest_of(first) == digest_of(same) != digest_of(other)
    assert len(digest_of(first)) == 16
    assert first.load().size == (4, 6)
