"""Pairs in tables: JSON (one list), JSONL (one object a line), CSV and TSV, and Parquet.

A text table names its images by paths, relative to its own folder unless `images` is set. Hugging
Face's `imagefolder` is a folder of such tables, called `metadata.jsonl` or `metadata.csv`. In
Parquet images are bytes, as Hugging Face datasets writes them, or paths.
"""

import codecs
import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from maskery.core.errors import DataError, explained, reason_of
from maskery.data.images.loading import ImageRef
from maskery.data.pairs.config import PairsConfig
from maskery.data.pairs.records import (
    IN_FILE,
    SPLIT_COLUMN,
    Place,
    Reader,
    Record,
    brief,
    find_columns,
    person_column,
    read_row,
)

ReadTable: TypeAlias = Callable[[Path, PairsConfig], Iterator[Record]]

# Row groups whose images stay in memory: a few, as each may hold hundreds of megabytes.
GROUPS_KEPT = 4
# What pyarrow raises on damaged files.
UNSOUND = (pa.ArrowException, OSError, ValueError, TypeError, LookupError, OverflowError)


def table_folder(path: Path, config: PairsConfig, root: Path) -> str:
    """Return the folder that a table's image paths are relative to, itself relative to the root."""
    if config.images is not None or path == root:  # which a reader of the user's own reads whole
        return ""
    return path.parent.relative_to(root).as_posix()


def _open_text(read: ReadTable, paths: Sequence[Path], config: PairsConfig, root: Path) -> Reader:
    def records() -> Iterator[Record]:
        for number, path in enumerate(paths):
            place, folder = (number, IN_FILE, 0), table_folder(path, config, root)
            for record in read(path, config):
                yield replace(record, place=place, folder=folder, images=config.images)

    return Reader(records(), config.images or root, config.max_pixels)


def csv_records(path: Path, config: PairsConfig) -> Iterator[Record]:
    """Read a table whose header is separated by tabs or by commas."""
    reader: Any = None
    try:
        reading = explained(f"{path} cannot be read", "correct the path")
        with reading, path.open(encoding="utf-8-sig", newline="") as file:
            start = file.readline()  # the header decides; the reader below starts anew
            file.seek(0)
            # open_clip writes tabs into files called .csv.
            reader = csv.reader(file, delimiter="\t" if "\t" in start else ",", strict=True)
            header: list[str] = next(reader, [])
            if len(set(header)) < len(header):
                raise DataError(f"{path}, line 1: a column name occurs twice; rename one")
            columns = find_columns(header, config, f"{path}, line 1")
            for row in filter(None, reader):
                where = f"{path}, line {reader.line_num}"
                if len(row) != len(header):
                    problem = f"{len(row)} fields where the header has {len(header)}"
                    raise DataError(f"{where}: {problem}; quote fields that hold the separator")
                yield read_row(dict(zip(header, row, strict=True)), columns, where)
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not valid UTF-8 ({error.reason}); save it as UTF-8") from error
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: {error}; mend the quoting") from error


def json_records(path: Path, config: PairsConfig) -> Iterator[Record]:
    """Read a `.json` or `.jsonl` file; its content decides which of the two it is."""
    # The columns of a file are those of its first record. Were the others not held to them, a file
    # whose first record has no split would be trained on whole, its test split included.
    first: dict[str, str | None] = {}
    for row, where in _json_rows(path):
        if not isinstance(row, dict):
            expected = "an object with image and caption is expected"
            raise DataError(f"{where}: found {brief(row)} where {expected}")
        split = None if row.get(SPLIT_COLUMN) is None else SPLIT_COLUMN
        named = {"split": split, "person": person_column(row, config)}
        if not first:
            columns, first = find_columns(row, config, where), named
        for kind in (kind for kind, key in named.items() if key != first[kind]):
            keys = named[kind], first[kind]
            found, expected = (f"a {kind} as {key!r}" if key else f"no {kind}" for key in keys)
            fix = f"name the {kind} in every record, under one key, or in none"
            raise DataError(f"{where}: the record has {found} and the first one {expected}; {fix}")
        yield read_row(row, columns, where)


def read_json(text: bytes, where: str) -> Any:
    """Parse one JSON value."""
    try:
        return json.loads(text.decode())
    except UnicodeDecodeError as error:
        problem = f"byte {error.start} is not valid UTF-8"
        raise DataError(f"{where}: {problem}; save the file as UTF-8") from error
    except RecursionError as error:
        raise DataError(f"{where}: the JSON is nested too deeply; flatten it") from error
    except ValueError as error:
        # A list over several lines is reported by line and column, one line by column.
        raise DataError(f"{where}: not valid JSON ({reason_of(error)}); mend it") from error


def _json_rows(path: Path) -> Iterator[tuple[Any, str]]:
    """Yield the values of a list, or one a line, and where each is."""
    of_lines = False
    with explained(f"{path} cannot be read", "correct the path"), path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            # Windows programs write a mark at the start.
            text = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            start = text.strip(b" \t\r\n")
            if start[:1] == b"[" and not of_lines:
                # Blank lines before it count, for messages about places in it.
                whole = b"\n" * (number - 1) + text + file.read()
                values = enumerate(read_json(whole, str(path)), start=1)
                yield from ((value, f"{path}, record {place}") for place, value in values)
            elif start:
                of_lines, where = True, f"{path}, line {number}"
                if start == b"{":
                    fix = "expected a list of records, or one record on each line"
                    raise DataError(f"{where}: an object over several lines; {fix}")
                yield read_json(text, where), where


open_json = partial(_open_text, json_records)
open_csv = partial(_open_text, csv_records)


def open_parquet(paths: Sequence[Path], config: PairsConfig, root: Path) -> Reader:
    """Open one or more Parquet tables; DataError if a file is none, or lacks a column."""
    tables = [Table(path, config, root, number) for number, path in enumerate(paths)]
    images = config.images or root
    # A row group is read whole, for any of its images.
    group_of = lru_cache(GROUPS_KEPT)(lambda number, group: tables[number].group(group))

    def read(place: Place) -> bytes:
        number, row, _ = place
        table = tables[number]
        where = f"{table.path}, row {row}"

        def file(path: object) -> ImageRef:
            record = Record(image=path, where=where, folder=table.folder, images=config.images)
            return ImageRef.file(record.name, images)

        group = int(np.searchsorted(table.first_rows, row, side="right")) - 1
        value = group_of(number, group)[row - int(table.first_rows[group])].as_py()
        return stored_bytes(value, where, file)

    records = (record for table in tables for record in table.records())
    return Reader(records, images, config.max_pixels, read)


def stored_bytes(value: Any, where: str, file: Callable[[Any], ImageRef]) -> bytes:
    """Return an image as tables store it: bytes, or a mapping of bytes or else a path."""
    if isinstance(value, Mapping):
        path, value = value.get("path"), value.get("bytes")
        if value is None and path:
            with file(path).open() as opened:
                return opened.read()
    if not isinstance(value, bytes):
        raise DataError(f"{where}: the image is null; remove the row")
    return value


def _sound(path: Path) -> AbstractContextManager[None]:
    """Turn errors of the block into one line about a Parquet file."""
    problem = f"{path} is not a sound Parquet file"
    return explained(problem, "restore or remove it", *UNSOUND, most=200)


class Table:
    """One Parquet table, opened for each row group and closed again, for forked workers' sake."""

    def __init__(self, path: Path, config: PairsConfig, root: Path, number: int) -> None:
        self.path, self.number = path, number
        self.name = path.relative_to(root).as_posix()
        self.folder, self.images = table_folder(path, config, root), config.images
        with _sound(path):
            file = pq.ParquetFile(path)
        self.metadata, schema = file.metadata, file.schema_arrow
        sizes = [self.metadata.row_group(i).num_rows for i in range(self.metadata.num_row_groups)]
        self.first_rows = np.cumsum([0, *sizes])
        self.columns = find_columns(schema.names, config, str(path))
        self.image = self.columns["image"]
        kind = schema.field(self.image).type
        self.is_path = pa.types.is_string(kind) or pa.types.is_large_string(kind)
        is_bytes = pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
        is_struct = pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0
        if not (is_bytes or is_struct or self.is_path):
            expected = "expected bytes, paths, or Hugging Face's struct of both"
            raise DataError(f"{path}: column {self.image!r} is of type {kind}; {expected}")

    def records(self) -> Iterator[Record]:
        """Yield every row, without its image bytes."""
        wanted = [name for kind, name in self.columns.items() if kind != "image"]
        # Parquet passes over a name that a table has not: a path stands beside bytes in some.
        wanted.append(self.image if self.is_path else f"{self.image}.path")
        with _sound(self.path):
            # Captions are short: thousands of rows are a few megabytes.
            batches = pq.ParquetFile(self.path).iter_batches(batch_size=4096, columns=wanted)
            for number, row in enumerate(row for batch in batches for row in batch.to_pylist()):
                yield self._record(row, number)

    def _record(self, row: dict[str, Any], number: int) -> Record:
        where = f"{self.path}, row {number}"
        if self.is_path:
            found = {"place": (self.number, IN_FILE, 0), "folder": self.folder}
            return read_row(row, self.columns, where, **found, images=self.images)
        name, image = f"{self.name}#{number}", row.get(self.image)
        if isinstance(image, dict) and image.get("path"):
            # Beside bytes the path is only a name, and often the same in every row.
            name = f"{name}/{Path(image['path']).name}"
        return read_row(row, self.columns, where, place=(self.number, number, 0), image=name)

    def group(self, group: int) -> Any:
        """Return the image column of a row group."""
        expected = self.metadata.row_group(group).num_rows
        with _sound(self.path), pq.ParquetFile(self.path, metadata=self.metadata) as file:
            table = file.read_row_group(group, columns=[self.image], use_threads=False)
            # Damage inside a page can shorten it without an error.
            if table.num_rows != expected:
                raise ValueError(f"row group {group} has {table.num_rows} of {expected} rows")
        return table.column(0)
