"""Content is on disk before it has its name, and the name before anything else goes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from maskery.core.files import replace_folder, write_whole


@pytest.fixture
def events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the disk is told, in order, with paths below `tmp_path`."""
    told: list[str] = []
    real = {name: getattr(os, name) for name in ("fsync", "replace", "rename")}

    def name_of(path: object) -> str:
        return str(Path(str(path)).relative_to(tmp_path))

    def fsync(descriptor: int) -> None:
        inode = os.fstat(descriptor).st_ino
        found = [p for p in (tmp_path, *tmp_path.rglob("*")) if p.stat().st_ino == inode]
        told.append(f"flush {name_of(found[0])}")
        real["fsync"](descriptor)

    def move(how: str) -> object:
        def moved(source: object, target: object) -> None:
            told.append(f"{name_of(source)} -> {name_of(target)}")
            real[how](source, target)

        return moved

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", move("replace"))
    monkeypatch.setattr(os, "rename", move("rename"))
    return told


@pytest.mark.parametrize("before", [None, b"old"])
def test_a_file_is_flushed_before_it_has_its_name(
    tmp_path: Path, events: list[str], before: bytes | None
) -> None:
    path = tmp_path / "config.yaml"
    if before is not None:
        path.write_bytes(before)
    write_whole(path, b"new")
    assert path.read_bytes() == b"new"
    assert events == ["flush config.yaml.partial", "config.yaml.partial -> config.yaml", "flush ."]
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_cannot_be_flushed_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "config.yaml"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_is_flushed_with_all_in_it_before_it_has_its_name(
    tmp_path: Path, events: list[str]
) -> None:
    new, final = tmp_path / "model.partial", tmp_path / "model"
    for folder, text in ((new, "new"), (final, "old")):
        (folder / "inner").mkdir(parents=True)
        (folder / "a").write_text(text)
        (folder / "inner" / "b").write_text(text)
    replace_folder(new, final)
    assert events == [
        "flush model.partial/a",
        "flush model.partial/inner/b",
        "flush model.partial/inner",
        "flush model.partial",
        "model -> model.old",
        "model.partial -> model",
        "flush .",
    ]
    assert (final / "inner" / "b").read_text() == "new"
    assert list(tmp_path.iterdir()) == [final]
