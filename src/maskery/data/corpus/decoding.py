"""Bytes to characters, block by block, with the exact byte of whatever is wrong.

Bad text is a byte sequence that the encoding does not have, or a NUL character. Under `fail` the
first one is an error that names its offset in the decompressed stream. Under `skip` and `replace`
every bad sequence becomes one NUL character, the mark that `Reading.mend` deals with.
"""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterator

from maskery.core.errors import DataError
from maskery.data.corpus.compression import Readable
from maskery.data.corpus.config import OnBadText
from maskery.data.corpus.reading import BLOCK_BYTES

# UTF-32's marks stand before UTF-16's, which they begin with.
BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
LONGEST_MARK = 4
SIGNATURES = {
    b"\x1f\x8b": "a gzip archive (.gz)",
    b"\xfd7zXZ\x00": "an xz archive (.xz)",
    b"\x28\xb5\x2f\xfd": "a Zstandard archive (.zst)",
    b"BZh": "a bzip2 archive (.bz2)",
    b"PK\x03\x04": "a zip archive or an office document",
    b"%PDF": "a PDF document",
    b"PAR1": "a Parquet file (.parquet)",
}
MARKING = "maskery.mark"


def decoded_blocks(
    stream: Readable,
    *,
    source: str,
    encoding: str,
    on_bad_text: OnBadText,
    block_bytes: int = BLOCK_BYTES,
) -> Iterator[str]:
    r"""Decode a stream; line ends `\r\n` and `\r` become `\n`.

    Args:
        stream: Where the bytes come from.
        source: What messages call it.
        encoding: Any text encoding of Python's.
        on_bad_text: Whether bad text is an error or is marked by NUL characters.
        block_bytes: No read asks for more.

    Raises:
        DataError: Bad text under `fail`, or a byte-order mark that contradicts the encoding.
    """
    codecs.register_error(MARKING, _mark)
    head = _read_head(stream, block_bytes)
    name, offset = resolve_encoding(encoding, head, source)
    strict = on_bad_text == "fail"
    decoder = codecs.getincrementaldecoder(name)("strict" if strict else MARKING)
    newlines = io.IncrementalNewlineDecoder(None, translate=True)
    data = head[offset:] or stream.read(block_bytes)
    while True:
        state = decoder.getstate()
        try:
            text = decoder.decode(data, not data)
        except UnicodeError as error:
            raise _bad_text(name, state, data, offset, source, head) from error
        if strict and "\0" in text:
            raise _bad_text(name, state, data, offset, source, head)
        yield newlines.decode(text, not data)
        if not data:
            return
        offset += len(data)
        data = stream.read(block_bytes)


def _mark(error: UnicodeError) -> tuple[str, int]:
    """The error handler that puts a NUL in the place of a bad sequence."""
    assert isinstance(error, UnicodeDecodeError)
    return "\0", error.end


def _read_head(stream: Readable, block_bytes: int) -> bytes:
    """The first block, at least as long as a byte-order mark unless the stream is shorter."""
    head = stream.read(block_bytes)
    while 0 < len(head) < LONGEST_MARK:
        more = stream.read(min(block_bytes, LONGEST_MARK - len(head)))
        if not more:
            break
        head += more
    return head


def resolve_encoding(encoding: str, head: bytes, source: str) -> tuple[str, int]:
    """The encoding without a byte-order mark, and the length of the mark to pass over.

    Raises:
        DataError: The mark is another encoding's, or an encoding that needs one finds none.
    """
    name = codecs.lookup(encoding).name.removesuffix("-sig")
    mark, marked = next(
        ((mark, marked) for mark, marked in BYTE_ORDER_MARKS.items() if head.startswith(mark)),
        (b"", ""),
    )
    # UTF-16 text may begin with a NUL character: then UTF-32's mark is UTF-16's and a NUL.
    if name.startswith("utf-16") and marked == "utf-32-le":
        mark, marked = codecs.BOM_UTF16_LE, "utf-16-le"
    if marked and marked.startswith(name):
        return marked, len(mark)
    wide = name.startswith(("utf-16", "utf-32"))
    if marked not in ("", "utf-8") and (wide or name == "utf-8"):
        family = marked[:6]
        raise DataError(
            f"{source} starts with a {family.upper()} byte-order mark and is not {name}; "
            f"pass --encoding {family}"
        )
    if name in ("utf-16", "utf-32"):
        if not head:
            return f"{name}-le", 0
        raise DataError(
            f"{source} does not start with a byte-order mark, which --encoding {name} needs; "
            f"pass --encoding {name}-le or {name}-be"
        )
    return name, 0


def _bad_text(
    name: str, state: tuple[bytes, int], data: bytes, offset: int, source: str, head: bytes
) -> DataError:
    """The error for the first bad text of a block that is known to have some."""
    place, problem = _first_bad(name, state, data)
    looks = next((what for mark, what in SIGNATURES.items() if head.startswith(mark)), None)
    if looks is not None:
        fix = f"the file looks like {looks}: give it its own suffix, or turn it into text"
    elif problem == "NUL":
        fix = "the file is binary, or in UTF-16 (pass --encoding utf-16-le or utf-16-be); "
        fix += "to read on, pass --on-bad-text skip or replace"
    else:
        fix = "pass the --encoding the file is in (such as cp1252, latin-1 or utf-16), "
        fix += "or --on-bad-text skip or replace"
    what = "is a NUL character" if problem == "NUL" else f"is not valid {name} ({problem})"
    return DataError(f"{source}: byte {offset + place} {what}; {fix}")


def _first_bad(name: str, state: tuple[bytes, int], data: bytes) -> tuple[int, str]:
    """The offset of the first bad text from the start of `data`, and what it is.

    Decoding again byte by byte is slow, happens once, and gives the exact offset for any encoding,
    stateful ones and NUL characters of several bytes included.
    """
    decoder = codecs.getincrementaldecoder(name)("strict")
    decoder.setstate(state)
    for index in range(max(1, len(data))):
        character_start = index - len(decoder.getstate()[0])
        try:
            text = decoder.decode(data[index : index + 1], not data)
        except UnicodeError as error:
            start = character_start + getattr(error, "start", 0)
            whole = state[0] + data
            byte = whole[start + len(state[0]) :][:1]
            return start, f"0x{byte.hex()}"
        if "\0" in text:
            return character_start, "NUL"
    raise AssertionError("the block has no bad text")
