"""`search` as typed."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image
from tiny_image_text import new_image_text, save_tiny_image_text
from tiny_pairs import save_tiny_pairs
from tiny_text import save_tiny_model

from maskery.cli.main import main


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("search")
    save_tiny_image_text(made / "model")
    save_tiny_pairs(made / "gallery", 8)
    return made


def command(folder: Path, *more: str) -> list[str]:
    return ["search", str(folder / "model"), "--gallery", str(folder / "gallery"), *more]


def test_search_prints_and_draws(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sheet = tmp_path / "sheet.png"
    assert main(command(folder, "red paper", "all blue", "--top", "3", "--sheet", str(sheet))) == 0
    out = capsys.readouterr().out
    assert "8 pictures, 8 newly encoded" in out
    assert out.count(".png") == 7
    with Image.open(sheet) as drawn:
        assert drawn.height > 2 * 192


def test_json_holds_everything(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(folder, "red paper", "--top", "3", "--rerank", "2", "--json")) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["pictures"] == 8
    (result,) = found["results"]
    assert result["query"] == "red paper"
    assert [hit["match"] is None for hit in result["hits"]] == [False, False, True]


def test_each_query_has_a_result_in_its_place(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    queries = ["red paper", "all blue", "red paper"]
    sheet = tmp_path / "sheet.png"
    assert main(command(folder, *queries, "--top", "2", "--sheet", str(sheet), "--json")) == 0
    results = json.loads(capsys.readouterr().out)["results"]
    assert [result["query"] for result in results] == queries
    assert results[0] == results[2] != results[1]
    assert main(command(folder, *queries, "--top", "2")) == 0
    assert capsys.readouterr().out.count("red paper") == 2
    with Image.open(sheet) as drawn:
        assert drawn.height > 3 * 192


def test_a_wrong_query_is_refused_before_pictures_are_read(folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    assert main(command(folder, "red paper", " ", "--cache-dir", str(cache))) == 2
    assert not cache.exists()
    assert main(command(folder, "red paper", "--cache-dir", str(cache))) == 0
    assert cache.exists()


def test_where_the_sheet_goes_is_looked_at_before_pictures_are_read(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = tmp_path / "cache"
    taken = tmp_path / "taken.png"
    taken.mkdir()
    (tmp_path / "file").touch()
    for sheet in (taken, tmp_path / "file" / "a.png", tmp_path / f"{'n' * 300}.png"):
        arguments = ["red", "--sheet", str(sheet), "--cache-dir", str(cache)]
        assert main(command(folder, *arguments)) == 2
        assert "no file can be written there" in capsys.readouterr().err
    assert not cache.exists()
    sheet = tmp_path / "new" / "folder" / "a.png"
    assert main(command(folder, "red", "--sheet", str(sheet), "--cache-dir", str(cache))) == 0
    with Image.open(sheet) as drawn:
        assert drawn.height > 192


def test_names_that_are_not_utf8(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gallery = tmp_path / os.fsdecode(b"gallery \xff")
    shutil.copytree(folder / "gallery", gallery)
    shutil.copy(gallery / "000.png", gallery / os.fsdecode(b"bad \xff.png"))
    arguments = ["search", str(folder / "model"), "red paper", "--gallery", str(gallery)]
    arguments += ["--cache-dir", str(tmp_path / "cache")]
    for again in range(2):
        assert main([*arguments, "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["gallery"] == f"{tmp_path}/gallery \\xff"
        assert found["pictures"] == 8
        assert found["changes"]["encoded"] == (0 if again else 8)
        (skipped,) = found["skipped"]
        assert "has a name that is not UTF-8" in skipped
    sheet = tmp_path / os.fsdecode(b"\xff.png")
    assert main([*arguments, "--sheet", str(sheet)]) == 0
    assert "1 skipped" in capsys.readouterr().out
    assert sheet.is_file()


def test_a_name_with_a_line_end_is_one_row(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(folder / "gallery", tmp_path / "gallery")
    (picture := tmp_path / "gallery" / "000.png").rename(picture.with_name("a\nb.png"))
    command = ["search", str(folder / "model"), "--gallery", str(tmp_path / "gallery")]
    assert main([*command, "red paper", "--cache-dir", str(tmp_path / "cache")]) == 0
    out = capsys.readouterr().out
    assert "  a b.png\n" in out
    assert len(out.splitlines()) == 4 + 8  # a summary, a gap, the query and the columns before


def test_mistakes_are_one_line_each(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(arguments: list[str]) -> str:
        assert main(arguments) == 2
        said = [s for s in capsys.readouterr().err.splitlines() if s.startswith("maskery ")]
        assert len(said) == 1
        return said[0]

    assert "no query" in refused(command(folder))
    assert "the query is empty" in refused(command(folder, ""))
    assert "end it with .png" in refused(command(folder, "red", "--sheet", "a.jpg"))
    assert "top is 0" in refused(command(folder, "red", "--top", "0"))
    nowhere = ["search", str(folder / "model"), "--gallery", str(tmp_path / "no"), "red"]
    assert "does not exist" in refused(nowhere)
    text = save_tiny_model(tmp_path / "text")
    other = ["search", str(text), "--gallery", str(folder / "gallery"), "red"]
    assert "no image-text model" in refused(other)
    mute = save_tiny_image_text(tmp_path / "mute", new_image_text(contrast=False))
    other[1] = str(mute)
    assert "were never trained" in refused(other)


def test_a_picture_is_looked_for_alone_and_with_words(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    like = ["--like", str(folder / "gallery" / "003.png")]
    assert main(command(folder, *like, "--top", "2", "--sheet", str(tmp_path / "a.png"))) == 0
    out = capsys.readouterr().out
    assert f"like {folder / 'gallery' / '003.png'}" in out
    assert re.search(r"^1 +1\.000 +003\.png$", out, re.MULTILINE)
    assert main(command(folder, "red paper", "all blue", *like, "--json")) == 0
    results = json.loads(capsys.readouterr().out)["results"]
    assert [result["query"].split(", like")[0] for result in results] == ["red paper", "all blue"]
    (tmp_path / "no.png").write_text("no picture")
    for wrong, told in (
        ([], "no query is given"),
        ([*like, "--rerank", "2"], "looks at words alone"),
        (["--like", str(tmp_path / "gone.png")], "gone.png"),
        (["--like", str(tmp_path / "no.png")], "no.png"),
    ):
        assert main(command(folder, *wrong)) == 2
        said = capsys.readouterr().err
        assert told in said
        assert said.count("\n") == 1
