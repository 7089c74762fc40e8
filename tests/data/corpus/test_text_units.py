from __future__ import annotations

import gzip
import io
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from maskery.core.errors import DataError
from maskery.data.corpus.examples import ReadingReport
from maskery.data.corpus.formats import UNITS, Cutter, cut_units
from maskery.data.corpus.sentences import read_sentence_pairs, read_sentences

Read = Any
Write = Any
TEXT = st.text(st.sampled_from("ab \n\té\u2028\x0c"), max_size=80)
SIZES = st.integers(1, 12)


def blocks_of(text: str, size: int) -> Iterator[str]:
    yield from (text[i : i + size] for i in range(0, len(text), size))
    yield ""


def units(unit: str, text: str, size: int, limit: int = 1000) -> tuple[list[str], ReadingReport]:
    report = ReadingReport()
    found = cut_units(unit, blocks_of(text, size), Cutter(limit, report))
    return [stripped for piece in found if (stripped := piece.strip())], report


def expected(unit: str, text: str) -> list[str]:
    """Written without blocks, and by lines instead of a pattern."""
    lines = text.split("\n")
    if unit == "line":
        found = lines
    elif unit == "document":
        found = [text]
    else:
        found = [""]
        for line in lines:
            if line.strip():
                found[-1] += line + "\n"
            else:
                found.append("")
    return [piece.strip() for piece in found if piece.strip()]


@given(st.sampled_from(sorted(UNITS)), TEXT, SIZES)
@example("paragraph", "a\n \t\n\n b\n\nc", 1)
def test_units_do_not_depend_on_blocks(unit: str, text: str, size: int) -> None:
    assert units(unit, text, size)[0] == expected(unit, text)


def cut_slowly(text: str, limit: int) -> list[str]:
    """Character by character: the longest prefix within the limit that ends before a space."""
    pieces = []
    while len(text) > limit:
        ends = [i for i in range(1, limit + 1) if text[i].isspace() and not text[i - 1].isspace()]
        end = ends[-1] if ends else limit
        pieces.append(text[:end])
        text = text[end:].lstrip()
    return pieces + ([text] if text else [])


@given(st.sampled_from(sorted(UNITS)), TEXT, SIZES, st.integers(1, 20))
@example("paragraph", "a" + " " * 30 + "b\n\nc", 1, 3)
@example("line", "a  bcdef" * 5, 3, 4)
def test_long_units_are_cut_at_white_space(unit: str, text: str, size: int, limit: int) -> None:
    found, report = units(unit, text, size, limit)
    wholes = [cut_slowly(whole, limit) for whole in expected(unit, text)]
    assert found == [piece for whole in wholes for piece in whole]
    assert all(len(piece) <= limit for piece in found)
    # Nothing but white space is lost.
    assert "".join("".join(found).split()) == "".join(text.split())
    if unit != "paragraph":  # a paragraph may be let go of early, inside endless white space
        assert report.cut == sum(len(whole) > 1 for whole in wholes)
        assert report.pieces == sum(len(whole) for whole in wholes if len(whole) > 1)


@pytest.mark.parametrize("unit", sorted(UNITS))
@pytest.mark.parametrize("pattern", ["x", "word ", " ", " \t", "ab\ncd "])
def test_endless_units_are_not_held(unit: str, pattern: str) -> None:
    """A gigabyte in small: the cutter never holds more than the limit, nor is a piece longer."""
    cutter = Cutter(100, ReadingReport())
    block, held, longest = (pattern * 50)[:50], 0, 0

    def blocks() -> Iterator[str]:
        nonlocal held
        for _ in range(500):
            yield block
            held = max(held, sum(map(len, cutter.parts)))

    for piece in cut_units(unit, blocks(), cutter):
        longest = max(longest, len(piece))
    assert held <= 100
    assert longest <= 100


@pytest.mark.parametrize("block_bytes", [1, 2, 5, 1 << 20])
def test_bad_text_is_skipped_or_replaced_by_unit(
    write: Write, read: Read, block_bytes: int
) -> None:
    path: Path = write("a.txt", b"one\r\nt\xffwo\xfe\rthr\0ee\n\n  fo\xef\xbf\xbdur \n")
    with pytest.raises(DataError, match=re.escape(f"{path}: byte 6 is not valid utf-8 (0xff)")):
        read(path, block_bytes=block_bytes)
    assert read(path, block_bytes=block_bytes, on_bad_text="skip") == ["one", "fo\ufffdur"]
    assert read(path, block_bytes=block_bytes, on_bad_text="replace") == [
        "one", "t\ufffdwo\ufffd", "thr\ufffdee", "fo\ufffdur",
    ]  # fmt: skip


def test_form_feeds_and_unicode_separators_end_no_line(write: Write, read: Read) -> None:
    assert read(write("a.txt", "a\x0cb\u2028c\x85d\ne")) == ["a\x0cb\u2028c\x85d", "e"]


def test_lines_keep_their_numbers_and_blank_ones_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffone\r\n\r\n  two \nthree".encode())
    assert [tuple(line) for line in read_sentences(path)] == [(1, "one"), (3, "two"), (4, "three")]


def test_an_encoding_is_found_where_asked(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("Müller grüßt Köln\n".encode("utf-16"))
    assert [line.text for line in read_sentences(path, encoding="auto")] == ["Müller grüßt Köln"]


def test_compressed_files_and_standard_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(b"one\ntwo\n"))
    assert [line.text for line in read_sentences(path)] == ["one", "two"]
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(b"three\n")))
    assert [line.text for line in read_sentences(Path("-"))] == ["three"]


def test_pairs_are_two_sentences_with_a_tab_between(tmp_path: Path) -> None:
    path = tmp_path / "pairs.tsv"
    path.write_text("a b\tc d\n\n e\t f \n")
    assert [(a.text, b.text, a.number) for a, b in read_sentence_pairs(path)] == [
        ("a b", "c d", 1),
        ("e", "f", 3),
    ]


@pytest.mark.parametrize("line", ["alone", "a\tb\tc", "a\t", "\tb"])
def test_a_line_that_is_no_pair_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "pairs.tsv"
    path.write_text(f"a\tb\n{line}\n")
    with pytest.raises(DataError, match=r"pairs.tsv: line 2 has \d sentence"):
        list(read_sentence_pairs(path))


@pytest.mark.parametrize(
    ("content", "message"), [(b"", "no text"), (b" \n\n", "no text"), (b"ok\n\xff", "byte 3")]
)
def test_files_that_cannot_be_read(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        list(read_sentences(path))
    with pytest.raises(DataError, match="does not exist"):
        list(read_sentences(tmp_path / "none.txt"))
    with pytest.raises(DataError, match="is a folder"):
        list(read_sentences(tmp_path))
