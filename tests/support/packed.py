"""Every compression that text is read from."""

from __future__ import annotations

import bz2
import gzip
import lzma
from functools import partial

import pyarrow as pa


def zstd(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


# Without the time of day, which would stand in the names of tests that are given packed bytes.
PACK = {
    ".gz": partial(gzip.compress, mtime=0),
    ".xz": lzma.compress,
    ".bz2": bz2.compress,
    ".zst": zstd,
}
