"""`quickstart pairs` and the example that writes its pairs, as typed, on drawn stand-ins."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from drawn_emoji import serve_npm
from PIL import Image

from maskery.cli.main import main
from maskery.data.images.config import ViewConfig
from maskery.runs.image_text.config import PairsRunConfig
from maskery.runs.pairs import emoji, quickstart

EXAMPLES = Path(__file__).parents[2] / "examples" / "emoji"


@pytest.fixture(autouse=True)
def _short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serve_npm(tmp_path / "npm", monkeypatch)
    emoji.cldr_names.cache_clear()
    long = quickstart.quickstart_config

    def short(folder: Path) -> PairsRunConfig:
        config = long(folder)
        view = ViewConfig(height=16, width=16, flip_probability=0.0)
        return replace(config, view=view, training=replace(config.training, max_steps=2))

    monkeypatch.setattr(quickstart, "quickstart_config", short)


def test_it_fills_searches_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "quick"
    command = ["quickstart", "pairs", "--output", str(output)]
    assert main(command) == 0
    printed = capsys.readouterr().out
    for words in ("right picture", "wrong picture", "chosen words", "chance", "R@10", "mAP"):
        assert words in printed
    for searched in ("held-out concepts", "by another artist", "all of that artist's"):
        assert searched in printed
    with Image.open(output / "searches.png") as picture:
        assert picture.height > 64
    assert (output / "run" / "report.html").is_file()
    gallery = output / "other" / "facebook"
    assert f"--gallery {gallery}" in printed
    assert main(["search", str(output / "run"), "--gallery", str(gallery), "strawberry"]) == 0
    # A full folder is kept; an earlier quickstart is replaced when asked to.
    assert main(command) == 2
    assert "in use" in capsys.readouterr().err
    assert main([*command, "--overwrite", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)["searches"]) >= {"held-out concepts"}


def test_without_npm_and_font_it_says_so_before_it_makes_a_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(emoji, "FONT", tmp_path / "no.ttf")
    output = tmp_path / "quick"
    assert main(["quickstart", "pairs", "--output", str(output)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "install npm, or Debian's fonts-noto-color-emoji" in said
    assert not output.exists()


def test_the_example_writes_pairs_and_names_what_is_wrong(tmp_path: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(EXAMPLES / "make_pairs.py"), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    done = run(str(tmp_path / "pairs"), "--sets", "google", "--language", "de")
    assert done.stdout == "google: 67 pictures\n"
    assert (tmp_path / "pairs" / "test-google.jsonl").is_file()
    refused = run(str(tmp_path / "more"), "--sets", "apple")
    assert refused.returncode == 1
    assert "no pictures of 64 pixels" in refused.stderr
    assert refused.stderr.count("\n") == 1
