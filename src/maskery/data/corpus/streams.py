"""From the bytes of a file to blocks of characters: decompression, then decoding.

Archives of several streams or frames (as `cat a.gz b.gz`, pigz, pbzip2 and pzstd write them) are
read whole, and one that is cut short or damaged fails: nothing is dropped at a damaged seam.

Bad text is a byte sequence that the encoding does not have, or a NUL character. Under `fail` the
first one is an error that names its offset in the decompressed stream. Under `skip` and `replace`
every bad sequence becomes one NUL character, the mark that `Reading.mend` deals with.
"""

import bz2
import codecs
import gzip
import io
import lzma
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

from maskery.core.errors import DataError
from maskery.data.corpus.config import AUTO, OnBadText
from maskery.data.corpus.examples import BLOCK_BYTES, Reading

CHUNK_BYTES = 1 << 18
XZ_MEMORY = 1 << 28  # Bytes of a dictionary: `xz -9` asks for 64 MiB, a hostile file for 4 GiB
# UTF-32's marks stand before UTF-16's, which they begin with.
BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
LONGEST_MARK = 4
DETECTED_BYTES = 1 << 16  # Enough for a guess; more takes the detector longer
# Guessed among these alone: rare ones fit short texts of the West, too. Of equals, the first.
GUESSED = (
    *("cp1252", "utf_16_le", "utf_16_be", "gb18030", "cp1251", "euc_jp", "cp949", "cp932", "big5"),
    *("cp1250", "iso8859_2", "cp1253", "cp1254", "cp1255", "cp1256", "koi8_r", "cp874"),
)
SIGNATURES = {
    b"\x1f\x8b": "a gzip archive (.gz)",
    b"\xfd7zXZ\x00": "an xz archive (.xz)",
    b"\x28\xb5\x2f\xfd": "a Zstandard archive (.zst)",
    b"BZh": "a bzip2 archive (.bz2)",
    b"PK\x03\x04": "a zip archive or an office document",
    b"%PDF": "a PDF document",
    b"PAR1": "a Parquet file (.parquet)",
}
MARKING = "maskery.mark"  # of the error handler that `decoded_blocks` registers
NewDecompressor: TypeAlias = Callable[..., lzma.LZMADecompressor | bz2.BZ2Decompressor]


def unpacked(file: BinaryIO, new_decompressor: NewDecompressor, **how: int) -> Iterator[bytes]:
    """Yield the content of the streams of an xz or bzip2 file; zero bytes may lie between them."""
    # `lzma.open` and `bz2.open` drop in silence what follows the first stream and is none.
    waiting = b""
    while waiting := waiting or file.read(CHUNK_BYTES):
        if not (waiting := waiting.lstrip(b"\0")):
            continue
        decompressor = new_decompressor(**how)
        while not decompressor.eof:
            if decompressor.needs_input and not (waiting := waiting or file.read(CHUNK_BYTES)):
                raise EOFError("it ends too early")
            if block := decompressor.decompress(waiting, CHUNK_BYTES):
                yield block
            waiting = b""
        waiting = decompressor.unused_data


class BlockStream(io.RawIOBase):
    """A stream of the bytes of some blocks, none of them empty."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self.blocks, self.left = blocks, b""

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, target: Any, /) -> int:
        """Fill the target with what comes next; returns how many bytes that are."""
        block = self.left or next(self.blocks, b"")
        data, self.left = block[: len(target)], block[len(target) :]
        target[: len(data)] = data
        return len(data)


def open_zstd(file: BinaryIO) -> Any:
    """Open a Zstandard file of any number of frames."""
    import pyarrow as pa

    return pa.CompressedInputStream(pa.PythonFile(file, mode="r"), "zstd")


COMPRESSIONS: dict[str, Callable[[BinaryIO], Any]] = {
    ".gz": lambda file: gzip.GzipFile(fileobj=file, mode="rb"),
    ".xz": lambda file: BlockStream(unpacked(file, lzma.LZMADecompressor, memlimit=XZ_MEMORY)),
    ".bz2": lambda file: BlockStream(unpacked(file, bz2.BZ2Decompressor)),
    ".zst": open_zstd,
}


def cannot_read(path: Path, error: OSError) -> DataError:
    """Return the error for a file that the system does not give us."""
    reason = (error.strerror or str(error) or type(error).__name__).lower()
    return DataError(f"{path} cannot be read ({reason}); check the file and its permissions")


@contextmanager
def named_in_errors(path: Path) -> Iterator[None]:
    """Turn what the system says of a file in the block into one line that names it."""
    try:
        yield
    except OSError as error:
        raise cannot_read(path, error) from error


@contextmanager
def open_stream(
    path: Path, on_read: Callable[[int], object], span: tuple[int, int] | None = None
) -> Iterator[io.BufferedReader]:
    """Open a file, or of a plain one a span of bytes, decompressed if its last suffix says so.

    `on_read` is told the bytes of the file, before decompression, as they are read.
    """
    with named_in_errors(path):
        file = path.open("rb", buffering=0)  # so that no more is read than is counted
    with file:
        blocks = _file_blocks(path, file, on_read, span or (0, sys.maxsize))
        yield io.BufferedReader(BlockStream(blocks), CHUNK_BYTES)


def _file_blocks(
    path: Path, file: BinaryIO, on_read: Callable[[int], object], span: tuple[int, int]
) -> Iterator[bytes]:
    """Yield the bytes of an open file; failures are one line that names it."""
    suffix, (place, end) = path.suffix.lower(), span
    file.seek(place)
    stream = COMPRESSIONS[suffix](file) if suffix in COMPRESSIONS else file
    try:
        while block := stream.read(min(CHUNK_BYTES, end - place)):
            before, place = place, file.tell()
            on_read(place - before)
            yield block
        on_read(file.tell() - place)
    except (EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        # bz2, gzip and pyarrow raise OSError for bad data; only the system's errors have a number.
        if isinstance(error, OSError) and (error.errno is not None or suffix not in COMPRESSIONS):
            raise cannot_read(path, error) from error
        why = "it ends too early" if isinstance(error, EOFError) else str(error)
        raise DataError(
            f"{path} is no whole {suffix} archive ({why}): it is cut short, damaged or of "
            "another kind; fetch it again, or give it the suffix of what it is"
        ) from error


def decoded_blocks(
    stream: BinaryIO,
    *,
    source: str,
    encoding: str,
    on_bad_text: OnBadText | None,  # None: fail, and nothing else is to be had
    block_bytes: int = BLOCK_BYTES,
    decided: Callable[[str], object] = str,
) -> Iterator[str]:
    r"""Decode a stream; line ends `\r\n` and `\r` become `\n`. `decided` is told a guess."""
    codecs.register_error(MARKING, _mark)
    head = stream.read(max(block_bytes, DETECTED_BYTES if encoding == AUTO else LONGEST_MARK))
    if encoding == AUTO:
        decided(encoding := detect_encoding(head))
    name, offset = resolve_encoding(encoding, head, source)
    strict = on_bad_text in ("fail", None)
    decoder = codecs.getincrementaldecoder(name)("strict" if strict else MARKING)
    newlines = io.IncrementalNewlineDecoder(None, translate=True)
    data = head[offset:] or stream.read(block_bytes)
    while True:
        state = decoder.getstate()
        try:
            text = decoder.decode(data, not data)
            if strict and "\0" in text:
                raise UnicodeError("a NUL character")
        except UnicodeError as error:
            place, bad = _first_bad(name, state, data)
            problem = _bad_text(name, bad, head, skippable=on_bad_text is not None)
            raise DataError(f"{source}: byte {offset + place} {problem}") from error
        # Files with a mark that were put end to end have marks inside.
        yield newlines.decode(text.replace("\ufeff", ""), not data)
        if not data:
            return
        offset += len(data)
        data = stream.read(block_bytes)


def _mark(error: UnicodeError) -> tuple[str, int]:
    """Put a NUL in the place of a bad sequence (an error handler of `codecs`)."""
    assert isinstance(error, UnicodeDecodeError)
    return "\0", error.end


def _mark_of(head: bytes) -> tuple[bytes, str]:
    """Return the byte-order mark that a file begins with, and the encoding it stands for."""
    marks = BYTE_ORDER_MARKS.items()
    return next(((mark, name) for mark, name in marks if head.startswith(mark)), (b"", ""))


def detect_encoding(head: bytes) -> str:
    """Return the likely encoding of a file by its first bytes: a mark's, UTF-8, or a guess."""
    if marked := _mark_of(head)[1]:
        return marked
    # Every other byte of most text in UTF-16 is one of a few, NUL among them.
    low, high = (len(set(head[start::2])) for start in (0, 1))
    end = "le" if high < low else "be"
    wide = [f"utf-32-{end}"] + [f"utf-16-{end}"] * (2 * min(low, high) <= max(low, high))
    for name in (wide if b"\0" in head else []) + ["utf-8"]:
        with suppress(UnicodeDecodeError):
            # A character that the head ends in the middle of is no error.
            codecs.getincrementaldecoder(name)().decode(head)
            return name
    from charset_normalizer import from_bytes

    # By its own limit of chaos, 0.2, it takes Finnish for noise.
    found = [*from_bytes(head, cp_isolation=[*GUESSED], threshold=0.6)]
    if not found:
        return "utf-8"
    best = min(found, key=lambda one: (one.chaos, -one.coherence, GUESSED.index(one.encoding)))
    # What it finds as likely, such as Czech, is far more often the West's (its own scores vary by
    # less than a tenth for the same text), above all where both read the same so far.
    western = (one for one in found if "cp1252" in one.could_be_from_charset)
    if any(w.coherence >= best.coherence and w.chaos <= best.chaos + 0.1 for w in western):
        return "cp1252"
    return str(codecs.lookup(best.encoding).name)


def resolve_encoding(encoding: str, head: bytes, source: str) -> tuple[str, int]:
    """Return the encoding without a byte-order mark, and the length of the mark to pass over."""
    name = codecs.lookup(encoding).name.removesuffix("-sig")
    mark, marked = _mark_of(head)
    # UTF-16 text may begin with a NUL character: then UTF-32's mark is UTF-16's and a NUL.
    if name.startswith("utf-16") and marked == "utf-32-le":
        mark, marked = codecs.BOM_UTF16_LE, "utf-16-le"
    if marked and marked.startswith(name):
        return marked, len(mark)
    if marked not in ("", "utf-8") and name.startswith(("utf-8", "utf-16", "utf-32")):
        family = marked[:6]
        problem = f"{source} starts with a {family.upper()} byte-order mark and is not {name}"
        raise DataError(f"{problem}; pass --encoding {family}")
    if name in ("utf-16", "utf-32"):
        if not head:
            return f"{name}-le", 0
        problem = f"{source} does not start with a byte-order mark, which --encoding {name} needs"
        raise DataError(f"{problem}; pass --encoding {name}-le or {name}-be")
    return name, 0


def _bad_text(name: str, bad: bytes | None, head: bytes, *, skippable: bool) -> str:
    """Return the end of a message: a bad byte or, None, a NUL character, and the fix."""
    if looks := next((what for mark, what in SIGNATURES.items() if head.startswith(mark)), ""):
        fix = f"the file looks like {looks}: give it its own suffix, or turn it into text"
    elif bad is None:
        fix = "the file is binary, or in UTF-16 (pass --encoding utf-16-le or utf-16-be)"
        fix += "; to read on, pass --on-bad-text skip or replace" * skippable
    else:
        fix = "pass the --encoding the file is in (such as cp1252, latin-1 or utf-16)"
        fix += ", or --on-bad-text skip or replace" * skippable
    what = "is a NUL character" if bad is None else f"is not valid {name} (0x{bad.hex()})"
    return f"{what}; {fix}"


def _first_bad(name: str, state: tuple[bytes, int], data: bytes) -> tuple[int, bytes | None]:
    """Return the offset of the first bad text from `data`'s start, and its byte; None of a NUL."""
    # Decoding again byte by byte is slow, and exact for encodings with states and wide NULs, too.
    decoder = codecs.getincrementaldecoder(name)("strict")
    decoder.setstate(state)
    for index in range(max(1, len(data))):
        character_start = index - len(decoder.getstate()[0])
        try:
            text = decoder.decode(data[index : index + 1], not data)
        except UnicodeError as error:
            start = character_start + getattr(error, "start", 0)
            return start, (state[0] + data)[start + len(state[0]) :][:1]
        if "\0" in text:
            return character_start, None
    raise AssertionError("the block has no bad text")


@contextmanager
def open_blocks(reading: Reading) -> Iterator[Iterator[str]]:
    """Open a file as decoded blocks of text."""
    with open_stream(reading.path, reading.on_read, reading.span) as stream:
        yield decoded_blocks(
            stream,
            source=reading.source,
            encoding=reading.config.encoding,
            on_bad_text=reading.config.on_bad_text,
            block_bytes=reading.block_bytes,
            decided=lambda name: reading.report.encodings.update([name]),
        )
