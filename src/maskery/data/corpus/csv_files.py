"""Comma- and tab-separated tables with a header (RFC 4180: quoted fields may hold line ends)."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from itertools import chain

from maskery.core.errors import DataError
from maskery.data.corpus.reading import Reading
from maskery.data.corpus.records import open_blocks, too_long, whole_lines

# Spreadsheets of many countries write semicolons into .csv files.
DELIMITERS = {"csv": (",", ";", "\t", "|"), "tsv": ("\t",)}


def read_csv(reading: Reading) -> Iterator[str]:
    """The texts of a .csv file; see `read_table`."""
    return read_table(reading, DELIMITERS["csv"])


def read_tsv(reading: Reading) -> Iterator[str]:
    """The texts of a .tsv file; see `read_table`."""
    return read_table(reading, DELIMITERS["tsv"])


def read_table(reading: Reading, delimiters: tuple[str, ...]) -> Iterator[str]:
    """The texts of a table with a header.

    Args:
        reading: The file.
        delimiters: The first that makes a column of the text column's name in the header is taken.

    Raises:
        DataError: The text column is missing, a row has more or fewer fields than the header, or
            quotes do not match.
    """
    # The limit is the process's own, 128 KiB by default; it is only ever raised.
    csv.field_size_limit(max(csv.field_size_limit(), reading.max_record_chars))
    with open_blocks(reading) as blocks:
        lines = whole_lines(blocks, reading)
        num_blank = 0
        header_line = ""
        for line in lines:
            if line.strip():
                header_line = line
                break
            num_blank += 1
        else:
            return
        delimiter = choose_delimiter(header_line, reading.config.text_column, delimiters)
        numbered = (f"{line}\n" for line in chain([header_line], lines))
        rows = csv.reader(numbered, delimiter=delimiter, strict=True)
        header = _next_row(rows, reading, num_blank) or []
        column = _column(header, reading)
        while (row := _next_row(rows, reading, num_blank)) is not None:
            if not row or (len(row) == 1 and not row[0].strip()):
                continue
            if len(row) != len(header):
                reading.refuse(
                    f"has {len(row)} fields, the header has {len(header)}: a field that holds "
                    f"{delimiter!r} or a line end must stand in quotes"
                )
                continue
            yield row[column]


def choose_delimiter(header_line: str, column: str, delimiters: tuple[str, ...]) -> str:
    """The first delimiter that makes a column of that name; failing that, the first."""
    for delimiter in delimiters:
        if column in next(csv.reader([header_line], delimiter=delimiter)):
            return delimiter
    return delimiters[0]


def _column(header: list[str], reading: Reading) -> int:
    """The index of the text column."""
    name = reading.config.text_column
    if name not in header:
        raise reading.missing_column(header)
    if header.count(name) > 1:
        raise DataError(
            f"{reading.place} names the column {name!r} {header.count(name)} times; "
            "rename the others, or name another column by --text-column"
        )
    return header.index(name)


def _next_row(
    rows: csv.Reader,  # type: ignore[name-defined]
    reading: Reading,
    num_blank: int,
) -> list[str] | None:
    """The next row, or None at the end; `reading.place` is the line it starts at."""
    reading.place.number = num_blank + rows.line_num + 1
    try:
        row: list[str] | None = next(rows, None)
    except csv.Error as error:
        if "field larger" in str(error):
            raise too_long(reading) from error
        raise DataError(
            f"{reading.place} starts a row that is not valid CSV ({error}); quotes inside a quoted "
            "field are doubled, and every quote is closed"
        ) from error
    return row
