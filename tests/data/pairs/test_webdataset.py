from __future__ import annotations

import gzip
import io
import json
import tarfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from maskery.core.errors import DataError
from maskery.data.pairs.config import PairsConfig
from maskery.data.pairs.pairs import Pairs

Members = list[tuple[str, bytes]]


def tar(members: Members) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture
def members(pictures: list[bytes]) -> Members:
    return [
        ("0.png", pictures[0]),
        ("0.txt", b"red"),
        ("1.png", pictures[1]),
        ("1.txt", b"green"),
    ]


def opened(tmp_path: Path, content: bytes, config: PairsConfig | None = None) -> Pairs:
    (tmp_path / "pairs.tar").write_bytes(content)
    return Pairs.open(tmp_path / "pairs.tar", config)


def refused(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        opened(tmp_path, content)
    assert "\n" not in str(caught.value)


def test_images_are_read_by_offset(tmp_path: Path, members: Members) -> None:
    pairs = opened(tmp_path, tar(members))
    assert [pair.image.name for pair in pairs] == ["pairs.tar/0.png", "pairs.tar/1.png"]
    assert pairs[1].image.load().getpixel((0, 0)) == (0, 250, 0)
    assert pairs[0].image.load().getpixel((0, 0)) == (250, 0, 0)


def test_long_names_and_folders(tmp_path: Path, members: Members) -> None:
    folder = "deep/" * 60
    pairs = opened(tmp_path, tar([(folder + name, content) for name, content in members]))
    assert pairs[1].captions == ("green",)
    assert pairs[1].image.load().getpixel((0, 0)) == (0, 250, 0)


def test_other_members_are_left_alone(tmp_path: Path, members: Members) -> None:
    pairs = opened(tmp_path, tar([*members[:2], ("0.cls", b"7"), *members[2:]]))
    assert [pair.captions[0] for pair in pairs] == ["red", "green"]


def test_a_key_of_the_json_can_be_asked_for(tmp_path: Path, pictures: list[bytes]) -> None:
    annotation = json.dumps({"long": ["one", "two"], "person": 4}).encode()
    content = tar([("0.png", pictures[0]), ("0.txt", b"red"), ("0.json", annotation)])
    pairs = opened(tmp_path, content, PairsConfig(caption_column="long"))
    assert pairs[0].captions == ("one", "two")
    assert pairs.person_names == ("4",)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ([("0.txt", b"red")], "sample '0' has 0 images"),
        ([("0.png", b"x"), ("0.jpg", b"x"), ("0.txt", b"red")], "has 2 images"),
        ([("0.png", b"x")], "neither a .txt nor a .json"),
        ([("0.png", b"x"), ("0.json", b"{")], "not valid JSON"),
        ([("0.png", b"x"), ("0.json", b"[1]")], "is not an object"),
        ([("0.png", b"x"), ("0.json", b'{"a": 1}')], "no caption column"),
        ([("0.png", b"x"), ("0.txt", b"\xff")], "not valid UTF-8"),
        ([("0.png", b"x"), ("0.txt", b"")], "holds no word"),
        ([("0.png", b"x"), ("0.png", b"x"), ("0.txt", b"a")], "occurs twice"),
        ([], "holds no pairs"),
    ],
)
def test_bad_samples(tmp_path: Path, changes: Members, message: str) -> None:
    refused(tmp_path, tar(changes), message)


def test_no_tar(tmp_path: Path, members: Members) -> None:
    refused(tmp_path, b"", "not a sound, uncompressed tar file")
    refused(tmp_path, b"hello" * 500, "not a sound, uncompressed tar file")
    refused(tmp_path, gzip.compress(tar(members)), "not a sound, uncompressed tar file")


def test_nothing_is_lost_where_a_shard_is_cut_or_damaged(tmp_path: Path, members: Members) -> None:
    content = tar(members)
    # Header and body of each member take two blocks of 512 bytes.
    for length in (512, 700, 1024, 1500, 2048, 2500, 4096 - 100, 4096):
        refused(tmp_path, content[:length], "sound|cut short|damaged|neither")
    broken = bytearray(content)
    broken[2048 + 150] ^= 0xFF
    refused(tmp_path, bytes(broken), "is damaged at byte 2048, or two shards were joined there")
    refused(tmp_path, content + tar(members), "two shards were joined")


def test_links_are_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        info = tarfile.TarInfo("0.png")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(info)
    refused(tmp_path, buffer.getvalue(), "is a link, a device")


def test_huge_texts_are_not_read(
    tmp_path: Path, members: Members, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("maskery.data.pairs.webdataset.MAX_TEXT_BYTES", 4)
    refused(tmp_path, tar(members), "member '1.txt' has 5 bytes, more than the 4 allowed")


def test_a_shard_that_shrinks_after_indexing(tmp_path: Path, members: Members) -> None:
    pairs = opened(tmp_path, tar(members))
    (tmp_path / "pairs.tar").write_bytes(tar(members)[:2600])
    with pytest.raises(DataError, match="cut short since it was indexed"):
        pairs[1].image.load()
    (tmp_path / "pairs.tar").unlink()
    with pytest.raises(DataError, match=r"pairs\.tar cannot be read"):
        pairs[1].image.load()


def test_images_make_no_sense_with_shards(tmp_path: Path, members: Members) -> None:
    with pytest.raises(DataError, match="hold their images themselves"):
        opened(tmp_path, tar(members), PairsConfig(images=tmp_path))


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.tuples(st.integers(0, 2047), st.integers(0, 255)), min_size=1, max_size=4))
def test_flipped_bytes_give_pairs_or_one_line(
    tmp_path: Path, changes: list[tuple[int, int]]
) -> None:
    broken = bytearray(tar([("0.png", b"x" * 30), ("0.txt", b"red")]))
    for position, value in changes:
        broken[position] = value
    message = ""
    try:
        opened(tmp_path, bytes(broken))
    except DataError as error:
        message = str(error)
    assert "\n" not in message


def test_what_tools_and_systems_add_to_a_shard_is_passed_over(
    tmp_path: Path, members: Members
) -> None:
    extras = [
        ("README.md", b"# A data set"),
        ("LICENSE.txt", b"free"),
        ("__meta__/shard.json", b'{"count": 2}'),
        ("__meta__", b"{}"),
        ("._0.png", b"\x00\x05\x16\x07"),
        ("__MACOSX/._0.png", b"\x00\x05\x16\x07"),
        (".DS_Store", b"\x00"),
    ]
    plain = [(f"./{name}", content) for name, content in members]
    pairs = opened(tmp_path, tar([*extras, *plain[:2], ("._1.txt", b"\xff"), *plain[2:]]))
    assert [pair.image.name for pair in pairs] == ["pairs.tar/0.png", "pairs.tar/1.png"]
    assert pairs.ids.tolist() == opened(tmp_path, tar(members)).ids.tolist()


def test_equal_names_in_two_shards_are_two_pictures(tmp_path: Path, members: Members) -> None:
    for name, part in (("a", members[:2]), ("b", [("0.png", members[2][1]), ("0.txt", b"red")])):
        (tmp_path / name).mkdir()
        (tmp_path / name / "00000.tar").write_bytes(tar(part))
    pairs = Pairs.open(tmp_path)
    assert [pair.image.name for pair in pairs] == ["a/00000.tar/0.png", "b/00000.tar/0.png"]
    colours = [pair.image.load().getpixel((0, 0)) for pair in pairs]
    assert colours == [(250, 0, 0), (0, 250, 0)]
    assert len(set(pairs.ids.tolist())) == 2


@pytest.mark.parametrize(
    "bad",
    [
        [],
        [("1.txt", b"caf\xe9")],
        [("1.txt", b"?!")],
        [("1.json", b"{")],
        [("1.json", b'{"caption": 3}')],
        [("1.json", b'{"caption": "caf\xe9"}')],
    ],
    ids=["missing", "not UTF-8", "no word", "no JSON", "a number", "JSON not UTF-8"],
)
def test_bad_captions_of_samples_are_skipped_and_counted(
    tmp_path: Path, members: Members, bad: Members
) -> None:
    content = tar([*members[:3], *bad, ("2.png", members[0][1]), ("2.txt", b"blue")])
    pairs = opened(tmp_path, content, PairsConfig(on_bad_caption="skip"))
    assert [pair.captions for pair in pairs] == [("red",), ("blue",)]
    assert pairs.skipped_captions.count == 1
    assert "sample '1'" in str(pairs.skipped_captions)
    refused(tmp_path, content, "sample '1'")


def test_members_of_one_key_that_lie_apart_are_joined_and_told_of(
    tmp_path: Path, members: Members, caplog: pytest.LogCaptureFixture
) -> None:
    pairs = opened(tmp_path, tar([members[0], members[2], members[1], members[3]]))
    assert [pair.captions for pair in pairs] == [("red",), ("green",)]
    assert pairs[1].image.load().getpixel((0, 0)) == (0, 250, 0)
    (said,) = [record.getMessage() for record in caplog.records]
    assert "members of 2 samples lie apart, first of '0'" in said
    assert "\n" not in said


def test_members_without_a_key_are_passed_over_and_counted(
    tmp_path: Path, members: Members, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    nameless = [(".png", members[0][1]), ("a/.txt", b"lost")]
    pairs = opened(tmp_path, tar([*members[:2], *nameless, *members[2:]]))
    assert [pair.captions for pair in pairs] == [("red",), ("green",)]
    assert "passed over: 2 members, hidden, notes or without a key" in caplog.text


def test_a_column_that_is_named_and_not_there_is_refused(
    tmp_path: Path, members: Members, pictures: list[bytes]
) -> None:
    content = tar([*members[:2], ("0.json", b'{"patient": 3}')])
    for kind in ("person", "group"):
        with pytest.raises(DataError, match=f"no column 'who'.*name one of them as {kind}_column"):
            opened(tmp_path, content, PairsConfig(**{f"{kind}_column": "who"}))
    pairs = opened(tmp_path, content, PairsConfig(group_column="patient"))
    assert pairs.groups.to_pylist() == ["3"]
    with pytest.raises(DataError, match="--group-column patient is empty for 2 pairs"):
        opened(tmp_path, tar(members), PairsConfig(group_column="patient"))


def test_pictures_of_rare_endings(tmp_path: Path, members: Members) -> None:
    for suffix in ("jfif", "apng", "JPE"):
        pairs = opened(tmp_path, tar([(f"0.{suffix}", members[0][1]), members[1]]))
        assert pairs[0].image.load().getpixel((0, 0)) == (250, 0, 0)


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_header_that_says_it_is_huge_is_not_read(tmp_path: Path, kind: bytes) -> None:
    """`tarfile` would ask for so much memory."""
    member = tarfile.TarInfo("a.png")
    member.type, member.size = kind, 2**33 - 1
    header = member.tobuf(tarfile.GNU_FORMAT, "utf-8", "strict")
    refused(tmp_path, header + b"\0" * 2048, "a header of 8,589,934,591 bytes")
