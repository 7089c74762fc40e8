"""Readers of the user's own: the contract, and one line for whatever breaks it."""

from __future__ import annotations

import bz2
import csv
import io
import json
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from maskery.core.errors import DataError, PluginError
from maskery.core.registry import FromFile
from maskery.data.corpus import formats
from maskery.data.corpus.config import CorpusConfig
from maskery.data.corpus.formats import CorpusFile, register
from maskery.data.corpus.reader import Corpus

Write = Callable[[str, str | bytes], Path]


def corpus(path: Path, reader: Any, **config: Any) -> Corpus:
    return Corpus.open([str(path)], CorpusConfig(reader=reader, **config))


def texts(path: Path, reader: Any, **config: Any) -> list[str]:
    return [example.text for example in corpus(path, reader, **config)]


@pytest.fixture
def suffixes() -> Iterator[None]:
    """A table of formats that may be added to."""
    suffixes, things = dict(formats.SUFFIXES), dict(formats.READERS._things)
    yield
    for table, before in ((formats.SUFFIXES, suffixes), (formats.READERS._things, things)):
        table.clear()
        table.update(before)


def test_strings_and_records_are_examples(write: Write) -> None:
    path = write("a.odd", "one\ntwo\r\n\nthree")

    def read(file: CorpusFile) -> Iterator[object]:
        for number, line in enumerate(file):
            yield line if number % 2 else {"body": line, "n": number}

    assert texts(path, read, text_column="body") == ["one", "two", "three"]


def test_files_are_unpacked_and_decoded_before(write: Write) -> None:
    path = write("a.odd.bz2", bz2.compress("Füße\n".encode("latin-1") * 3))
    assert texts(path, lambda file: file.read().split(), encoding="latin-1") == ["Füße"] * 3


def test_libraries_take_the_file_for_any_other(write: Write) -> None:
    path = write("a.psv", 'x|"a\nb"\ny|c')
    assert texts(path, lambda file: [r[1] for r in csv.reader(file, delimiter="|")]) == [
        "a\nb",
        "c",
    ]


@pytest.mark.parametrize("block_bytes", [1, 3, 1 << 20])
def test_reads_of_any_size_are_those_of_a_text_file(write: Write, block_bytes: int) -> None:
    content = "first line\n\nsecond\nlast without end"
    path = write("a.odd", content)
    seen: list[object] = []

    def read(file: CorpusFile) -> list[str]:
        like = io.StringIO(content)
        for method, size in (("read", 3), ("readline", -1), ("readline", -1), ("read", 0)):
            seen.append((getattr(file, method)(size), getattr(like, method)(size)))
        seen.append((file.readlines(), like.readlines()))
        seen.append((file.read(5), ""))
        return ["x"]

    list(Corpus(config=CorpusConfig(reader=read), files=[path], block_bytes=block_bytes))
    assert all(one == other for one, other in seen), seen


def test_the_bytes_of_a_format_that_is_no_text(write: Write) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("chapter", "text of a chapter")
    path = write("a.book", packed.getvalue())

    def read(file: CorpusFile) -> list[str]:
        with zipfile.ZipFile(io.BytesIO(file.buffer.read())) as book:
            return [book.read("chapter").decode()]

    assert texts(path, read) == ["text of a chapter"]


def test_bad_text_is_dealt_with_as_in_any_format(write: Write) -> None:
    path = write("a.odd", b"good\nb\xffd\nfine\n")

    def read(file: CorpusFile) -> Iterator[str]:
        yield from file

    with pytest.raises(DataError, match=r"a\.odd: byte 6 is not valid utf-8"):
        texts(path, read)
    assert texts(path, read, on_bad_text="skip") == ["good", "fine"]


def test_a_name_of_ours_reads_files_of_any_suffix(write: Write) -> None:
    path = write("dump", '{"text": "one"}\n')
    assert texts(path, "jsonl") == ["one"]
    assert texts(path, "text") == ['{"text": "one"}']


@pytest.mark.usefixtures("suffixes")
def test_a_registered_suffix_is_found_and_read_packed(write: Write, tmp_path: Path) -> None:
    register(".odd", lambda file: file.read().split("|"))
    write("a.odd", "one|two")
    write("b.ODD.bz2", bz2.compress(b"three"))
    write("c.other", "no")
    found = Corpus.open([str(tmp_path)])
    assert [example.text for example in found] == ["one", "two", "three"]
    before = found.fingerprint()
    assert before == Corpus.open([str(tmp_path)]).fingerprint()
    write("a.odd", "one|2")
    assert before != Corpus.open([str(tmp_path)]).fingerprint()


@pytest.mark.usefixtures("suffixes")
@pytest.mark.parametrize("suffix", [".txt", ".gz", "odd", ".Odd", ".", ".a.b"])
def test_suffixes_that_cannot_be_registered(suffix: str) -> None:
    with pytest.raises(PluginError, match="suffix"):
        register(suffix, lambda file: [])


def failing(file: CorpusFile) -> Iterator[str]:
    yield "one"
    raise KeyError("no such thing")


def failing_within(file: CorpusFile) -> Iterator[str]:
    json.loads(file.read())
    yield "one"


def taking_nothing() -> list[str]:
    return []


def yielding_numbers(file: CorpusFile) -> Iterator[object]:
    yield "one"
    yield 2


def returning_nothing(file: CorpusFile) -> None:
    file.read()


def returning_a_string(file: CorpusFile) -> str:
    return file.read()


@pytest.mark.parametrize(
    ("reader", "found"),
    [
        (failing, r"reading .*a\.odd fails \(test_formats\.py, line \d+\): KeyError: 'no such .*'"),
        # A line of the user's, and none where the call itself does not fit.
        (failing_within, r"a\.odd fails \(test_formats\.py, line \d+\): JSONDecodeError: .*"),
        (taking_nothing, r"a\.odd fails: TypeError: taking_nothing\(\) takes 0 .* was given"),
        (yielding_numbers, r"it yielded a int at .*a\.odd, example 2"),
        (returning_nothing, "returning_nothing returned a NoneType"),
        (returning_a_string, "returning_a_string returned a str"),
        (3, "it is of type int"),
    ],
)
def test_a_broken_contract_is_one_line(write: Write, reader: Any, found: str) -> None:
    path = write("a.odd", "text")
    with pytest.raises(PluginError, match=rf"{found}; it must be a callable that takes") as caught:
        texts(path, reader)
    assert "\n" not in str(caught.value)


def test_a_missing_name_and_a_name_from_a_file(write: Write) -> None:
    path, code = write("a.odd", "text"), write("reader.py", "def read(file): return [file.read()]")
    assert texts(path, f"{code}:read") == ["text"]
    with pytest.raises(PluginError, match=r"has no 'write' .* it must be a callable"):
        texts(path, f"{code}:write")
    with pytest.raises(PluginError, match=r"--reader is 'conllu': it must be text, jsonl, .* or F"):
        texts(path, "conllu")
    unnamed = write("unnamed.py", "raise SystemExit")
    with pytest.raises(PluginError, match="add --reader"):
        texts(path, FromFile(f"{unnamed}:read"))
    assert texts(path, FromFile(f"{code}:read")) == ["text"]  # it was named above


def test_fingerprints_follow_the_code_of_a_reader(write: Write) -> None:
    path, code = (
        write("a.odd", "one two"),
        write("reader.py", "def read(file): return [file.read()]"),
    )
    named = f"{code}:read"
    one = corpus(path, named).fingerprint()
    assert one == corpus(path, named).fingerprint() != corpus(path, "text").fingerprint()
    code.write_text("def read(file): return file.read().split()")
    assert corpus(path, named).fingerprint() != one
    whole, words = (lambda file: [file.read()]), (lambda file: file.read().split())
    assert corpus(path, whole).fingerprint() != corpus(path, words).fingerprint()
