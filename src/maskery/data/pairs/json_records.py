"""Pairs in JSON (one list) and JSONL (one object a line)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maskery.core.errors import DataError, reason_of
from maskery.data.pairs.config import PairsConfig
from maskery.data.pairs.records import (
    PERSON_COLUMNS,
    SPLIT_COLUMN,
    Columns,
    Record,
    brief,
    find_columns,
)

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
WHITE_SPACE = b" \t\r\n"


def json_records(path: Path, config: PairsConfig) -> Iterator[Record]:
    """Read a `.json` or `.jsonl` file; its content decides which of the two it is.

    Raises:
        DataError: It cannot be read or is not valid, or only some records name a split or a person.
    """
    rows = _list_rows(path) if _first_byte(path) == b"[" else _line_rows(path)
    columns: Columns | None = None
    first: _Names | None = None
    for row, where in rows:
        if not isinstance(row, dict):
            raise DataError(
                f"{where}: found {brief(row)} where an object with image and caption is expected"
            )
        columns = columns or find_columns(row, config, where)
        first = first or _Names.of(row)
        first.require_same(_Names.of(row), where)
        yield columns.read(row, where)


@dataclass(frozen=True)
class _Names:
    """What a record names beside image and caption.

    The columns of a file are those of its first record. Were the others not held to them, a file
    whose first record has no split would be trained on whole, its test split included.

    Attributes:
        person: The key of the person, or None.
        split: The key of the split where it has a value, or None.
    """

    person: str | None
    split: str | None

    @classmethod
    def of(cls, row: dict[str, Any]) -> _Names:
        """Of one record."""
        person = next((name for name in PERSON_COLUMNS if name in row), None)
        return cls(person, None if row.get(SPLIT_COLUMN) is None else SPLIT_COLUMN)

    def require_same(self, other: _Names, where: str) -> None:
        """Refuse a record that names what the first does not, or the other way round.

        Raises:
            DataError: It does.
        """
        for kind, own, others in (
            ("split", self.split, other.split),
            ("person", self.person, other.person),
        ):
            if own != others:
                raise DataError(
                    f"{where}: the record has {_what(kind, others)} and the first one "
                    f"{_what(kind, own)}; name the {kind} in every record, under one key, or in "
                    f"none"
                )


def _what(kind: str, key: str | None) -> str:
    return f"no {kind}" if key is None else f"a {kind} as {key!r}"


def read_json(text: bytes, where: str) -> Any:
    """Parse one JSON value.

    Raises:
        DataError: It is not valid JSON in UTF-8.
    """
    try:
        return json.loads(text.decode())
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where}: byte {error.start} is not valid UTF-8; save the file as UTF-8"
        ) from error
    except RecursionError as error:
        raise DataError(f"{where}: the JSON is nested too deeply; flatten it") from error
    except ValueError as error:
        # A list over several lines is reported by line and column, one line by column.
        raise DataError(f"{where}: not valid JSON ({reason_of(error)}); mend it") from (error)


def _first_byte(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            for line in file:
                start = line.removeprefix(BYTE_ORDER_MARK).lstrip(WHITE_SPACE)[:1]
                if start:
                    return start
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); correct the path") from error
    return b""


def _list_rows(path: Path) -> Iterator[tuple[Any, str]]:
    rows = read_json(path.read_bytes().removeprefix(BYTE_ORDER_MARK), str(path))
    # A JSON value that begins with a bracket is a list.
    for number, row in enumerate(rows, start=1):
        yield row, f"{path}, record {number}"


def _line_rows(path: Path) -> Iterator[tuple[Any, str]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            text = line.removeprefix(BYTE_ORDER_MARK) if number == 1 else line
            if not text.strip(WHITE_SPACE):
                continue
            where = f"{path}, line {number}"
            if text.strip(WHITE_SPACE) == b"{":
                raise DataError(
                    f"{where}: an object over several lines; expected a list of records, or one "
                    f"record on each line"
                )
            yield read_json(text, where), where
