"""Pairs in CSV and TSV, with a header line."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from maskery.core.errors import DataError
from maskery.data.pairs.config import PairsConfig
from maskery.data.pairs.records import Record, find_columns


def csv_records(path: Path, config: PairsConfig) -> Iterator[Record]:
    """Read a table whose header is separated by tabs or by commas.

    Raises:
        DataError: It cannot be read or is not valid.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield from _rows(path, file, config)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); correct the path") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not valid UTF-8 ({error.reason}); save it as UTF-8") from error


def _rows(path: Path, file: TextIO, config: PairsConfig) -> Iterator[Record]:
    start = file.readline()
    file.seek(0)
    # open_clip writes tabs into files called .csv.
    reader = csv.reader(file, delimiter="\t" if "\t" in start else ",", strict=True)
    try:
        header = next(reader, [])
        where = f"{path}, line 1"
        if len(set(header)) < len(header):
            raise DataError(f"{where}: a column name occurs twice; rename one")
        columns = find_columns(header, config, where)
        for row in reader:
            where = f"{path}, line {reader.line_num}"
            if not row:
                continue
            if len(row) != len(header):
                raise DataError(
                    f"{where}: {len(row)} fields where the header has {len(header)}; quote fields "
                    f"that hold the separator"
                )
            yield columns.read(dict(zip(header, row, strict=True)), where)
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: {error}; mend the quoting") from error
