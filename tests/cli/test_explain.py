"""`explain` as typed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from tiny_image_text import save_tiny_image_text
from tiny_pairs import save_tiny_pairs
from tiny_text import save_tiny_model

from maskery.cli.main import main


def test_a_strip_has_a_panel_for_each_word(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(save_tiny_image_text(tmp_path / "model"))
    save_tiny_pairs(tmp_path / "data", 2)
    strip = tmp_path / "strip.png"
    image = ["--image", str(tmp_path / "data" / "000.png"), "--output", str(strip)]
    assert main(["explain", model, "a red square", *image]) == 0
    out = capsys.readouterr().out
    assert "words and picture match" in out
    assert "square" in out
    with Image.open(strip) as drawn:
        assert drawn.width > 4 * 256
        assert drawn.height < 2 * 256
    assert main(["explain", model, "a red square", *image, "--target", "words", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [word["word"] for word in found["words"]] == ["a", "red", "square"]
    assert len(found["words"][0]["heat"]) == 4
    assert found["target"] == "words"


@pytest.mark.parametrize("size", [(1, 1), (30_000, 1), (1, 30_000)])
def test_pictures_of_any_shape_are_explained_on_a_strip_of_bounded_size(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    model, strip = str(save_tiny_image_text(tmp_path / "model")), tmp_path / "strip.png"
    Image.new("RGB", size, (220, 20, 20)).save(tmp_path / "a.png")
    image = ["--image", str(tmp_path / "a.png"), "--output", str(strip)]
    assert main(["explain", model, "a red square", *image]) == 0
    with Image.open(strip) as drawn:
        assert drawn.width * drawn.height < 4_000_000


def test_mistakes_are_one_line_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(*arguments: str) -> str:
        assert main(["explain", *arguments]) == 2
        said = [s for s in capsys.readouterr().err.splitlines() if s.startswith("maskery ")]
        assert len(said) == 1
        return said[0]

    model = str(save_tiny_image_text(tmp_path / "model"))
    nowhere = ["--image", str(tmp_path / "no.png")]
    assert "cannot be read" in refused(model, "red", *nowhere)
    assert "the caption is empty" in refused(model, " ", *nowhere)
    assert "end it with .png" in refused(model, "red", *nowhere, "--output", "a.gif")
    save_tiny_pairs(tmp_path / "data", 1)
    there = ["--image", str(tmp_path / "data" / "000.png")]
    (tmp_path / "taken.png").mkdir()
    taken = ["--output", str(tmp_path / "taken.png")]
    assert "no file can be written there" in refused(model, "red", *there, *taken)
    deep = tmp_path / "new" / "strip.png"
    assert main(["explain", model, "red", *there, "--output", str(deep)]) == 0
    assert deep.is_file()
    capsys.readouterr()
    text = str(save_tiny_model(tmp_path / "text"))
    assert "no image-text model" in refused(text, "red", *nowhere)
