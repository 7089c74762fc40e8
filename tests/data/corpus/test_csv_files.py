from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from maskery.core.errors import DataError
from maskery.data.corpus.config import CorpusConfig
from maskery.data.corpus.examples import Place, Reading, ReadingReport
from maskery.data.corpus.reader import Corpus
from maskery.data.corpus.table_files import read_csv

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
            place=Place(source="a.csv"),
            on_read=lambda _: None,
            block_bytes=100,
            max_record_chars=1000,
        )
        limit = csv.field_size_limit(2000)
        try:
            with pytest.raises(DataError, match=r"a\.csv, line 3 starts a record longer than"):
                list(read_csv(reading))
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
