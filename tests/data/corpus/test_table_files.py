from __future__ import annotations

import csv
import gzip
import io
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from maskery.core.errors import DataError
from maskery.data.corpus.config import CorpusConfig
from maskery.data.corpus.examples import Reading, ReadingReport
from maskery.data.corpus.reader import Corpus
from maskery.data.corpus.record_files import _batch_rows, read_table

Read = Any
Write = Any
CELL = st.text(st.sampled_from('ab ,;"\t\n\ré|'), max_size=12)


@given(
    st.lists(st.tuples(CELL, CELL), min_size=1, max_size=6),
    st.sampled_from([("csv", ","), ("csv", ";"), ("csv", "|"), ("tsv", "\t")]),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.integers(1, 20),
)
@example([("x", 'a\r\n"b",\n\n')], ("csv", ","), "\r\n", 1)
def test_what_the_library_writes_is_read(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[tuple[str, str]],
    layout: tuple[str, str],
    line_end: str,
    block_bytes: int,
) -> None:
    suffix, delimiter = layout
    buffer = io.StringIO(newline="")
    # The library quotes line ends of its own kind only.
    quoting = csv.QUOTE_MINIMAL if line_end == "\r\n" else csv.QUOTE_ALL
    writer = csv.writer(buffer, delimiter=delimiter, lineterminator=line_end, quoting=quoting)
    writer.writerows([("id", "text"), *rows, ("last", "last")])
    path = tmp_path_factory.mktemp("csv") / f"a.{suffix}"
    path.write_text(buffer.getvalue(), newline="", encoding="utf-8")
    corpus = Corpus(config=CorpusConfig(quoting="on"), files=[path], block_bytes=block_bytes)
    values = [text.replace("\r\n", "\n").replace("\r", "\n").strip() for _, text in rows]
    assert [example.text for example in corpus] == [*filter(None, values), "last"]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("id,body\n1,a\n", "a.csv, line 1 has no column 'text'; there are 'id', 'body': name one"),
        ("id, text\n1,a\n", "there are 'id', ' text'"),
        ("text,text\na,b\n", "a.csv, line 1 names the column 'text' 2 times"),
        ("\nid,text\n1,a\n2\n", "a.csv, line 4 has 1 fields, the header has 2"),
        ("id,text\n1,a\n2,b, c\n", "a.csv, line 3 has 3 fields, the header has 2: a field that"),
        ('id,text\n1,"a\n\nb"\n2,b,c\n', "a.csv, line 5 has 3 fields"),
        ('id,text\n1,a\n2,"b\n3,c\n', "a.csv, line 3 starts a row that is not valid CSV (unexp"),
        ('id,text\n1,"a" b\n', "a.csv, line 2 starts a row that is not valid CSV"),
        ("id,text\n1,a\0\n", "a.csv: byte 11 is a NUL character"),
    ],
)
def test_bad_tables_name_the_line(write: Write, read: Read, content: str, problem: str) -> None:
    path = write("a.csv", content)
    with pytest.raises(DataError) as caught:
        read(path)
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


def test_skipping(write: Write, read: Read) -> None:
    path = write("a.csv", b"id,text\n1,a\n2\n3,\xff\n\n4,d,\n\xff,e\n")
    assert read(path, on_bad_text="skip") == ["a", "e"]


def test_a_single_column_with_blank_lines(write: Write, read: Read) -> None:
    assert read(write("a.csv", "text\na\n\n  \nb")) == ["a", "b"]


def test_fields_beyond_the_library_s_limit(write: Write, read: Read) -> None:
    long = "word " * 100_000 + "end"
    assert read(write("a.csv", f"text,n\n{long},1\n")) == [long]


def test_a_field_without_end_is_not_held(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    for content in ("text\nx\n" + "y" * 5000, "text\nx\n" + '"' + "y\n" * 140_000):
        path.write_text(content)
        reading = Reading(
            path=path,
            config=CorpusConfig(),
            report=ReadingReport(),
            source="a.csv",
            on_read=lambda _: None,
            block_bytes=100,
            max_record_chars=1000,
        )
        limit = csv.field_size_limit(2000)
        try:
            with pytest.raises(DataError, match=r"a\.csv, line 3 starts a record longer than"):
                list(read_table(reading))
        finally:
            csv.field_size_limit(limit)


def test_tables_as_published_have_no_quotes(write: Write) -> None:
    """GLUE's files: a quote is a character of the text."""
    rows = [
        "First is fine.",
        '"Second begins with a quote.',
        "Third.",
        'Fourth ends with one"',
        "5",
    ]
    content = "text\tlabel\n" + "".join(f"{row}\t1\n" for row in rows)
    corpus = Corpus.open([str(write("a.tsv", content))])
    assert [example.text for example in corpus] == rows
    assert corpus.report.describe() is None
    quoted = Corpus.open([str(write("a.tsv", content))], CorpusConfig(quoting="on"))
    assert len(list(quoted)) == 3
    assert quoted.report.describe() == "read 1 table row of several lines, by quotes"
    assert quoted.fingerprint() != corpus.fingerprint()


def test_rows_of_other_lengths_are_counted(write: Write, read: Read) -> None:
    path = write("a.tsv", "text\tlabel\none\t1\nwith\ta tab\t1\nlast\t0\n")
    with pytest.raises(DataError, match=r"line 3 has 3 fields, .* needs --quoting on"):
        read(path)
    corpus = Corpus.open([str(path)], CorpusConfig(on_bad_text="skip"))
    assert [example.text for example in corpus] == ["one", "last"]
    assert corpus.report.skipped == 1


def test_quotes_may_be_text_in_csv(write: Write, read: Read) -> None:
    assert read(write("a.csv", 'text\n"a\nb"\n'), quoting="off") == ['"a', 'b"']


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
    assert _batch_rows(pq.read_metadata(short), ["text"]) == 8192
    assert 4 <= _batch_rows(pq.read_metadata(long), ["text"]) <= 9
    corpus = Corpus.open([str(long)], CorpusConfig(max_example_chars=300_000))
    assert sum(len(example.text) for example in corpus) == sum(map(len, values))
    assert corpus.report.cut == 20
