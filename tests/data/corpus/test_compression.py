from __future__ import annotations

import bz2
import gzip
import lzma
import struct
from functools import partial
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskery.core.errors import DataError
from maskery.data.corpus.streams import COMPRESSIONS, open_stream


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
NOISE = bytes(i * i * 31 % 251 for i in range(300_000))


def read_all(path: Path, size: int = 1000) -> tuple[bytes, int]:
    counts: list[int] = []
    with open_stream(path, counts.append) as stream:
        data = b"".join(iter(lambda: stream.read(size), b""))
    return data, sum(counts)


def test_every_compression_is_tested() -> None:
    assert set(PACK) == set(COMPRESSIONS)


@pytest.mark.parametrize("suffix", PACK)
def test_archives_of_several_streams_are_read_whole(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(PACK[suffix](b"one ") + PACK[suffix](NOISE) + PACK[suffix](b" three"))
    assert read_all(path) == (b"one " + NOISE + b" three", path.stat().st_size)


@settings(max_examples=20)
@given(st.lists(st.binary(max_size=200), min_size=1, max_size=5), st.integers(1, 50))
def test_any_streams_come_back(
    tmp_path_factory: pytest.TempPathFactory, parts: list[bytes], size: int
) -> None:
    folder = tmp_path_factory.mktemp("streams")
    for suffix, pack in PACK.items():
        path = folder / f"a{suffix}"
        path.write_bytes(b"".join(map(pack, parts)))
        assert read_all(path, size)[0] == b"".join(parts)


def test_zstandard_skippable_frames_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "a.zst"
    skippable = struct.pack("<II", 0x184D2A50, 5) + b"abcde"
    path.write_bytes(skippable + zstd(b"one") + skippable + zstd(b"two"))
    assert read_all(path)[0] == b"onetwo"


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".bz2"])
def test_zero_padding_is_allowed(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(PACK[suffix](b"one") + bytes(8))
    assert read_all(path)[0] == b"one"


def damaged(suffix: str) -> dict[str, bytes]:
    whole = PACK[suffix](NOISE)
    middle = len(whole) // 2
    flipped = bytes(byte ^ 0x55 for byte in whole[middle : middle + 40])
    return {
        "cut at the end": whole[:-3],
        "cut in the middle": whole[:middle],
        "second stream cut": whole + whole[:-3],
        "rubbish behind": whole + b"rubbish, and some more of it",
        "second stream's start flipped": whole + bytes(byte ^ 0x55 for byte in whole[:9]),
        "flipped bytes": whole[:middle] + flipped + whole[middle + 40 :],
        "another kind": b"This is plain text, not an archive of any kind.",
    }


@pytest.mark.parametrize("suffix", PACK)
@pytest.mark.parametrize("how", damaged(".gz"))
def test_damaged_archives_name_the_file(tmp_path: Path, suffix: str, how: str) -> None:
    if suffix == ".zst" and how == "flipped bytes":
        pytest.skip("pyarrow writes Zstandard frames without the optional checksum")
    path = tmp_path / f"corpus.txt{suffix}"
    path.write_bytes(damaged(suffix)[how])
    with pytest.raises(DataError) as caught:
        read_all(path)
    message = str(caught.value)
    assert message.startswith(f"{path} is no whole {suffix} archive (")
    assert "fetch it again" in message
    assert "\n" not in message


def test_a_file_the_system_refuses_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.txt"

    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(DataError, match=r"a\.txt cannot be read \(permission denied\)"):
        read_all(path)


def test_an_input_error_while_reading_is_no_damage(tmp_path: Path) -> None:
    class Failing:
        def read(self, size: int) -> bytes:
            raise OSError(5, "Input/output error")

    from maskery.data.corpus.streams import NamedStream

    with pytest.raises(DataError, match=r"a\.gz cannot be read \(input/output error\)"):
        NamedStream(Path("a.gz"), Failing()).read(10)
