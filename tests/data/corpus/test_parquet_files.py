from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from maskery.core.errors import DataError
from maskery.data.corpus.config import CorpusConfig
from maskery.data.corpus.reader import Corpus
from maskery.data.corpus.table_files import _batch_rows

Read = Any
TEXTS = ["one", "two é", "", "one", "four\r\nlines"]
EXPECTED = ["one", "two é", "one", "four\nlines"]


def write(path: Path, column: Any, name: str = "text", **options: Any) -> Path:
    table = pa.table({"id": list(range(len(column))), name: column})
    pq.write_table(table, path, **options)
    return path


@pytest.mark.parametrize(
    "kind",
    [
        pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary(),
        pa.dictionary(pa.int32(), pa.string()),
    ],
    ids=str,
)  # fmt: skip
def test_columns_of_text(tmp_path: Path, read: Read, kind: Any) -> None:
    column = pa.array(TEXTS).cast(kind)
    assert read(write(tmp_path / "a.parquet", column, row_group_size=2)) == EXPECTED


def test_packed_files_and_progress(tmp_path: Path) -> None:
    plain = write(tmp_path / "a.parquet", TEXTS, row_group_size=2)
    packed = tmp_path / "a.parquet.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    corpus = Corpus.open([str(packed), str(plain)])
    assert [example.text for example in corpus] == EXPECTED * 2
    assert corpus.bytes_read == corpus.num_bytes == sum(p.stat().st_size for p in (plain, packed))


def test_values_that_are_no_text(tmp_path: Path, read: Read) -> None:
    path = write(tmp_path / "a.parquet", ["one", None, "a\0b"])
    with pytest.raises(DataError, match=r"a\.parquet, row 2 has a value of type null in 'text'"):
        read(path)
    assert read(path, on_bad_text="skip") == ["one"]
    path = write(tmp_path / "b.parquet", ["one", "a\0b"])
    with pytest.raises(DataError, match=r"b\.parquet, row 2 holds a NUL character"):
        read(path)
    assert read(path, on_bad_text="replace") == ["one", "a\ufffdb"]


def test_bytes_that_are_no_utf8(tmp_path: Path, read: Read) -> None:
    values = pa.array([b"one", b"ab\xffc", b"three"])
    unchecked = pa.Array.from_buffers(pa.string(), 3, values.buffers())
    for column in (values, unchecked):
        path = write(tmp_path / "a.parquet", column)
        with pytest.raises(DataError, match=r"row 2 holds 0xff at byte 2 of its value, which is"):
            read(path)
        assert read(path, on_bad_text="skip") == ["one", "three"]
        assert read(path, on_bad_text="replace") == ["one", "ab\ufffdc", "three"]


def test_columns_that_cannot_be_read(tmp_path: Path, read: Read) -> None:
    path = write(tmp_path / "a.parquet", ["one"], name="body")
    with pytest.raises(DataError, match=r"has no column 'text'; there are 'id', 'body': name one"):
        read(path)
    with pytest.raises(DataError, match=r"values of type int64 in the column 'id'; they must be"):
        read(path, text_column="id")


def test_damaged_files(tmp_path: Path, read: Read) -> None:
    whole = write(tmp_path / "a.parquet", ["word " * 100] * 500, compression="none").read_bytes()
    broken = tmp_path / "b.parquet"
    for content in (whole[:-20], b"PAR1 and nothing more", whole[: len(whole) // 2], b"x"):
        broken.write_bytes(content)
        with pytest.raises(DataError) as caught:
            read(broken)
        assert str(caught.value).startswith(f"{broken} is no whole Parquet file (")
        assert "\n" not in str(caught.value)


def test_long_values_come_in_small_batches(tmp_path: Path) -> None:
    short = write(tmp_path / "a.parquet", ["x"] * 10)
    values = [f"{i:09d}" * 111_000 for i in range(20)]
    long = write(tmp_path / "b.parquet", values, compression="none", use_dictionary=False)
    assert _batch_rows(pq.read_metadata(short), "text") == 8192
    assert 4 <= _batch_rows(pq.read_metadata(long), "text") <= 9
    corpus = Corpus.open([str(long)], CorpusConfig(max_example_chars=300_000))
    assert sum(len(example.text) for example in corpus) == sum(map(len, values))
    assert corpus.report.cut == 20
