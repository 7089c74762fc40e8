from __future__ import annotations

import gzip
import io
from pathlib import Path
from types import SimpleNamespace

import pytest

from maskery.core.errors import DataError
from maskery.data.sentences import read_sentence_pairs, read_sentences


def test_lines_keep_their_numbers_and_blank_ones_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffone\r\n\r\n  two \nthree".encode())
    assert [tuple(line) for line in read_sentences(path)] == [(1, "one"), (3, "two"), (4, "three")]


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
