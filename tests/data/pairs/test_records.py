from __future__ import annotations

import pytest

from maskery.core.errors import ConfigError, DataError
from maskery.data.images.loading import Skipped
from maskery.data.pairs.config import PairsConfig
from maskery.data.pairs.records import (
    checked_captions,
    checked_image_name,
    checked_person,
    find_columns,
    pair_id,
    printable,
)


@pytest.mark.parametrize("name", ["a.jpg", "a/b c/ä.png", "..a/b..", "a/./b", "x:y.jpg"])
def test_names_below_the_root_pass(name: str) -> None:
    assert checked_image_name(name, "f, line 1") == name


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("../a.jpg", "climbs out"),
        ("a/../../b.jpg", "climbs out"),
        ("a\\..\\..\\b.jpg", "climbs out"),
        ("/etc/passwd", "is absolute"),
        ("C:\\a.jpg", "is absolute"),
        ("\\\\server\\share\\a.jpg", "is absolute"),
        ("\\a.jpg", "is absolute"),
        ("http://x.org/a.jpg", "is an address"),
        ("a\0.jpg", "no path may have"),
        ("a\ud800.jpg", "no path may have"),
        ("", "not the path of a file"),
        ("  ", "not the path of a file"),
        (None, "the image is None"),
        (3, "the image is 3"),
        ({"bytes": 1}, "not the path of a file"),
    ],
)
def test_names_that_lead_elsewhere_are_refused(name: object, reason: str) -> None:
    with pytest.raises(DataError, match=rf"^f, line 1: .*{reason}"):
        checked_image_name(name, "f, line 1")


def test_captions_are_stripped_and_listed() -> None:
    strict = Skipped("caption", "fail")
    assert checked_captions(" a man\n", "w", 10, strict) == ("a man",)
    assert checked_captions(["a", "b"], "w", 10, strict) == ("a", "b")
    assert checked_captions("穿红衣的人", "w", 10, strict) == ("穿红衣的人",)


@pytest.mark.parametrize("bad", [None, 7, ["a"], "", "...", "a\ud800", "x" * 11])
def test_a_bad_caption_leaves_the_good_ones_of_its_record(bad: object) -> None:
    lenient = Skipped("caption", "skip")
    assert checked_captions(["a man", bad, "a hat", bad], "w", 10, lenient) == ("a man", "a hat")
    assert lenient.count == 2
    assert checked_captions([bad], "w", 10, lenient) == ()
    assert checked_captions([], "w", 10, lenient) == ()
    assert lenient.count == 4


@pytest.mark.parametrize(
    ("caption", "reason"),
    [
        (None, "the caption is None"),
        (7, "the caption is 7"),
        (["a", 7], "the caption is 7"),
        ([["a"]], "the caption is \\['a'\\]"),
        ({"a": 1}, "not a string"),
        (True, "the caption is True"),
        ([], "list of captions is empty"),
        ("", "holds no word"),
        ("  \n", "holds no word"),
        ("...!?", "holds no word"),
        ("a\ud800", "holds no word"),
        ("x" * 2_000_000, "2000000 characters, more than the 100 allowed"),
    ],
)
def test_bad_captions_are_refused_in_one_short_line(caption: object, reason: str) -> None:
    with pytest.raises(DataError, match=rf"^w: .*{reason}") as caught:
        checked_captions(caption, "w", 100, Skipped("caption", "fail"))
    assert len(str(caught.value)) < 250
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("value", "name"),
    [(3, "3"), ("3", "3"), (3.0, "3"), ("cam a", "cam a"), (None, None), ("", None), (0, "0")],
)
def test_persons(value: object, name: str | None) -> None:
    assert checked_person(value, "w") == name


@pytest.mark.parametrize("value", [True, 2.5, [1], {"a": 1}, float("nan"), float("inf"), "\ud800"])
def test_odd_persons_are_refused(value: object) -> None:
    with pytest.raises(DataError, match=r"^w: the person"):
        checked_person(value, "w")


def test_ids_are_stable_and_unambiguous() -> None:
    # Recorded; a change would give every mask and view of every run another draw.
    assert pair_id("a.jpg", ("a man", "a person")) == 7306752890936980699
    different = {
        pair_id("a", ("b", "c")),
        pair_id("a", ("b c",)),
        pair_id("ab", ("c",)),
        pair_id("a", ("bc",)),
        pair_id("a", ('b", "c',)),
    }
    assert len(different) == 5


@pytest.mark.parametrize(
    ("available", "settings", "expected"),
    [
        (["image", "caption"], {}, ("image", "caption", None, None)),
        (["filepath", "title"], {}, ("filepath", "title", None, None)),
        (["file_name", "text", "id"], {}, ("file_name", "text", None, None)),
        (["file_name", "text", "id"], {"person_column": "id"}, ("file_name", "text", "id", None)),
        (["file_path", "captions", "id"], {}, ("file_path", "captions", "id", None)),
        (
            ["file_path", "captions", "id", "person", "split"],
            {},
            ("file_path", "captions", "person", "split"),
        ),
        (
            ["image", "caption", "text"],
            {"caption_column": "text"},
            ("image", "text", None, None),
        ),
        (["pic", "words"], {"image_column": "pic", "caption_column": "words"},
         ("pic", "words", None, None)),
    ],
)  # fmt: skip
def test_columns_are_found(
    available: list[str], settings: dict[str, str], expected: tuple[str | None, ...]
) -> None:
    columns = find_columns(available, PairsConfig(**settings), "w")  # type: ignore[arg-type]
    kinds = ("image", "caption", "person", "split")
    assert tuple(map(columns.get, kinds)) == expected


@pytest.mark.parametrize(
    ("available", "settings", "message"),
    [
        (["caption"], {}, "w has no image column .*only 'caption'; .*image_column"),
        (["image"], {}, "w has no caption column .*caption_column"),
        ([], {}, "only none"),
        (["image", "caption", "title"], {}, "several columns .*'caption', 'title'"),
        (["image", "caption"], {"caption_column": "x"}, "no column 'x', only 'image', 'caption'"),
    ],
)
def test_missing_and_doubtful_columns(
    available: list[str], settings: dict[str, str], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        find_columns(available, PairsConfig(**settings), "w")  # type: ignore[arg-type]


def test_names_from_containers_become_text() -> None:
    assert printable("a\udcffb") == "a\\udcffb"


@pytest.mark.parametrize(
    "settings",
    [
        {"on_bad_image": "warn"},
        {"on_bad_caption": "warn"},
        {"max_pixels": 0},
        {"max_pixels": 10**12},
        {"max_caption_chars": 0},
    ],
)
def test_settings_outside_their_range(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        PairsConfig(**settings)  # type: ignore[arg-type]
