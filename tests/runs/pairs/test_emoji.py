"""Emoji as pairs: names, concepts, tables; and what is said where they cannot be had."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from drawn_emoji import serve_npm
from PIL import Image

from maskery.core.errors import DataError
from maskery.runs.pairs import emoji


@pytest.fixture(autouse=True)
def _npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serve_npm(tmp_path / "npm", monkeypatch)
    emoji.cldr_names.cache_clear()


def rows(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_pictures_are_named_in_words_with_one_word_for_a_tone(tmp_path: Path) -> None:
    assert emoji.write_emoji(tmp_path / "out", "google") == 16 * 4 + 2 + 1
    found = {str(row["image"]): row for row in rows(tmp_path / "out" / "google.jsonl")}
    assert len(found) == 67
    cook = found["google/woman cook-1f3fc.png"]
    assert cook["caption"] == ["woman cook: fair skin", "fair skin"]
    assert cook["name"] == "woman cook: fair skin"
    assert found["google/man cook-1f3fb.png"]["name"] == "man cook: pale skin"
    assert found["google/strawberry.png"]["caption"] == ["strawberry", "work, strawberry"]
    for image in found:
        with Image.open(tmp_path / "out" / image) as picture:
            assert picture.size == (64, 64)
    # Of the two flags that look the same one is left.
    assert [row["concept"] for row in found.values() if "flag" in str(row["name"])] in (
        [["flag norway"]],
        ["flag bouvet island"],
    )


def test_tones_and_genders_of_a_concept_stand_on_one_side(tmp_path: Path) -> None:
    for name in ("google", "twitter"):
        emoji.write_emoji(tmp_path, name)
    train, test = (
        {str(row["concept"]) for row in rows(tmp_path / f"{split}-google.jsonl")}
        for split in ("train", "test")
    )
    assert not train & test
    assert {"cook", "judge", "strawberry"} <= train | test
    everything = rows(tmp_path / "google.jsonl")
    parts = [rows(tmp_path / f"{split}-google.jsonl") for split in ("train", "test")]
    assert sum(map(len, parts)) == len(everything)
    # Another artist's pictures of a concept stand on the same side.
    assert {str(row["concept"]) for row in rows(tmp_path / "test-twitter.jsonl")} == test


@pytest.mark.parametrize(
    ("name", "concept"),
    [
        ("woman astronaut: medium-dark skin tone", "astronaut"),
        ("man running: light skin tone, facing right", "running"),
        ("man running facing right light skin tone", "running"),
        ("women holding hands: light skin tone, dark skin tone", "holding hands"),
        ("woman and man holding hands", "and holding hands"),
        ("man: dark skin tone, bald", "person"),
        ("princess", "prince"),
        ("flag: Germany", "flag germany"),
        ("keycap: 3", "keycap 3"),
        ("snowman", "snowman"),
        ("right-facing fist: dark skin tone", "right facing fist"),
    ],
)
def test_a_concept_has_no_tone_gender_or_direction(name: str, concept: str) -> None:
    assert emoji.concept_of(name) == concept


def test_names_of_another_language_have_the_same_concepts(tmp_path: Path) -> None:
    emoji.write_emoji(tmp_path / "en", "google")
    emoji.write_emoji(tmp_path / "de", "google", "de")
    for one, other in zip(
        rows(tmp_path / "en" / "google.jsonl"), rows(tmp_path / "de" / "google.jsonl"), strict=True
    ):
        assert one["concept"] == other["concept"]
    names = {row["name"] for row in rows(tmp_path / "de" / "google.jsonl")}
    assert "de-woman cook: medium-light Hautfarbe" in names


@pytest.mark.parametrize(
    ("name", "language", "reason"),
    [
        ("apple", "en", "no pictures of 64 pixels"),
        ("google", "xx", "names no emoji in 'xx'"),
        ("openmoji", "en", "npm pack emoji-datasource-openmoji@16.0.0 failed (npm error"),
    ],
)
def test_what_cannot_be_had_is_one_line_and_leaves_nothing(
    tmp_path: Path, name: str, language: str, reason: str
) -> None:
    with pytest.raises(DataError) as refused:
        emoji.write_emoji(tmp_path / "out", name, language)
    assert reason in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_a_font_is_drawn_where_there_is_no_npm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("emoji", reason="the emoji extra is not installed")
    if not emoji.FONT.is_file():
        pytest.skip("Debian's fonts-noto-color-emoji is not installed")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert emoji.available_sets() == ("google",)
    assert emoji.write_emoji(tmp_path / "out", "google") > 3000
    names = {row["name"] for row in rows(tmp_path / "out" / "google.jsonl")}
    assert "woman astronaut fair skin" in names


def test_the_packages_of_npm_still_hold_what_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    if not shutil.which("npm"):
        pytest.skip("npm is not installed")
    try:
        names = emoji.cldr_names("de")
    except DataError as error:
        pytest.skip(f"npm has no network: {error}")
    assert names["\U0001f353"][0] == "Erdbeere"
