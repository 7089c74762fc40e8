"""Pictures that Pillow does not write by itself."""

from __future__ import annotations

import struct
import zlib

from PIL import ImageCms


def raw_png(
    size: tuple[int, int], content: bytes, *, depth: int = 8, colour: int = 2, key: bytes = b""
) -> bytes:
    """A PNG of any depth; `key` are the bytes of its transparent colour."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checked = kind + content
        return struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))

    header = struct.pack(">IIBBBBB", *size, depth, colour, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(content)), chunk(b"IEND", b"")]
    if key:
        parts.insert(1, chunk(b"tRNS", key))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def swapped_profile() -> bytes:
    """A profile under which the first channel is blue and the last is red."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    red, blue = profile.index(b"rXYZ"), profile.index(b"bXYZ")
    profile[red : red + 4], profile[blue : blue + 4] = b"bXYZ", b"rXYZ"
    place = profile.index("sRGB".encode("utf-16-be"))
    profile[place : place + 8] = "swap".encode("utf-16-be")
    return bytes(profile)
