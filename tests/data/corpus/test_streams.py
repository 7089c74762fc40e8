from __future__ import annotations

import codecs
import io
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from packed import PACK, zstd

from maskery.core.errors import DataError
from maskery.data.corpus.streams import COMPRESSIONS, decoded_blocks, open_stream

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


def test_an_input_error_while_reading_is_no_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(Path, "open", lambda *_, **__: Failing())
    with pytest.raises(DataError, match=r"a\.gz cannot be read \(input/output error\)"):
        read_all(Path("a.gz"))


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=60)
BLOCKS = st.integers(1, 9)
MARKS = {
    "utf-8": codecs.BOM_UTF8,
    "utf-16": codecs.BOM_UTF16_BE,
    "utf-16-le": codecs.BOM_UTF16_LE,
    "utf-16-be": codecs.BOM_UTF16_BE,
    "utf-32": codecs.BOM_UTF32_LE,
}


def decode(data: bytes, encoding: str = "utf-8", block_bytes: int = 4, **options: Any) -> str:
    options = {"on_bad_text": "fail", "source": "a.txt", **options}
    stream = io.BytesIO(data)
    return "".join(
        decoded_blocks(stream, encoding=encoding, block_bytes=block_bytes, **options)
    )  # fmt: skip


def one_newline(text: str) -> str:
    """Line ends as they come back, and no byte-order mark wherever it stood."""
    return text.replace("\ufeff", "").replace("\r\n", "\n").replace("\r", "\n")


@given(TEXT, BLOCKS, st.sampled_from(["utf-8", "utf-16-le", "utf-16-be", "utf-32-le", "gb18030"]))
@example("\r\n\r\r\n\n", 1, "utf-8")
@example("\U0001f600é\r\n", 1, "utf-16-le")
def test_any_text_comes_back_with_one_kind_of_line_end(
    text: str, block_bytes: int, encoding: str
) -> None:
    if text.startswith("\ufeff"):
        text = text.lstrip("\ufeff")
    assert decode(text.encode(encoding), encoding, block_bytes) == one_newline(text)


@given(TEXT, BLOCKS, st.sampled_from(sorted(MARKS)))
def test_byte_order_marks_are_passed_over(text: str, block_bytes: int, encoding: str) -> None:
    mark = MARKS[encoding]
    body = {"utf-16": "utf-16-be", "utf-32": "utf-32-le"}.get(encoding, encoding)
    assert decode(mark + text.encode(body), encoding, block_bytes) == one_newline(text)
    if encoding == "utf-8":
        assert decode(mark + text.encode(), "utf-8-sig", block_bytes) == one_newline(text)
        assert decode(text.lstrip("\ufeff").encode(), "utf-8-sig", block_bytes) == one_newline(
            text.lstrip("\ufeff")
        )


@given(st.binary(max_size=40), BLOCKS)
@example(b"abc\xe2\x82A", 1)
@example(b"abc\xe2\x82", 1)
@example(b"\xef\xbb\xbfab\xff", 3)
@example(b"ab\xff\0", 2)
def test_the_first_bad_byte_is_named_exactly(data: bytes, block_bytes: int) -> None:
    """The oracle: what Python says of the whole, and the first NUL."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return
    nul = data.find(b"\0")
    bad, problem = (nul, "is a NUL character") if nul >= 0 else (None, "")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        if bad is None or error.start < bad:
            bad, problem = error.start, f"is not valid utf-8 (0x{data[error.start]:02x})"
    if bad is None:
        assert decode(data, block_bytes=block_bytes) == one_newline(text.removeprefix("\ufeff"))
        return
    with pytest.raises(DataError) as caught:
        decode(data, block_bytes=block_bytes)
    assert f"a.txt: byte {bad} {problem}; " in str(caught.value)


@given(st.binary(max_size=40), BLOCKS)
def test_marking_puts_a_nul_wherever_python_puts_a_replacement(
    data: bytes, block_bytes: int
) -> None:
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return
    expected = data.removeprefix(codecs.BOM_UTF8).decode("utf-8", "replace")
    marked = decode(data, block_bytes=block_bytes, on_bad_text="skip")
    assert marked.replace("\0", "\ufffd") == one_newline(expected.replace("\0", "\ufffd"))


@pytest.mark.parametrize("block_bytes", [1, 2, 3, 100])
def test_offsets_are_right_in_other_encodings(block_bytes: int) -> None:
    cases = [
        ("utf-16", codecs.BOM_UTF16_LE + "aé\0".encode("utf-16-le"), 6, "NUL"),
        ("utf-16-be", "aé".encode("utf-16-be") + b"\xdc\x00\x00a", 4, "0xdc"),
        ("utf-16-le", "aé".encode("utf-16-le") + b"\x00", 4, "0x00"),
        ("shift_jis", "日本".encode("shift_jis") + b"\xff", 4, "0xff"),
        ("ascii", b"abc\xe9", 3, "0xe9"),
        ("cp1252", b"ab\x81", 2, "0x81"),
        ("iso2022_jp", "日本".encode("iso2022_jp") + b"ab\xff", 12, "0xff"),
    ]
    for encoding, data, offset, what in cases:
        with pytest.raises(DataError, match=f"byte {offset} .*{what}"):
            decode(data, encoding, block_bytes)


def test_the_fix_is_named() -> None:
    with pytest.raises(DataError, match=r"--encoding .*cp1252.* or --on-bad-text skip or replace"):
        decode("Müller".encode("latin-1"))
    with pytest.raises(DataError, match=r"byte 1 is a NUL.*binary, or in UTF-16.*utf-16-le"):
        decode("ab".encode("utf-16-le"))
    for policy in ("fail", "skip", "replace"):
        with pytest.raises(DataError, match=r"UTF-16 byte-order mark .* pass --encoding utf-16"):
            decode("ab".encode("utf-16"), on_bad_text=policy)
    with pytest.raises(DataError, match=r"UTF-32 byte-order mark .* pass --encoding utf-32"):
        decode("ab".encode("utf-32"))
    with pytest.raises(DataError, match="UTF-16 byte-order mark and is not utf-16-be; pass"):
        decode(codecs.BOM_UTF16_LE + b"a\0", "utf-16-be")
    with pytest.raises(DataError, match="does not start with a byte-order mark"):
        decode(b"a\0b\0", "utf-16")
    with pytest.raises(DataError, match="looks like a gzip archive"):
        decode(b"\x1f\x8b\x08\x00")


def test_no_read_asks_for_more_than_a_block() -> None:
    class Counting(io.BytesIO):
        largest = 0

        def read(self, size: int | None = -1) -> bytes:
            assert size is not None
            assert size > 0
            self.largest = max(self.largest, size)
            return super().read(size)

    stream = Counting(b"x" * 100_000)
    sizes = [
        len(block)
        for block in decoded_blocks(
            stream, source="a", encoding="utf-8", on_bad_text="fail", block_bytes=1000
        )
    ]
    assert stream.largest == max(sizes) == 1000


@pytest.mark.parametrize("block_bytes", [1, 7, 1 << 20])
@pytest.mark.parametrize(
    ("encoding", "mark"),
    [
        ("utf-8", b""),
        ("utf-8", codecs.BOM_UTF8),
        ("utf-16-le", codecs.BOM_UTF16_LE),
        ("utf-32-be", codecs.BOM_UTF32_BE),
        ("cp1251", b""),
        ("shift_jis", b""),
    ],
)
def test_an_encoding_is_found(encoding: str, mark: bytes, block_bytes: int) -> None:
    text = "これは日本語の文章です。今日は天気がいいですね。\n" * 40
    if encoding == "cp1251":
        text = "Все счастливые семьи похожи друг на друга.\n" * 40
    assert decode(mark + text.encode(encoding), "auto", block_bytes=block_bytes) == text


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("latin-1", "Les élèves français étaient déjà arrivés à l'école. Ça va très bien.\n"),
        ("cp1252", "“It’s a naïve café – he said” … costs €5\n"),
        ("cp1252", "Hoje o tempo está muito bom. Não há razão, coração.\n"),
        ("cp1252", "I dag är det fint väder så vi går till parken. Åtta små öar i sjön.\n"),
        ("cp1250", "Příliš žluťoučký kůň úpěl ďábelské ódy. Dnes je venku velmi hezké počasí.\n"),
        ("cp1250", "Zażółć gęślą jaźń. Dzisiaj pogoda jest bardzo ładna, więc idziemy.\n"),
        ("cp1253", "Σήμερα ο καιρός είναι πολύ καλός και πάμε στο πάρκο.\n"),
        ("gb18030", "我们今天去公园看熊猫，因为天气很好。\n"),
    ],
)
def test_letters_with_marks_are_found(encoding: str, text: str) -> None:
    assert decode((text * 20).encode(encoding), "auto") == text * 20


SHORT = {
    "latin-1": [
        "Order 66 was shipped to Mr. Müller in Zürich.\n",
        "Pöydällä on hyvää syötävää ja juotavaa.\n",
        "La città è più bella d'estate, perché c'è il mare.\n",
        "Não há pão nem café na cozinha hoje.\n",
        "Þetta er ekki erfitt að skilja.\n",
        "It is 25 °C, ±2, and costs £30 per m².\n",
    ],
    "cp1252": ["“Yes,” she said — “it’s done…” and left for €20.\n", "Œuvre d’art : 5 €\n"],
    "gb18030": [
        "北京 2024 年 GDP 增长 5%。\n",
        "Hello 世界, 混合文本。\n",
        "價格是100元，請問您要嗎？\n",
    ],
    "utf-16-le": [
        "Päivää, mitä kuuluu?\n",
        "他在北京大学学习。\n",
        "我们今天去公园",
        "Привет, мир\n",
    ],
    "utf-16-be": ["Plain text.\n", "今日は天気がいいので。\n"],
    "utf-32-le": ["Plain text.\n", "今日は\n"],
}


@pytest.mark.parametrize("times", [1, 40])
@pytest.mark.parametrize("encoding", SHORT)
def test_a_file_of_one_line_is_found_as_a_long_one(encoding: str, times: int) -> None:
    for text in SHORT[encoding]:
        assert decode((text * times).encode(encoding), "auto", block_bytes=1 << 16) == text * times


def test_german_is_taken_for_the_wests() -> None:
    """As cp1250 it reads the same, until a letter of French follows."""
    later = "Grüße aus Köln\n" * 9000 + "père\n"
    assert decode(later.encode("cp1252"), "auto", block_bytes=1 << 16) == later


@pytest.mark.parametrize("text", ["a word\0 and more\n", "Привет\0 мир, как дела\n" * 5, "\0"])
def test_a_nul_in_utf_8_is_no_sign_of_wider_characters(text: str) -> None:
    with pytest.raises(DataError, match=r"NUL|not valid"):
        decode(text.encode(), "auto", block_bytes=1 << 16)


def test_marks_of_files_that_were_put_together_are_no_text() -> None:
    mark = codecs.BOM_UTF8
    for block_bytes in (1, 2, 1 << 20):
        assert decode(mark + b"a\n" + mark + b"b\n", block_bytes=block_bytes) == "a\nb\n"
