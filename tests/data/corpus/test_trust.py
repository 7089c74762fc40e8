"""Files that unpack to far more than they are take time, and neither memory nor the disk."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from maskery.core.errors import DataError
from maskery.data.corpus import record_files, streams
from maskery.data.corpus.config import CorpusConfig
from maskery.data.corpus.reader import Corpus

UNPACKED = 48 << 20
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lambda data: lzma.compress(data, preset=0),
    ".zst": lambda data: pa.compress(data, codec="zstd", asbytes=True),
}


@pytest.mark.parametrize("suffix", PACKERS)
@pytest.mark.parametrize("unit", ["line", "paragraph", "document"])
@pytest.mark.parametrize("filling", [b"\n", b"a", b"a b\n"])
def test_a_bomb_of_text_is_never_held(
    tmp_path: Path, suffix: str, unit: str, filling: bytes
) -> None:
    if (unit, filling) != ("line", b"a") and suffix != ".gz":
        pytest.skip("the cutting is the same for every compression")
    # Many examples are slow to trace, and none of them is held anyway.
    size = UNPACKED >> {b"a": 0, b"\n": 2, b"a b\n": 6}[filling]
    data = filling * (size // len(filling)) + b"\nend"
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(PACKERS[suffix](data))
    assert path.stat().st_size < len(data) // 100
    del data
    corpus = Corpus.open([str(path)], CorpusConfig(unit=unit))  # type: ignore[arg-type]
    tracemalloc.start()
    longest = max(len(example.text) for example in corpus)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert longest <= 1_000_000
    assert peak < 24 << 20


def test_a_record_that_never_ends_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "' + b"a" * (1 << 22)))
    corpus = Corpus.open([str(path)])
    make = corpus._reading

    def small(*arguments: object) -> object:
        reading = make(*arguments)  # type: ignore[arg-type]
        reading.max_record_chars = 1 << 20
        return reading

    monkeypatch.setattr(corpus, "_reading", small)
    with pytest.raises(DataError, match="starts a record longer than 1,048,576 characters"):
        list(corpus)


def test_a_packed_table_does_not_fill_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record_files, "MIN_UNPACKED_BYTES", 1 << 16)
    path = tmp_path / "a.parquet.gz"
    path.write_bytes(gzip.compress(bytes(1 << 24)))
    with pytest.raises(DataError, match="unpacks to more than 100 times its size"):
        list(Corpus.open([str(path)]))


def test_a_dictionary_beyond_all_measure_is_not_allocated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.txt.xz"
    path.write_bytes(lzma.compress(b"text"))
    assert [example.text for example in Corpus.open([str(path)])] == ["text"]
    monkeypatch.setattr(streams, "XZ_MEMORY", 1 << 16)
    with pytest.raises(DataError, match=r"\(Memory usage limit exceeded\)"):
        list(Corpus.open([str(path)]))


def test_json_that_nests_without_end_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": "fine"}) + "\n" + "[" * 200_000)
    with pytest.raises(DataError, match="line 2 is not valid JSON"):
        list(Corpus.open([str(path)]))
