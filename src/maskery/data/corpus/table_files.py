"""Tables with a text column: CSV and TSV (RFC 4180: quoted fields may hold line ends), Parquet."""

from __future__ import annotations

import csv
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

from maskery.core.errors import DataError
from maskery.data.corpus.examples import Reading
from maskery.data.corpus.streams import COMPRESSIONS, cannot_read, open_blocks, open_stream
from maskery.data.corpus.text_files import too_long, whole_lines

# Spreadsheets of many countries write semicolons into .csv files.
DELIMITERS = {"csv": (",", ";", "\t", "|"), "tsv": ("\t",)}
MAX_BATCH_ROWS = 8192
BATCH_BYTES = 8 << 20
# A packed table is unpacked to the disk, which a hostile one would fill.
UNPACKED_RATIO = 100
MIN_UNPACKED_BYTES = 1 << 26


def read_csv(reading: Reading) -> Iterator[str]:
    """Yield the texts of a .csv file; see `read_table`."""
    return read_table(reading, DELIMITERS["csv"])


def read_tsv(reading: Reading) -> Iterator[str]:
    """Yield the texts of a .tsv file; see `read_table`."""
    return read_table(reading, DELIMITERS["tsv"])


def read_table(reading: Reading, delimiters: tuple[str, ...]) -> Iterator[str]:
    """Yield the texts of a table with a header.

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
    """Return the first delimiter that makes a column of that name; failing that, the first."""
    for delimiter in delimiters:
        if column in next(csv.reader([header_line], delimiter=delimiter)):
            return delimiter
    return delimiters[0]


def _column(header: list[str], reading: Reading) -> int:
    """Return the index of the text column."""
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
    """Return the next row, or None at the end; `reading.place` is the line it starts at."""
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


def read_parquet(reading: Reading) -> Iterator[str]:
    """Yield the texts of a Parquet file.

    Raises:
        DataError: It is damaged, has no such column, or the column does not hold strings.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    reading.place.unit = "row"
    column = reading.config.text_column
    try:
        size = reading.path.stat().st_size or 0
        with (
            _seekable(reading) as file,
            pq.ParquetFile(file, buffer_size=reading.block_bytes, pre_buffer=False) as table,
        ):
            _check_column(table.schema_arrow, reading)
            num_rows = max(1, table.metadata.num_rows)
            first, end = reading.span or (0, table.num_row_groups)
            reading.place.number = sum(
                table.metadata.row_group(group).num_rows for group in range(first)
            )
            for batch in table.iter_batches(
                _batch_rows(table.metadata, column),
                row_groups=range(first, end),
                columns=[column],
                use_threads=False,
            ):
                for value in _values(batch.column(0)):
                    reading.place.number += 1
                    text = _text(value, reading)
                    if text is not None:
                        yield text
                if reading.path.suffix.lower() not in COMPRESSIONS:
                    reading.on_read(size * batch.num_rows // num_rows)
    except pa.ArrowException as error:
        raise _damaged(reading, error) from error
    except OSError as error:
        if error.errno is None:  # Arrow's own; the system's have a number
            raise _damaged(reading, error) from error
        raise cannot_read(reading.path, error) from error


@contextmanager
def _seekable(reading: Reading) -> Iterator[Any]:
    """Open a file to seek in, since Parquet begins at its end; a packed one as a temporary copy."""
    if reading.path.suffix.lower() not in COMPRESSIONS:
        if isinstance(reading.path, Path):
            yield reading.path
        else:
            with reading.path.open("rb") as file:
                yield file
        return
    most = max(MIN_UNPACKED_BYTES, UNPACKED_RATIO * (reading.path.stat().st_size or 0))
    with tempfile.TemporaryFile() as copy, open_stream(reading.path, reading.on_read) as stream:
        while block := stream.read(reading.block_bytes):
            if copy.tell() + len(block) > most:
                raise DataError(
                    f"{reading.path} unpacks to more than {UNPACKED_RATIO} times its size; unpack "
                    "it yourself if it is sound"
                )
            copy.write(block)
        copy.seek(0)
        yield copy


def _check_column(schema: Any, reading: Reading) -> None:
    import pyarrow.types as types

    name = reading.config.text_column
    if name not in schema.names:
        raise reading.missing_column(schema.names)
    kind = schema.field(name).type
    if types.is_dictionary(kind):
        kind = kind.value_type
    are_text = (types.is_string, types.is_large_string, types.is_string_view)
    are_bytes = (types.is_binary, types.is_large_binary, types.is_binary_view)
    if not any(is_kind(kind) for is_kind in (*are_text, *are_bytes, types.is_null)):
        raise DataError(
            f"{reading.place} holds values of type {kind} in the column {name!r}; they must be "
            "strings: name a column of text by --text-column"
        )


def _batch_rows(metadata: Any, column: str) -> int:
    """Return how many rows make about `BATCH_BYTES` of the column, uncompressed."""
    num_bytes = 0
    for group in range(metadata.num_row_groups):
        row_group = metadata.row_group(group)
        for index in range(row_group.num_columns):
            if row_group.column(index).path_in_schema == column:
                num_bytes += row_group.column(index).total_uncompressed_size
    mean = num_bytes / max(1, metadata.num_rows)
    return max(1, min(MAX_BATCH_ROWS, int(BATCH_BYTES / max(1.0, mean))))


def _values(array: Any) -> list[object]:
    """Return the values of a column; bytes if it is binary or not the UTF-8 it should be."""
    import pyarrow as pa

    if pa.types.is_dictionary(array.type):
        array = array.cast(array.type.value_type)
    try:
        values: list[object] = array.to_pylist()
    except UnicodeDecodeError:  # some writers do not check what they write
        values = array.cast(pa.large_binary()).to_pylist()
    return values


def _text(value: object, reading: Reading) -> str | None:
    """Return the text of a value, or None if it is skipped."""
    if not isinstance(value, bytes):
        return reading.value(value)
    try:
        return reading.value(value.decode())
    except UnicodeDecodeError as error:
        if reading.config.on_bad_text == "replace":
            reading.report.replaced += 1
            return reading.value(value.decode("utf-8", "replace"))
        reading.refuse(
            f"holds 0x{value[error.start]:02x} at byte {error.start} of its value, "
            "which is not valid utf-8"
        )
        return None


def _damaged(reading: Reading, error: Exception) -> DataError:
    return DataError(
        f"{reading.path} is no whole Parquet file ({str(error).splitlines()[0]}); "
        "it is cut short, damaged or of another kind; fetch it again"
    )
