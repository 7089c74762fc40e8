from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from packed import PACK

from maskery.core.errors import DataError
from maskery.data.corpus.config import CorpusConfig
from maskery.data.corpus.examples import ReadingReport, example_id
from maskery.data.corpus.formats import OURS, SUFFIXES
from maskery.data.corpus.reader import Corpus

Write = Any
LINES = st.lists(
    st.text(
        st.characters(exclude_categories=["Cs"], exclude_characters="\0\r\n\ufeff"), max_size=30
    ),
    min_size=1,
    max_size=6,
).filter(lambda lines: any(line.strip() for line in lines))


def test_every_format_has_a_reader() -> None:
    assert set(SUFFIXES.values()) == set(OURS)


def formatted(file_format: str, lines: list[str], line_end: str, encoding: str) -> bytes:
    if file_format == "parquet":
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table({"text": lines}), sink)
        return sink.getvalue().to_pybytes()
    if file_format == "json":
        text = json.dumps([{"text": line} for line in lines], ensure_ascii=False, indent=1)
        return text.replace("\n", line_end).encode(encoding)
    if file_format == "jsonl":
        lines = [json.dumps({"text": line}, ensure_ascii=False) for line in lines]
    elif file_format in ("csv", "tsv"):
        lines = ["text", *('"' + line.replace('"', '""') + '"' for line in lines)]
    return line_end.join(lines).encode(encoding)


@settings(max_examples=150)
@given(
    LINES,
    st.sampled_from(sorted(set(SUFFIXES.values()))),
    st.sampled_from(["", *PACK]),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.sampled_from(["utf-8", "utf-16", "utf-8-sig", "utf-32-be"]),
    st.integers(1, 40),
)
def test_any_lines_come_back_from_any_file(
    tmp_path_factory: pytest.TempPathFactory,
    lines: list[str],
    file_format: str,
    compression: str,
    line_end: str,
    encoding: str,
    block_bytes: int,
) -> None:
    suffix = next(suffix for suffix, name in SUFFIXES.items() if name == file_format)
    content = formatted(file_format, lines, line_end, encoding)
    path = tmp_path_factory.mktemp("any") / f"a{suffix}{compression}"
    path.write_bytes(PACK[compression](content) if compression else content)
    config = CorpusConfig(encoding=encoding, quoting="on")
    corpus = Corpus(config=config, files=[path], block_bytes=block_bytes)
    expected = [line.strip() for line in lines if line.strip()]
    assert [tuple(e) for e in corpus] == [(text, str(path), example_id(text)) for text in expected]
    records = file_format in ("jsonl", "json", "parquet")
    num_empty = sum(not line.strip() for line in lines) if records else 0
    assert corpus.report == ReadingReport(examples=len(expected), empty=num_empty)
    assert corpus.bytes_read == corpus.num_bytes == path.stat().st_size


def test_iterations_are_the_same_and_count_afresh(write: Write, tmp_path: Path) -> None:
    write("b.txt", b"four\n\xff\n" + b"long word " * 3)
    write("a.jsonl", '{"text": "one"}\n{"text": 2}\n')
    write("c.txt", "")
    corpus = Corpus.open([str(tmp_path)], CorpusConfig(on_bad_text="skip", max_example_chars=10))
    first = list(corpus)
    assert [e.text for e in first] == ["one", "four", "long word", "long word", "long word"]
    assert len({e.id for e in first}) == 3
    next(iter(corpus))
    assert list(corpus) == first
    report = corpus.report
    assert (report.examples, report.skipped, report.empty_files) == (5, 2, 1)
    assert (report.cut, report.pieces) == (1, 3)


def test_progress_counts_the_bytes_of_the_archive(write: Write) -> None:
    content = "".join(f"line {i * i}\n" for i in range(200_000))
    path = write("a.txt.gz", PACK[".gz"](content.encode()))
    corpus = Corpus.open([str(path)])
    seen = [corpus.bytes_read for _ in corpus]
    assert corpus.num_bytes == path.stat().st_size
    assert seen == sorted(seen)
    assert 0 < seen[0] < seen[len(seen) // 2] < corpus.num_bytes == corpus.bytes_read


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv", "a.json", "a.parquet", "a.txt.gz"])
def test_an_empty_file_is_named(write: Write, name: str) -> None:
    path = write(name, "")
    with pytest.raises(DataError, match="is empty; a corpus needs text") as caught:
        Corpus.open([str(path)])
    assert str(caught.value).startswith(str(path))


def test_only_empty_files(write: Write, tmp_path: Path) -> None:
    write("a.txt", "")
    write("b.txt", "")
    with pytest.raises(DataError, match="all 2 files are empty"):
        Corpus.open([str(tmp_path)])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", " \n\n\t\r\n"),
        ("a.txt", b"\xef\xbb\xbf"),
        ("a.jsonl", '\n{"text": " "}\n'),
        ("a.json", "[]"),
        ("a.csv", "text\n\n"),
        ("a.csv", "\n"),
        ("a.txt.gz", PACK[".gz"](b"")),
    ],
)
def test_blank_content_is_named(write: Write, name: str, content: str | bytes) -> None:
    path = write(name, content)
    with pytest.raises(DataError, match="contains no text, only white space") as caught:
        list(Corpus.open([str(path)]))
    assert str(caught.value).startswith(str(path))


def test_nothing_left_after_skipping(write: Write) -> None:
    path = write("a.txt", b"\xff\n\xfe\n")
    corpus = Corpus.open([str(path)], CorpusConfig(on_bad_text="skip"))
    with pytest.raises(DataError, match=r"no text left: all 2 texts were skipped.*--encoding"):
        list(corpus)


def test_bad_text_in_a_cell_is_skipped_whole(write: Write) -> None:
    path = write("a.jsonl", '{"text": "aa bb \\u0000 cc"}\n{"text": "dd"}')
    corpus = Corpus.open([str(path)], CorpusConfig(on_bad_text="skip", max_example_chars=3))
    assert [e.text for e in corpus] == ["dd"]
    assert corpus.report.skipped == 1


def test_replaced_texts_are_counted(write: Write, tmp_path: Path) -> None:
    write("a.txt", b"a\xff\xffb\nfine\nc\xff\n")
    write("b.jsonl", b'{"text": "d\xff"}\n{"text": "\\ud800e"}\n{"text": "fine"}\n')
    pq.write_table(pa.table({"text": [b"f\xff", b"fine"]}), tmp_path / "c.parquet")
    corpus = Corpus.open([str(tmp_path)], CorpusConfig(on_bad_text="replace"))
    assert sum("\ufffd" in example.text for example in corpus) == 5
    assert (corpus.report.replaced, corpus.report.skipped, corpus.report.examples) == (5, 0, 8)


def test_fingerprints_follow_content_and_config(write: Write, tmp_path: Path) -> None:
    def fingerprint(*names: str, **config: Any) -> str:
        sources = [str(tmp_path / name) for name in names]
        return Corpus.open(sources, CorpusConfig(**config)).fingerprint()

    write("a.txt", "one\n")
    write("moved/z.txt", "one\n")
    write("b.txt", "two\n")
    write("c.csv", "text\none\n")
    write("d.txt", "one\ntwo\n")
    base = fingerprint("a.txt")
    assert len(base) == 32
    assert base == fingerprint("moved/z.txt") == fingerprint("a.txt", text_column="x", split="y")
    others = [
        fingerprint("a.txt", unit="document"),
        fingerprint("a.txt", encoding="latin-1"),
        fingerprint("a.txt", on_bad_text="skip"),
        fingerprint("a.txt", max_example_chars=10),
        fingerprint("b.txt"),
        fingerprint("c.csv"),
        fingerprint("c.csv", text_column="x"),
        fingerprint("d.txt"),
        fingerprint("a.txt", "b.txt"),
        fingerprint("b.txt", "moved/z.txt"),
    ]
    assert len({base, *others}) == len(others) + 1
    assert fingerprint("c.csv") == fingerprint("c.csv", unit="document")
