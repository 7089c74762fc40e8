"""The commands of docs/person_search.md, as written, on a small checkpoint of RaSa's release."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny_persons import save_cuhk

from maskery.cli.main import main

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "rasa_tiny"
# The release trains for days; everything else stays as the preset has it.
SHORT = ["--max-steps", "2", "--batch-pairs", "4", "--queue-size", "64"]


def documented() -> list[list[str]]:
    """The first commands of the page, without the quickstart, which has a test of its own."""
    block = (ROOT / "docs" / "person_search.md").read_text("utf-8").split("```")[1]
    commands = [shlex.split(line)[1:] for line in block.strip().splitlines()]
    return [command for command in commands if command[0] != "quickstart"]


def save_rasa(folder: Path) -> None:
    """A `.pth` of the released code's names, its tokenizer, a dataset and pictures."""
    weights = load_file(GOLDEN / "weights.safetensors")
    torch.save({"model": weights, "epoch": 29}, folder / "ALBEF.pth")
    shutil.copy(GOLDEN / "config.json", folder)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["[PAD]", *(f"[unused{n}]" for n in range(99)), "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words += [*letters, *(f"##{letter}" for letter in letters)]
    words += [f"word{n}" for n in range(320 - len(words))]
    (folder / "bert-base-uncased").mkdir()
    (folder / "bert-base-uncased" / "vocab.txt").write_text("\n".join(words))
    save_cuhk(folder / "CUHK-PEDES")
    (folder / "pictures").mkdir()
    for number, colour in enumerate(("red", "green", "blue")):
        Image.new("RGB", (24, 24), colour).save(folder / "pictures" / f"{number}.jpg")


def test_the_commands_of_the_page_run_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save_rasa(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MASKERY_CACHE", str(tmp_path / "cache"))
    commands = documented()
    names = [command[0] for command in commands]
    assert names == ["convert", "train", "evaluate", "search", "explain"]
    for command in commands:
        assert main([*command, *(SHORT if command[0] == "train" else ())]) == 0, command
    printed = capsys.readouterr().out
    assert "271 used, 0 missing, 0 left over" in printed
    assert "attention heads: 4 in the bert, 4 in the vit" in printed
    assert "12 captions of 3 persons against 6 pictures" in printed
    assert "words and picture match" in printed
    assert "2 steps;" in printed


def test_without_config_or_tokenizer_it_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save_rasa(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert main(["convert", "ALBEF.pth", "out"]) == 2
    assert "--tokenizer" in capsys.readouterr().err
    Path("config.json").unlink()
    assert main(documented()[0]) == 2
    assert "--text-heads" in capsys.readouterr().err
    assert not Path("out").exists()
    assert not Path("models").exists()
