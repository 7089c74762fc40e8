"""JSON: an object on each line (.jsonl, .ndjson), or values one after the other (.json).

A `.json` file may hold a list of objects, or objects with white space between them: JSON lines
and pretty-printed objects alike. It is read by a scanner that never holds more than a record.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator

from maskery.core.errors import DataError
from maskery.data.corpus.examples import Reading
from maskery.data.corpus.formats import too_long, whole_lines
from maskery.data.corpus.streams import open_blocks

SPACE = re.compile(r"[ \t\n\r]*")
# An error this near the end of what was read may come from a token that goes on after it;
# the longest that is not a string is an escaped surrogate pair, 12 characters.
TOKEN_CHARS = 16


def read_json_lines(reading: Reading) -> Iterator[str]:
    """Yield the texts of a JSON lines file."""
    decoder = new_decoder(reading)
    with open_blocks(reading) as blocks:
        for number, line in enumerate(whole_lines(blocks, reading), start=1):
            reading.number = number
            if not line or line.isspace():
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
            text = reading.text_of(record)
            if text is not None:
                yield text
        else:
            kind, column = names.get(type(record), "null"), reading.config.text_column
            reading.refuse(f"is a JSON {kind}, not an object with a column {column!r}")


def new_decoder(reading: Reading) -> json.JSONDecoder:
    """Return a decoder that lets the marks of bad text pass, where there may be some."""
    # They are NUL characters inside strings; `Reading.mend` deals with those in the text column.
    return json.JSONDecoder(strict=reading.config.on_bad_text == "fail")


def _why(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at character {error.pos + 1}"
    return "it is nested too deeply" if isinstance(error, RecursionError) else str(error)


class Scanner:
    """Takes JSON values off a stream of text blocks.

    When a value is given out, `reading.place` is the line that it starts at.
    """

    def __init__(self, blocks: Iterator[str], reading: Reading) -> None:
        self.blocks, self.reading = blocks, reading
        self.text, self.position, self.line = "", 0, 1
        self.decoder = new_decoder(reading)

    def elements(self) -> Iterator[object]:
        """Yield the elements of the list that starts here."""
        self._advance(self.position + 1)
        if self.peek() == "]":
            self._advance(self.position + 1)
        else:
            while True:
                yield self._value()
                separator = self.peek()
                if separator not in (",", "]"):
                    raise self._invalid("Expecting ',' or ']'")
                self._advance(self.position + 1)
                if separator == "]":
                    break
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
        while size < wanted:
            block = next(self.blocks, None)
            if block is None:
                break
            parts.append(block)
            size += len(block)
        if size == 0:
            return False
        self.text, self.position = "".join(parts), 0
        return True

    def _invalid(self, why: str) -> DataError:
        self.reading.number = self.line
        return DataError(f"{self.reading.place} is not valid JSON ({why}); mend the file")
