"""Pairs in text tables: JSON (one list), JSONL (one object a line), CSV and TSV.

A table names its images by paths, relative to its own folder unless `images` is set. Hugging Face's
`imagefolder` is a folder of such tables, called `metadata.jsonl` or `metadata.csv`.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from maskery.core.errors import DataError, reason_of
from maskery.data.pairs.config import PairsConfig
from maskery.data.pairs.pictures import IN_FILE, image_refs
from maskery.data.pairs.records import (
    SPLIT_COLUMN,
    Columns,
    Reader,
    Record,
    brief,
    find_columns,
    person_column,
)

# Windows programs write it at the start of UTF-8 files.
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
WHITE_SPACE = b" \t\r\n"


def open_tables(
    read: Callable[[Path, PairsConfig], Iterator[Record]],
    paths: Sequence[Path],
    config: PairsConfig,
    root: Path,
) -> Reader:
    """Open tables that are read by one of the functions below."""

    def records() -> Iterator[Record]:
        for number, path in enumerate(paths):
            folder = table_folder(path, config, root)
            for record in read(path, config):
                yield replace(record, folder=folder, place=(number, IN_FILE, 0))

    return Reader(records=records(), ref=image_refs(config.images or root, config.max_pixels))


def table_folder(path: Path, config: PairsConfig, root: Path) -> str:
    """Return the folder that a table's image paths are relative to, itself relative to the root."""
    return "" if config.images is not None else path.parent.relative_to(root).as_posix()


def csv_records(path: Path, config: PairsConfig) -> Iterator[Record]:
    """Read a table whose header is separated by tabs or by commas."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield from _csv_rows(path, file, config)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); correct the path") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not valid UTF-8 ({error.reason}); save it as UTF-8") from error


def _csv_rows(path: Path, file: TextIO, config: PairsConfig) -> Iterator[Record]:
    start = file.readline()  # the header decides; the reader below starts anew
    file.seek(0)
    # open_clip writes tabs into files called .csv.
    reader = csv.reader(file, delimiter="\t" if "\t" in start else ",", strict=True)
    try:
        header = next(reader, [])
        if len(set(header)) < len(header):
            raise DataError(f"{path}, line 1: a column name occurs twice; rename one")
        columns = find_columns(header, config, f"{path}, line 1")
        for row in filter(None, reader):
            where = f"{path}, line {reader.line_num}"
            if len(row) != len(header):
                raise DataError(
                    f"{where}: {len(row)} fields where the header has {len(header)}; quote fields "
                    f"that hold the separator"
                )
            yield columns.read(dict(zip(header, row, strict=True)), where)
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: {error}; mend the quoting") from error


def json_records(path: Path, config: PairsConfig) -> Iterator[Record]:
    """Read a `.json` or `.jsonl` file; its content decides which of the two it is."""
    columns: Columns | None = None
    # The columns of a file are those of its first record. Were the others not held to them, a file
    # whose first record has no split would be trained on whole, its test split included.
    first: dict[str, str | None] = {}
    for row, where in _json_rows(path):
        if not isinstance(row, dict):
            raise DataError(
                f"{where}: found {brief(row)} where an object with image and caption is expected"
            )
        columns = columns or find_columns(row, config, where)
        split = None if row.get(SPLIT_COLUMN) is None else SPLIT_COLUMN
        named = {"split": split, "person": person_column(row, config)}
        first = first or named
        _require_same_names(first, named, where)
        yield columns.read(row, where)


def _require_same_names(
    first: Mapping[str, str | None], other: Mapping[str, str | None], where: str
) -> None:
    """Refuse a record that names a split or a person where the first does not, or the reverse."""
    for kind, own in first.items():
        if own != other[kind]:
            found, expected = (
                f"a {kind} as {key!r}" if key is not None else f"no {kind}"
                for key in (other[kind], own)
            )
            raise DataError(
                f"{where}: the record has {found} and the first one {expected}; name the {kind} "
                f"in every record, under one key, or in none"
            )


def read_json(text: bytes, where: str) -> Any:
    """Parse one JSON value."""
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
        raise DataError(f"{where}: not valid JSON ({reason_of(error)}); mend it") from error


def _json_rows(path: Path) -> Iterator[tuple[Any, str]]:
    """Yield the values of a list, or one a line, and where each is."""
    of_lines = False
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                text = line.removeprefix(BYTE_ORDER_MARK) if number == 1 else line
                start = text.strip(WHITE_SPACE)
                if start[:1] == b"[" and not of_lines:
                    # Blank lines before it count, for messages about places in it.
                    whole = b"\n" * (number - 1) + text + file.read()
                    values = enumerate(read_json(whole, str(path)), start=1)
                    yield from ((value, f"{path}, record {place}") for place, value in values)
                elif start:
                    of_lines, where = True, f"{path}, line {number}"
                    if start == b"{":
                        raise DataError(
                            f"{where}: an object over several lines; expected a list of records, "
                            f"or one record on each line"
                        )
                    yield read_json(text, where), where
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); correct the path") from error


open_json = partial(open_tables, json_records)
open_csv = partial(open_tables, csv_records)
