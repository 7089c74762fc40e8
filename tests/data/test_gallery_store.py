from __future__ import annotations

import logging
import sqlite3
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save

from maskery.core.errors import DataError
from maskery.data.gallery import DamagedIndex, GalleryStore, Stamp, open_store

WIDTH = 4


def feature(number: int) -> np.ndarray:
    return np.full(WIDTH, number, np.float16)


def digest(number: int) -> bytes:
    return bytes([number]) * 16


def fill(store: GalleryStore) -> None:
    files = {f"{name}.png": (Stamp(1, n), digest(n)) for n, name in enumerate("dbca")}
    features = {digest(n): feature(n) for n in (0, 1, 3)}
    store.save(files, features, {digest(2): "c is damaged"})


@pytest.fixture
def store(tmp_path: Path) -> GalleryStore:
    made = open_store(tmp_path / "index", WIDTH)
    fill(made)
    return made


def firsts(store: GalleryStore) -> dict[str, float]:
    """The first number of each picture's feature, by path."""
    found = store.snapshot()
    return dict(zip(found.paths, found.features[:, 0].tolist(), strict=True))


def test_rows_follow_paths_and_leave_out_what_cannot_be_read(store: GalleryStore) -> None:
    assert store.files() == {f"{name}.png": (1, n) for n, name in enumerate("dbca")}
    found = store.snapshot()
    assert found.features.dtype == np.float16
    assert found.features.tolist() == [[3.0] * 4, [1.0] * 4, [0.0] * 4]
    assert found.paths == ["a.png", "b.png", "d.png"]
    assert store.troubles() == ["c is damaged"]
    assert store.known([digest(2), digest(9), digest(0)]) == {digest(2), digest(0)}


def test_the_snapshot_follows_changes_and_is_otherwise_kept(store: GalleryStore) -> None:
    store.snapshot()
    (path,) = store.folder.glob("features*")
    before = path.stat()
    store.snapshot()
    assert list(store.folder.glob("features*")) == [path]
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    store.forget(["a.png"])
    store.save({"e.png": (Stamp(2, 2), digest(0))}, {}, {})  # a copy of d.png
    assert firsts(store) == {"b.png": 1.0, "d.png": 0.0, "e.png": 0.0}
    assert len(list(store.folder.glob("features*"))) == 1
    assert store.known([digest(3)]) == set()


def test_another_process_sees_it(store: GalleryStore) -> None:
    expected = firsts(store)
    again = open_store(store.folder, WIDTH)
    assert firsts(again) == expected
    assert again.files() == store.files()


def test_who_has_opened_a_snapshot_keeps_it(store: GalleryStore) -> None:
    store.snapshot()
    opened = store.snapshot()  # from the file
    other = open_store(store.folder, WIDTH)
    other.save({"0.png": (Stamp(1, 9), digest(9))}, {digest(9): feature(9)}, {})
    assert firsts(other) == {"0.png": 9.0, "a.png": 3.0, "b.png": 1.0, "d.png": 0.0}
    assert opened.paths == ["a.png", "b.png", "d.png"]
    assert opened.features[:, 0].tolist() == [3.0, 1.0, 0.0]
    assert firsts(store) == firsts(other)


def test_a_snapshot_that_was_overtaken_is_not_taken_for_the_latest(
    store: GalleryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another program changes the index before the first has put its snapshot in place."""
    other, replace = open_store(store.folder, WIDTH), Path.replace

    def late(made: Path, place: Path) -> None:
        monkeypatch.undo()
        other.save({"0.png": (Stamp(1, 9), digest(9))}, {digest(9): feature(9)}, {})
        assert "0.png" in firsts(other)
        replace(made, place)

    monkeypatch.setattr(Path, "replace", late)
    assert list(firsts(store)) == ["a.png", "b.png", "d.png"]  # as of one moment
    assert list(firsts(other)) == ["0.png", "a.png", "b.png", "d.png"]


def test_a_lost_cut_or_foreign_snapshot_is_made_again(store: GalleryStore) -> None:
    expected = firsts(store)
    (path,) = store.folder.glob("features*")
    whole = path.read_bytes()
    for content in (b"", whole[:-3], whole[:50], b"{}"):
        path.write_bytes(content)
        assert firsts(store) == expected
        assert path.read_bytes() == whole
    path.unlink()
    assert firsts(store) == expected
    path.write_bytes(save({"features": torch.zeros(3, WIDTH)}))
    assert firsts(store) == expected


def test_an_index_with_a_column_more_is_still_read(store: GalleryStore) -> None:
    """Indices used to number the rows of their matrix."""
    with sqlite3.connect(store.folder / "index.sqlite") as database:
        database.execute("ALTER TABLE files ADD COLUMN row INTEGER")
        database.execute("DELETE FROM about WHERE name = 'version'")
    database.close()
    again = open_store(store.folder, WIDTH)
    again.save({"0.png": (Stamp(1, 9), digest(9))}, {digest(9): feature(9)}, {})
    assert list(firsts(again)) == ["0.png", "a.png", "b.png", "d.png"]


def test_a_snapshot_that_cannot_be_written_is_one_line(
    store: GalleryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(DataError, match=r"No space left .*--cache-dir"):
        store.snapshot()
    assert not list(store.folder.glob("features*"))


def test_an_interrupted_batch_leaves_nothing(store: GalleryStore) -> None:
    def broken() -> object:
        yield digest(7), feature(7)
        raise KeyboardInterrupt

    class Features(dict):  # type: ignore[type-arg]
        items = staticmethod(broken)  # type: ignore[assignment]

    with pytest.raises(KeyboardInterrupt):
        store.save({"z.png": (Stamp(1, 1), digest(7))}, Features(), {})
    assert "z.png" not in store.files()
    assert store.known([digest(7)]) == set()


@pytest.mark.parametrize("damage", ["noise", "other layout", "other width", "no tables"])
def test_a_damaged_index_is_made_anew_with_a_line(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "index"
    store = open_store(folder, WIDTH)
    fill(store)
    store.snapshot()
    path, width = folder / "index.sqlite", WIDTH
    if damage == "noise":
        path.write_bytes(b"not a database at all " * 100)
    elif damage == "other width":
        width = WIDTH + 1
    else:
        with sqlite3.connect(path) as database:
            command = "PRAGMA user_version = 9" if damage == "other layout" else "DROP TABLE about"
            database.execute(command)
        database.close()
    with caplog.at_level(logging.WARNING, "maskery"):
        again = open_store(folder, width)
    assert "is damaged" in caplog.text
    assert again.files() == {}
    assert not list(folder.glob("features*"))


def test_damage_that_shows_later_is_told(store: GalleryStore) -> None:
    store.save({"y.png": (Stamp(1, 1), digest(8))}, {digest(8): np.zeros(3, np.float16)}, {})
    with pytest.raises(DamagedIndex, match="6 bytes"):
        store.snapshot()


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot be made"):
        open_store(tmp_path / "file" / "index", WIDTH)
