from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskery.core.errors import DataError
from maskery.data.corpus.config import CorpusConfig
from maskery.data.corpus.examples import Reading, ReadingReport
from maskery.data.corpus.record_files import Scanner, read_json, read_json_lines

Read = Any
Write = Any
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)


def reading_of(path: Path = Path("a.json"), **options: Any) -> Reading:
    config = options.pop("config", CorpusConfig())
    return Reading(
        path=path,
        config=config,
        report=ReadingReport(),
        source=path.name,
        on_read=lambda _: None,
        **options,
    )


def blocks_of(text: str, size: int) -> Any:
    return (text[i : i + size] for i in range(0, len(text), size))


@given(st.lists(VALUES, max_size=5), st.integers(1, 30), st.sampled_from([None, 2]), st.booleans())
def test_the_scanner_agrees_with_the_library(
    values: list[object], size: int, indent: int | None, ascii_only: bool
) -> None:
    text = json.dumps(values, indent=indent, ensure_ascii=ascii_only) + "\n"
    scanner = Scanner(blocks_of(text, size), reading_of())
    assert scanner.peek() == "["
    assert list(scanner.elements()) == values

    text = "\n".join(json.dumps(value, indent=indent, ensure_ascii=ascii_only) for value in values)
    assert list(Scanner(blocks_of(text, size), reading_of()).sequence()) == values


@given(st.text('[]{}",:1e.-tru\\u\n ', max_size=12), st.integers(1, 5))
def test_the_scanner_refuses_what_the_library_refuses(text: str, size: int) -> None:
    text = f"[{text}]"
    scanner = Scanner(blocks_of(text, size), reading_of())
    scanner.peek()
    try:
        expected = json.loads(text)
    except json.JSONDecodeError:
        with pytest.raises(DataError, match=r"^a\.json, line \d+ is not valid JSON \("):
            list(scanner.elements())
    else:
        assert list(scanner.elements()) == expected


@pytest.mark.parametrize("block_bytes", [1, 7, 1 << 20])
def test_the_layouts_of_json(write: Write, read: Read, block_bytes: int) -> None:
    records = [{"text": "one\ntwo", "n": [1]}, {"n": 2, "text": " é\U0001f600 "}]
    expected = ["one\ntwo", "é\U0001f600"]
    lines = "\r\n\r\n".join(map(json.dumps, records))
    contents = {
        "lines.jsonl": lines,
        "lines.ndjson": lines + "\n",
        "lines.json": lines,
        "list.json": json.dumps(records),
        "pretty.json": json.dumps(records, indent=4),
        "objects.json": "\n".join(json.dumps(record, indent=1) for record in records),
    }
    for name, content in contents.items():
        assert read(write(name, content), block_bytes=block_bytes) == expected, name


GOOD = '{"text": "good"}'
BAD_LINES = [
    ('{"text": "a"', "is not valid JSON (Expecting ',' delimiter at character 13)"),
    ("text", "is not valid JSON (Expecting value at character 1)"),
    ('{"text": "a"} {"text": "b"}', "is not valid JSON (Extra data"),
    ('{"text": null}', "has a value of type null in 'text', not a string"),
    ('{"text": 3}', "has a value of type int in 'text', not a string"),
    ('{"text": ["a"]}', "has a value of type list in 'text', not a string"),
    ('"text"', "is a JSON string, not an object with a column 'text'"),
    ("[1]", "is a JSON list, not an object"),
    ("null", "is a JSON null, not an object"),
    ('{"body": "a", "id": 1}', "has no column 'text'; there are 'body', 'id'"),
    ("{}", "has no column 'text'; there are none"),
    (r'{"text": "a\u0000b"}', "holds a NUL character, which is not text"),
    (r'{"text": "a\ud800b"}', "holds half a surrogate pair"),
    ('{"text": ' + "9" * 5000 + "}", "is not valid JSON (Exceeds the limit"),
    ("[" * 200_000, "is not valid JSON (it is nested too deeply)"),
]


@pytest.mark.parametrize(("line", "problem"), BAD_LINES, ids=lambda value: value[:16])
def test_a_bad_line_is_named_or_skipped(write: Write, read: Read, line: str, problem: str) -> None:
    path = write("a.jsonl", f"{GOOD}\n\n{line}\n{GOOD}\n")
    with pytest.raises(DataError) as caught:
        read(path)
    message = str(caught.value)
    assert message.startswith(f"{path}, line 3 {problem}")
    assert "\n" not in message
    assert "--text-column" in message or "--on-bad-text skip" in message
    assert read(path, on_bad_text="skip") == ["good", "good"]


def test_a_column_that_the_first_record_lacks_is_never_skipped(write: Write, read: Read) -> None:
    path = write("a.jsonl", f"{GOOD}\n{GOOD}")
    with pytest.raises(DataError, match=r"line 1 has no column 'txt'; there is 'text'"):
        read(path, text_column="txt", on_bad_text="skip")


def test_replacing(write: Write, read: Read) -> None:
    lines = rb'{"text": "a\u0000b\ud83d\ude00"}', b'{"text": "c\xffd"}', rb'{"text": "\ud800e"}'
    content = b"\n".join(lines)
    path = write("a.jsonl", content)
    assert read(path, on_bad_text="replace") == ["a\ufffdb\U0001f600", "c\ufffdd", "\ufffde"]
    with pytest.raises(DataError, match=f"byte {content.index(0xFF)} is not valid utf-8"):
        read(path)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_bad_bytes_count_in_the_text_column_alone(write: Write, read: Read, name: str) -> None:
    path = write(name, b'{"text": "a\xffb"}\n{"text": "c", "note": "\xff\0"}\n{"text": "d\0"}')
    with pytest.raises(DataError, match="byte 11 is not valid utf-8"):
        read(path)
    for block_bytes in (1, 10, 1000):
        assert read(path, on_bad_text="skip", block_bytes=block_bytes) == ["c"]
        expected = ["a\ufffdb", "c", "d\ufffd"]
        assert read(path, on_bad_text="replace", block_bytes=block_bytes) == expected


def test_an_invalid_file_names_the_line(write: Write, read: Read) -> None:
    for block_bytes in (1, 50, 1 << 20):
        for content, line, why in (
            (f"[{GOOD},\n{GOOD}\n{GOOD}]", 3, "Expecting ',' or ']'"),
            (f"[{GOOD},\n{GOOD}", 2, "Expecting ',' or ']'"),
            (f"[{GOOD},\n]", 2, "Expecting value"),
            (f"[{GOOD}]\n\n x", 3, "Extra data after the list"),
            (f'{GOOD}\n{{"text":\n "a', 3, "Unterminated string"),
            (f"{GOOD}\n{{text: 1}}", 2, "Expecting property name"),
        ):
            path = write("a.json", content)
            with pytest.raises(DataError) as caught:
                read(path, block_bytes=block_bytes)
            assert f"a.json, line {line} is not valid JSON ({why}" in str(caught.value)


def test_records_name_the_line_they_start_at(write: Write, read: Read) -> None:
    path = write("a.json", f'[{GOOD},\n\n{{"text":\n\n 3}}\n]')
    with pytest.raises(DataError, match=r"a\.json, line 3 has a value of type int"):
        read(path)


def test_a_record_without_end_is_not_held(tmp_path: Path) -> None:
    for name, reader in (("a.jsonl", read_json_lines), ("a.json", read_json)):
        path = tmp_path / name
        path.write_text(GOOD + '\n{"text": "' + "x" * 5000)
        reading = reading_of(path, block_bytes=100, max_record_chars=1000)
        with pytest.raises(DataError, match=r"line 2 starts a record longer than 1,000 char"):
            list(reader(reading))
