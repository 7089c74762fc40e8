"""Files of every kind that Maskery reads, and small and large damage done to them."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import tarfile
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st
from PIL import Image

SENTENCES = [
    "river stone",
    "the \N{SNOWMAN} melts",
    "a\tb",
    " ",
    "",
    "line one\nline two",
    '"q", 1',
]
# What parsers trip over: their own marks, out of place, too many of them, or cut in two.
TOKENS = [
    *(b'"', b"'", b",", b";", b"\t", b"\n", b"\r", b"\r\n", b"\n\n", b"\0", b"\\", b"\\u", b"{"),
    *(b"}", b"[", b"]", b":", b"[" * 3000, b'{"a":' * 3000, b"\xff", b"\xef\xbb\xbf", b"\xff\xfe"),
    *(b"\\ud800", b"NaN", b"1e999", b"-", b"9" * 5000, b"null", b"true", b"../", b"/etc/passwd"),
    *(
        b"\xed\xa0\x80",
        b"\xf4\x90\x80\x80",
        b"text",
        b"image",
        b"caption",
        b"a" * 70_000,
        b"&a [*a]",
    ),
    *(
        b"2001-99-99",
        b"!!python/object:os.system",
        b"? ",
        b"- ",
        b"|",
        b">",
        b"%",
        b"\x1a",
        b"\x85",
    ),
]


@st.composite
def damaged(draw: st.DrawFn, wholes: Callable[[], list[bytes]]) -> bytes:
    """One of some files with up to four stretches replaced, doubled, dropped or cut off.

    Args:
        wholes: Called when an example is drawn, since making the files takes time.
    """
    data = draw(st.sampled_from(wholes()))
    for _ in range(draw(st.integers(0, 4))):
        first = draw(st.integers(0, len(data)))
        end = min(len(data), first + draw(st.integers(0, 40)))
        kind = draw(st.sampled_from(["replace", "token", "flip", "double", "drop", "cut"]))
        if kind == "replace":
            data = data[:first] + draw(st.binary(max_size=12)) + data[end:]
        elif kind == "token":
            data = data[:first] + draw(st.sampled_from(TOKENS)) + data[first:]
        elif kind == "flip":
            bits = bytes([byte ^ 1 << draw(st.integers(0, 7)) for byte in data[first : first + 1]])
            data = data[:first] + bits + data[first + 1 :]
        elif kind == "double":
            data = data[:end] + data[first:end] + data[end:]
        elif kind == "drop":
            data = data[:first] + data[end:]
        else:
            data = data[:first]
    return data


def anything(wholes: Callable[[], list[bytes]]) -> st.SearchStrategy[bytes]:
    """Damaged files, and now and then bytes that never were one."""
    return st.one_of(damaged(wholes), damaged(wholes), damaged(wholes), st.binary(max_size=300))


JSON_VALUES = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(max_size=12),
        st.sampled_from(SENTENCES),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=6,
)


def json_lines(records: list[Any]) -> bytes:
    """One record a line."""
    return "\n".join(json.dumps(record) for record in records).encode()


def csv_table(rows: list[list[str]], delimiter: str = ",") -> bytes:
    """A table with its header first."""
    stream = io.StringIO()
    csv.writer(stream, delimiter=delimiter).writerows(rows)
    return stream.getvalue().encode()


def parquet_table(columns: dict[str, Any], **options: Any) -> bytes:
    """A Parquet file of a few row groups."""
    stream = io.BytesIO()
    pq.write_table(pa.table(columns), stream, row_group_size=2, **options)
    return stream.getvalue()


@lru_cache(maxsize=1)
def pictures() -> dict[str, bytes]:
    """A small picture in several formats."""
    picture = Image.radial_gradient("L").resize((12, 9)).convert("RGB")
    found = {}
    for suffix, name in (("png", "PNG"), ("jpg", "JPEG"), ("gif", "GIF"), ("bmp", "BMP")):
        stream = io.BytesIO()
        picture.save(stream, name)
        found[suffix] = stream.getvalue()
    for suffix, name in (("webp", "WEBP"), ("tif", "TIFF"), ("ppm", "PPM"), ("tga", "TGA")):
        stream = io.BytesIO()
        picture.save(stream, name)
        found[suffix] = stream.getvalue()
    return found


def tar_file(members: dict[str, bytes]) -> bytes:
    """An archive of regular files."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return stream.getvalue()


@lru_cache(maxsize=1)
def texts() -> dict[str, list[bytes]]:
    """Whole corpus files by the suffix of their format."""
    records = [{"text": text, "n": n} for n, text in enumerate(SENTENCES)]
    rows = [["n", "text"], *([str(n), text] for n, text in enumerate(SENTENCES))]
    plain = "\n\n".join(SENTENCES)
    return {
        ".txt": [plain.encode(), plain.encode("utf-16"), plain.replace("\n", "\r\n").encode()],
        ".jsonl": [json_lines(records)],
        ".json": [json.dumps(records).encode(), json.dumps(records, indent=1).encode()],
        ".csv": [csv_table(rows), csv_table(rows, ";")],
        ".tsv": [csv_table(rows, "\t")],
        ".parquet": [
            parquet_table({"text": SENTENCES, "n": list(range(len(SENTENCES)))}),
            parquet_table({"text": pa.array(SENTENCES).dictionary_encode()}, compression="none"),
        ],
    }


def packed(data: bytes, suffix: str) -> bytes:
    """Compressed as the suffix says."""
    if suffix == ".gz":
        return gzip.compress(data, mtime=0)
    if suffix == ".bz2":
        return bz2.compress(data)
    if suffix == ".xz":
        return lzma.compress(data)
    return pa.compress(data, codec="zstd", asbytes=True) if suffix == ".zst" else data
