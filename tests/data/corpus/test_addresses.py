"""Raw corpora at addresses: found, read, cut and known by their content as files here are."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from shard_folders import contents, shard

from maskery.core.errors import DataError, MissingExtraError
from maskery.data.corpus.config import CorpusConfig
from maskery.data.corpus.files import RemoteFile, find_files
from maskery.data.corpus.reader import Corpus
from maskery.data.shards.pieces import plan_pieces, read_piece

ROOT = "memory://corpus"


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Files of four formats, packed and not, and some that are not read."""
    folder = tmp_path / "files"
    (folder / "deep").mkdir(parents=True)
    (folder / ".hidden").mkdir()
    (folder / "a.txt").write_text("".join(f"line {n} of a text\n" for n in range(200)))
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(b'{"text": "of an archive"}\n'))
    (folder / "deep" / "c.csv").write_text("text\nof a table\n")
    table = pa.table({"text": [f"row {n}" for n in range(60)]})
    pq.write_table(table, folder / "d.parquet", row_group_size=20)
    for name in (".hidden/x.txt", "README.md", "picture.png", "deep/.x.txt"):
        (folder / name).write_text("no text of the corpus")
    return folder


@pytest.fixture
def remote(files: Path) -> Iterator[Any]:
    """The same files at an address in memory."""
    system = fsspec.filesystem("memory")
    for path in files.rglob("*"):
        if path.is_file():
            system.pipe(f"/corpus/{path.relative_to(files).as_posix()}", path.read_bytes())
    yield system
    system.rm("/corpus", recursive=True)


def texts(corpus: Any) -> list[str]:
    return [example.text for example in corpus]


@pytest.mark.parametrize("source", ["", "/a.txt", "/*.txt", "/**/*.csv", "/d.parquet", "/*.gz"])
def test_addresses_give_the_examples_of_files(remote: Any, files: Path, source: str) -> None:
    here = Corpus.open([f"{files}{source}"])
    there = Corpus.open([f"{ROOT}{source}"])
    assert sorted(texts(there)) == sorted(texts(here))
    assert there.num_bytes == here.num_bytes == there.bytes_read == here.bytes_read
    assert all(str(file).startswith("memory://") for file in there.files)
    if len(here.files) == 1:
        assert there.fingerprint() == here.fingerprint()
        assert [example.id for example in there] == [example.id for example in here]


def test_an_address_of_this_machine_is_a_path(files: Path) -> None:
    assert find_files([f"file://{files}/a.txt"]) == [files / "a.txt"]
    assert find_files([f"file://{files}", str(files / "a.txt")]) == find_files([str(files)])


def test_a_piece_reads_its_own_part_of_an_address(remote: Any) -> None:
    for name in ("a.txt", "d.parquet"):
        corpus = Corpus.open([f"{ROOT}/{name}"])
        assert corpus.num_bytes is not None
        pieces = plan_pieces(corpus, corpus.num_bytes // 3)
        assert len(pieces) >= 3
        parts = []
        for piece in pieces:
            parts += texts(read_piece(piece, corpus))
            assert corpus.bytes_read < corpus.num_bytes
        assert parts == texts(corpus)


def test_shards_of_an_address_are_those_of_the_file(
    remote: Any, files: Path, tmp_path: Path
) -> None:
    shard(files / "a.txt", tmp_path / "here")
    shard(f"{ROOT}/a.txt", tmp_path / "there")  # type: ignore[arg-type]
    here, there = contents(tmp_path / "here"), contents(tmp_path / "there")
    assert {n: d for n, d in there.items() if n.endswith(".safetensors")} == {
        n: d for n, d in here.items() if n.endswith(".safetensors")
    }


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        (
            "/missing.txt",
            DataError,
            "^'memory://corpus/missing.txt' does not exist; check",
        ),
        ("/picture.png", DataError, "picture.png has the suffix '.png', which is not read"),
        ("/*.xml", DataError, "'memory://corpus/\\*.xml' holds no file"),
        ("/deep/.x.txt/", DataError, "^"),
    ],
)
def test_what_is_not_there(remote: Any, source: str, error: type[Exception], message: str) -> None:
    if source.endswith("/"):
        assert texts(Corpus.open([ROOT + source])) == ["no text of the corpus"]
        return
    with pytest.raises(error, match=message):
        Corpus.open([ROOT + source])


def test_protocols_that_are_unknown_or_lack_their_package(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"'nonsense://x/a\.txt' cannot be read .*not known"):
        Corpus.open(["nonsense://x/a.txt"])

    def missing(*arguments: object, **others: object) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    with pytest.raises(MissingExtraError, match=r"'s3://x/a\.txt' needs a package .*Install s3fs"):
        Corpus.open(["s3://x/a.txt"])


def test_a_network_that_fails_is_one_line(remote: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = Corpus.open([f"{ROOT}/a.txt"])

    class BotoError(Exception):
        pass

    def broken(*arguments: object, **others: object) -> Any:
        def read(size: int) -> bytes:
            raise BotoError("connection\nreset")

        stream: Any = SimpleNamespace(read=read, seek=lambda offset: None)
        stream.__enter__ = None
        return _Opened(stream)

    monkeypatch.setattr(type(remote), "open", broken)
    with pytest.raises(DataError, match=r"a\.txt cannot be read \(BotoError: connection reset\)"):
        texts(corpus)


class _Opened:
    def __init__(self, stream: Any) -> None:
        self.read, self.seek = stream.read, stream.seek

    def __enter__(self) -> _Opened:
        return self

    def __exit__(self, *of: object) -> None:
        return None


def test_what_a_file_system_tells_of_the_content_is_not_read(remote: Any) -> None:
    def at(stamp: str | None, size: int | None = 3800) -> Corpus:
        file: Any = RemoteFile(remote, "/corpus/a.txt", size, stamp)
        return Corpus(config=CorpusConfig(), files=[file])

    assert at("ETag=1").fingerprint() == at("ETag=1").fingerprint() != at("ETag=2").fingerprint()
    assert at("ETag=1").bytes_read == 0
    assert at(None).fingerprint() == at(None).fingerprint() != at("ETag=1").fingerprint()
    unknown = at(None, size=None)
    assert unknown.num_bytes is None
    assert len(texts(unknown)) == 200
    (piece,) = plan_pieces(unknown, 100)
    assert texts(read_piece(piece, unknown)) == texts(unknown)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("https://host/a/b.jsonl.gz?download=1#x", "b.jsonl.gz"),
        ("http://host/a%20b.txt", "a b.txt"),
        ("bucket/odd?name.txt", "odd?name.txt"),
    ],
)
def test_names_of_web_addresses_have_no_query(path: str, name: str) -> None:
    assert RemoteFile(None, path, 1, None).name == name
