"""Files of records with a text column: JSON, CSV and TSV, Parquet.

JSON is an object on each line (.jsonl, .ndjson), or values one after the other (.json): a list of
objects, or objects with white space between them, JSON lines and pretty-printed objects alike. It
is read by a scanner that never holds more than a record. In CSV and TSV (RFC 4180) quoted fields
may hold line ends.
"""

import csv
import json
import re
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import chain
from pathlib import Path
from typing import Any

from maskery.core.errors import DataError
from maskery.data.corpus.examples import Reading
from maskery.data.corpus.formats import format_of, too_long, whole_lines
from maskery.data.corpus.streams import COMPRESSIONS, cannot_read, open_blocks, open_stream

SPACE = re.compile(r"[ \t\n\r]*")
# An error this near the end of what was read may come from a token that goes on after it;
# the longest that is not a string is an escaped surrogate pair, 12 characters.
TOKEN_CHARS = 16
# Spreadsheets of many countries write semicolons into .csv files.
DELIMITERS = {"csv": (",", ";", "\t", "|"), "tsv": ("\t",)}
# Arrow's names of the types that hold text, or bytes that may be text.
TEXT_TYPES = frozenset(
    ["string", "large_string", "string_view", "binary", "large_binary", "binary_view", "null"]
)
MAX_BATCH_ROWS, BATCH_BYTES = 8192, 8 << 20  # Of rows that are decoded at once
# A packed table is unpacked to the disk, which a hostile one would fill.
UNPACKED_RATIO, MIN_UNPACKED_BYTES = 100, 1 << 26


def read_json_lines(reading: Reading) -> Iterator[str]:
    """Yield the texts of a JSON lines file."""
    decoder = new_decoder(reading)
    with open_blocks(reading) as blocks:
        for number, line in enumerate(whole_lines(blocks, reading), start=1):
            reading.number = number
            if not line.strip():
                continue
            try:
                record = decoder.decode(line)
            except (ValueError, RecursionError) as error:
                reading.refuse(f"is not valid JSON ({_why(error)})")
            else:
                yield from _texts([record], reading)


def read_json(reading: Reading) -> Iterator[str]:
    """Yield the texts of a JSON file: a list of objects, or objects one after the other."""
    with open_blocks(reading) as blocks:
        scanner = Scanner(blocks, reading)
        records = scanner.elements() if scanner.peek() == "[" else scanner.sequence()
        yield from _texts(records, reading)


def _texts(records: Iterable[object], reading: Reading) -> Iterator[str]:
    names = {str: "string", list: "list", bool: "boolean", int: "number", float: "number"}
    for record in records:
        if isinstance(record, dict):
            yield from reading.text_of(record)
        else:
            kind, column = names.get(type(record), "null"), reading.config.text_column
            reading.refuse(f"is a JSON {kind}, not an object with a column {column!r}")


def new_decoder(reading: Reading) -> json.JSONDecoder:
    """Return a decoder that lets the marks of bad text, NUL characters, pass to `Reading.mend`."""
    return json.JSONDecoder(strict=reading.config.on_bad_text == "fail")


def _why(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at character {error.pos + 1}"
    return "it is nested too deeply" if isinstance(error, RecursionError) else str(error)


class Scanner:
    """Takes JSON values off a stream of text blocks; `reading.place` is the line of each."""

    def __init__(self, blocks: Iterator[str], reading: Reading) -> None:
        self.blocks, self.reading = blocks, reading
        self.text, self.position, self.line = "", 0, 1
        self.decoder = new_decoder(reading)

    def elements(self) -> Iterator[object]:
        """Yield the elements of the list that starts here."""
        self._advance(self.position + 1)
        if self.peek() != "]":
            yield self._value()
            while self.peek() == ",":
                self._advance(self.position + 1)
                yield self._value()
        if self.peek() != "]":
            raise self._invalid("Expecting ',' or ']'")
        self._advance(self.position + 1)
        if self.peek():
            raise self._invalid("Extra data after the list")

    def sequence(self) -> Iterator[object]:
        """Yield values with nothing but white space between them."""
        while self.peek():
            yield self._value()

    def peek(self) -> str:
        """Return the next character that is not white space, or "" at the end."""
        while True:
            space = SPACE.match(self.text, self.position)
            assert space is not None
            self._advance(space.end())
            if self.position < len(self.text):
                return self.text[self.position]
            if not self._read_more():
                return ""

    def _value(self) -> object:
        self.peek()
        while True:
            try:
                value, end = self.decoder.raw_decode(self.text, self.position)
            except json.JSONDecodeError as error:
                near_the_end = error.pos >= len(self.text) - TOKEN_CHARS
                may_go_on = near_the_end or error.msg.startswith("Unterminated string")
                if may_go_on and self._read_more():
                    continue
                self._advance(min(error.pos, len(self.text)))
                raise self._invalid(error.msg) from error
            except (ValueError, RecursionError) as error:
                raise self._invalid(_why(error)) from error
            # A number this near the end may go on: "1" with digits, "1." and "1e-" with them.
            near_the_end = end + len("e-") >= len(self.text)
            if isinstance(value, (int, float)) and near_the_end and self._read_more():
                continue
            self.reading.number = self.line
            self._advance(end)
            return value

    def _advance(self, position: int) -> None:
        self.line += self.text.count("\n", self.position, position)
        self.position = position

    def _read_more(self) -> bool:
        """Read as much again as is held, so that a long record costs linear time."""
        parts = [self.text[self.position :]]
        wanted = max(1, len(parts[0]))
        if wanted > self.reading.max_record_chars:
            self.reading.number = self.line
            raise too_long(self.reading)
        size = 0
        while size < wanted and (block := next(self.blocks, None)) is not None:
            parts.append(block)
            size += len(block)
        if size == 0:
            return False
        self.text, self.position = "".join(parts), 0
        return True

    def _invalid(self, why: str) -> DataError:
        self.reading.number = self.line
        return DataError(f"{self.reading.place} is not valid JSON ({why}); mend the file")


def read_table(reading: Reading) -> Iterator[str]:
    """Yield the texts of a .csv or .tsv file with a header."""
    kind = format_of(reading.path, reading.config)
    quoted = reading.config.has_quotes(kind)
    # The limit is the process's own, 128 KiB by default; it is only ever raised.
    csv.field_size_limit(max(csv.field_size_limit(), reading.max_record_chars))
    with open_blocks(reading) as blocks:
        lines = enumerate(whole_lines(blocks, reading), start=1)
        first, header_line = next(((n, line) for n, line in lines if line.strip()), (0, ""))
        if not first:
            return
        # The first delimiter that makes a column of the wanted name; failing that, the first.
        wanted = {reading.config.text_column, *reading.config.text_column.split(",")}
        headers = {d: next(csv.reader([header_line], delimiter=d)) for d in DELIMITERS[kind]}
        fitting = (d for d, names in headers.items() if not wanted.isdisjoint(names))
        delimiter = next(fitting, DELIMITERS[kind][0])
        rest = chain([header_line], (line for _, line in lines))
        rows = _rows(rest, delimiter, quoted, first, reading)
        header = next(rows)
        for name in reading.roots_of(header):
            if header.count(name) > 1:
                problem = f"{reading.place} names the column {name!r} {header.count(name)} times"
                fix = "rename the others, or name another column by --text-column"
                raise DataError(f"{problem}; {fix}")
        for row in rows:
            if not row or (len(row) == 1 and not row[0].strip()):
                continue
            if len(row) != len(header):
                rule = "must stand in quotes" if quoted else "needs --quoting on"
                sizes = f"has {len(row)} fields, the header has {len(header)}"
                reading.refuse(f"{sizes}: a field that holds {delimiter!r} or a line end {rule}")
            else:
                yield from reading.text_of(dict(zip(header, row, strict=True)))


def _rows(
    lines: Iterable[str], delimiter: str, quoted: bool, first: int, reading: Reading
) -> Iterator[list[str]]:
    """Yield rows; quoted fields may hold line ends. `reading.place` is where each row starts."""
    quoting: Any = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    ended = (f"{line}\n" for line in lines)
    rows = csv.reader(ended, delimiter=delimiter, quoting=quoting, strict=True)
    while True:
        before = rows.line_num
        reading.number = first + before
        try:
            row = next(rows, None)
        except csv.Error as error:
            if "field larger" in str(error):
                raise too_long(reading) from error
            problem = f"{reading.place} starts a row that is not valid CSV ({error})"
            rule = "quotes inside a quoted field are doubled, and every quote is closed"
            fix = "if quotes are text, pass --quoting off"
            raise DataError(f"{problem}; {rule}; {fix}") from error
        if row is None:
            return
        reading.report.merged += rows.line_num > before + 1
        yield row


def read_parquet(reading: Reading) -> Iterator[str]:
    """Yield the texts of a Parquet file."""
    import pyarrow.parquet as pq

    reading.unit = "row"
    with (
        parquet_errors(reading.path),
        _seekable(reading) as file,
        pq.ParquetFile(file, buffer_size=reading.block_bytes, pre_buffer=False) as table,
    ):
        size = reading.path.stat().st_size or 0
        packed = reading.path.suffix.lower() in COMPRESSIONS
        columns = _check_columns(table.schema_arrow, reading)
        first, end = reading.span or (0, table.num_row_groups)
        reading.number = sum(table.metadata.row_group(group).num_rows for group in range(first))
        chosen = {"row_groups": range(first, end), "columns": columns, "use_threads": False}
        for batch in table.iter_batches(_batch_rows(table.metadata, columns), **chosen):
            yield from reading.texts(_values(batch, reading))
            if not packed:  # else it was counted when it was unpacked
                reading.on_read(size * batch.num_rows // max(1, table.metadata.num_rows))


@contextmanager
def parquet_errors(path: Path) -> Iterator[None]:
    """Turn errors of the block into one line about a Parquet file."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError) as error:
        # Arrow raises OSError too; only the system's errors have a number.
        if isinstance(error, OSError) and error.errno is not None:
            raise cannot_read(path, error) from error
        problem = f"{path} is no whole Parquet file ({str(error).splitlines()[0]})"
        fix = "it is cut short, damaged or of another kind; fetch it again"
        raise DataError(f"{problem}; {fix}") from error


@contextmanager
def _seekable(reading: Reading) -> Iterator[Any]:
    """Open a file to seek in, since Parquet begins at its end; a packed one as a temporary copy."""
    path = reading.path
    if path.suffix.lower() not in COMPRESSIONS:
        with nullcontext(path) if isinstance(path, Path) else path.open("rb") as file:
            yield file
        return
    most = max(MIN_UNPACKED_BYTES, UNPACKED_RATIO * (path.stat().st_size or 0))
    with tempfile.TemporaryFile() as copy, open_stream(path, reading.on_read) as stream:
        while block := stream.read(reading.block_bytes):
            if copy.tell() + len(block) > most:
                problem = f"{path} unpacks to more than {UNPACKED_RATIO} times its size"
                raise DataError(f"{problem}; unpack it yourself if it is sound")
            copy.write(block)
        copy.seek(0)
        yield copy


def _check_columns(schema: Any, reading: Reading) -> list[str]:
    """Return the columns to read: one of strings, or those that records are made of."""
    name = reading.config.text_column
    if name not in schema.names or reading.group_column is not None:
        return reading.roots_of(schema.names)
    kind = schema.field(name).type
    kind = getattr(kind, "value_type", kind) if str(kind).startswith("dictionary") else kind
    if str(kind) not in TEXT_TYPES:
        problem = f"{reading.place} holds values of type {kind} in the column {name!r}"
        raise DataError(f"{problem}; they must be strings: name a column of text by --text-column")
    return [name]


def _batch_rows(metadata: Any, columns: list[str]) -> int:
    """Return how many rows make about `BATCH_BYTES` of the columns, uncompressed."""
    groups = (metadata.row_group(number) for number in range(metadata.num_row_groups))
    chunks = (group.column(number) for group in groups for number in range(group.num_columns))
    num_bytes = 0
    for chunk in chunks:
        path = chunk.path_in_schema  # of what is nested, such as note.body
        if path in columns or path.partition(".")[0] in columns:
            num_bytes += chunk.total_uncompressed_size
    mean = num_bytes / max(1, metadata.num_rows)
    return max(1, min(MAX_BATCH_ROWS, int(BATCH_BYTES / max(1.0, mean))))


def _values(batch: Any, reading: Reading) -> Any:
    """Return the values of a batch: strings, bytes (also where UTF-8 is damaged), or records."""
    import pyarrow as pa

    if batch.schema.names != [reading.config.text_column]:
        return batch.to_pylist()
    array = batch.column(0)
    if pa.types.is_dictionary(array.type):
        array = array.cast(array.type.value_type)
    try:
        return array.to_pylist()
    except UnicodeDecodeError:  # some writers do not check what they write
        return array.cast(pa.large_binary()).to_pylist()
