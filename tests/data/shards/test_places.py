"""Shards from an address: copied, checked, bounded; one clear line for what goes wrong."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from shard_folders import contents, shard
from tiny_text import lines

from maskery.core.errors import DataError, MissingExtraError
from maskery.data.batching import Batching, Template
from maskery.data.shards import places
from maskery.data.shards.manifest import FileEntry
from maskery.data.shards.places import Place, RemotePlace, holds_shards, open_place
from maskery.data.shards.source import ShardSource, TokenShards
from maskery.data.store import create_owned, partial_of

TEMPLATE = Template(prefix=(2,), suffix=(3,))
ADDRESS = "memory://bucket/shards"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("shards")
    (work / "a.txt").write_text("\n".join(lines(200)), "utf-8")
    shard(work / "a.txt", work / "shards")
    return work / "shards"


@pytest.fixture
def remote(folder: Path) -> Iterator[Any]:
    """The same files at an address in memory."""
    system = fsspec.filesystem("memory")
    for name, data in contents(folder).items():
        system.pipe(f"/bucket/shards/{name}", data)
    yield system
    system.rm("/bucket", recursive=True)


def open_remote(cache: Path, waits: list[float] | None = None) -> RemotePlace:
    return RemotePlace(ADDRESS, cache, sleep=(waits if waits is not None else []).append)


def entry(file: str, data: bytes) -> FileEntry:
    return FileEntry(file=file, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def test_an_address_gives_the_batches_of_the_folder(
    folder: Path, remote: Any, tmp_path: Path
) -> None:
    batching = Batching(template=TEMPLATE, max_length=24, batch_tokens=100)
    here = ShardSource(TokenShards(Place(folder)), batching, shuffle_shards=2)
    place = open_remote(tmp_path)
    there = ShardSource(TokenShards(place), batching, cache_shards=1, shuffle_shards=2)
    assert there.num_steps(0) == here.num_steps(0)
    most = 0
    for step in range(here.num_steps(0)):
        (one,), (other,) = here.micro_batches(0, step), there.micro_batches(0, step)
        assert one.input_ids.tolist() == other.input_ids.tolist()  # type: ignore[union-attr]
        assert one.example_ids.tolist() == other.example_ids.tolist()  # type: ignore[union-attr]
        most = max(most, len(list(place.folder.glob("shard-*"))))
    there.close()
    # A block, the next, and one more; the fetching thread may be two ahead of the trimming.
    assert most <= 2 * 2 + 1 + 2
    assert len(TokenShards(place).manifest.shards) > 8


def test_the_oldest_copies_go_first(remote: Any, tmp_path: Path) -> None:
    place = open_remote(tmp_path)
    for number in range(4):
        remote.pipe(f"/bucket/shards/{number}.safetensors", b"x")
        path = place.fetch(entry(f"{number}.safetensors", b"x"))
        os.utime(path, (number, number))
    place.fetch(entry("0.safetensors", b"x"))  # used again
    place.trim(2)
    assert sorted(path.name for path in place.folder.iterdir()) == [
        "0.safetensors",
        "3.safetensors",
    ]
    place.trim(5)
    Place(tmp_path).trim(0)
    assert len(list(place.folder.iterdir())) == 2


def test_a_sound_copy_is_not_fetched_again(remote: Any, tmp_path: Path) -> None:
    remote.pipe("/bucket/shards/a", b"12345")
    place = open_remote(tmp_path)
    path = place.fetch(entry("a", b"12345"))
    remote.rm("/bucket/shards/a")
    assert place.fetch(entry("a", b"12345")) == path
    path.write_bytes(b"12x45")
    with pytest.raises(DataError, match=r"memory://bucket/shards/a' cannot be read .*; check the"):
        place.fetch(entry("a", b"12345"))


def test_a_copy_that_another_run_lets_go_of_is_fetched_again(
    remote: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote.pipe("/bucket/shards/a", b"12345")
    place = open_remote(tmp_path)
    path = place.fetch(entry("a", b"12345"))
    real, gone = places.find_damage, [path]

    def checked(*arguments: Any) -> str | None:
        damage = real(*arguments)
        if gone:
            gone.pop().unlink()
        return damage

    monkeypatch.setattr(places, "find_damage", checked)
    assert place.fetch(entry("a", b"12345")) == path
    assert path.read_bytes() == b"12345"


def test_half_a_copy_goes_if_nobody_is_at_it(
    remote: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        remote.pipe(f"/bucket/shards/{name}", b"12345")
    place, other = open_remote(tmp_path), open_remote(tmp_path)
    place.folder.mkdir(parents=True)
    create_owned(partial_of(place.folder / "killed")).close()
    real, seen = places.find_damage, []

    def while_it_is_checked(path: Path, *arguments: Any) -> str | None:
        if ".partial-" in path.name and not seen:
            seen.append(path.name.partition("-")[0])
            other.fetch(entry("b", b"12345"))
        return real(path, *arguments)

    monkeypatch.setattr(places, "find_damage", while_it_is_checked)
    assert place.fetch(entry("a", b"12345")).read_bytes() == b"12345"
    assert seen == ["a.partial"]
    assert sorted(path.name for path in place.folder.iterdir()) == ["a", "b"]


def test_a_copy_that_differs_is_tried_again_and_then_refused(remote: Any, tmp_path: Path) -> None:
    waits: list[float] = []
    place = open_remote(tmp_path, waits)
    remote.pipe("/bucket/shards/a", b"12x45" * 1000)
    with pytest.raises(DataError, match=r"shards/a' is damaged \(it has 6 of 5 bytes\)"):
        place.fetch(entry("a", b"12345"))
    assert waits == [1.0, 5.0, 25.0]
    assert list(place.folder.iterdir()) == []


def test_a_network_that_comes_back_is_waited_for(
    remote: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote.pipe("/bucket/shards/a", b"12345")
    waits: list[float] = []
    place = open_remote(tmp_path, waits)
    real, failures = type(remote).open, [OSError("reset by peer"), TimeoutError("too slow")]

    def flaky(self: Any, *arguments: Any, **others: Any) -> Any:
        if failures:
            raise failures.pop(0)
        return real(self, *arguments, **others)

    monkeypatch.setattr(type(remote), "open", flaky)
    assert place.fetch(entry("a", b"12345")).read_bytes() == b"12345"
    assert waits == [1.0, 5.0]


def test_an_address_without_shards_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'memory://nothing' has no shards.json: .* check the add"):
        RemotePlace("memory://nothing/", tmp_path).manifest()


def test_a_protocol_nobody_knows_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Protocol not known: nonsense"):
        RemotePlace("nonsense://x", tmp_path).manifest()


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*arguments: object, **others: object) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    with pytest.raises(MissingExtraError, match=r"'s3://x' needs a package .*Install s3fs"):
        RemotePlace("s3://x", tmp_path).manifest()


def test_an_address_of_shards_is_told_from_one_of_text(remote: Any) -> None:
    assert holds_shards(ADDRESS)
    assert holds_shards(f"{ADDRESS}/")
    assert not holds_shards("memory://bucket")
    assert not holds_shards("memory://bucket/shards/*.txt")
    assert not holds_shards("s3://never-asked/corpus.jsonl.gz")


def test_an_unfinished_folder_is_said(tmp_path: Path) -> None:
    assert not holds_shards(str(tmp_path))
    assert not holds_shards("bert\0")
    (tmp_path / "plan.json").write_text("{}")
    assert holds_shards(str(tmp_path))
    assert isinstance(open_place("s3://bucket/x", tmp_path), RemotePlace)
    with pytest.raises(DataError, match="are not complete; repeat the maskery tokenize command"):
        open_place(str(tmp_path), tmp_path).manifest()
