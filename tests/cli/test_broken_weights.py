"""Weights that are no numbers: every command on pictures ends with one line, before it computes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny_image_text import new_image_text, save_tiny_image_text
from tiny_pairs import save_tiny_pairs

from maskery.cli.main import main


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with one bad weight on its side of pictures, pairs, and pairs with persons."""
    made = tmp_path_factory.mktemp("broken")
    model = new_image_text()
    with torch.no_grad():
        next(model.visual_encoder.parameters()).view(-1)[0] = float("nan")
    save_tiny_image_text(made / "model", model)
    rows = save_tiny_pairs(made / "data", 12).read_text().splitlines()
    named = [
        {**json.loads(row), "person": n, "split": ("train", "val", "test")[n % 3]}
        for n, row in enumerate(rows)
    ]
    (made / "data" / "persons.jsonl").write_text("\n".join(map(json.dumps, named)))
    return made


@pytest.mark.parametrize(
    "command",
    [
        "search {0}/model --gallery {0}/data red --cache-dir {1}/new --rerank 0",
        "evaluate {0}/model --data {0}/data/pairs.jsonl",
        "evaluate {0}/model --data {0}/data/pairs.jsonl --rerank 2",
        "explain {0}/model --image {0}/data/000.png red --output {1}/new/strip.png",
        "fill {0}/model --image {0}/data/000.png [MASK]",
        "train pairs {0}/data/pairs.jsonl --model {0}/model --output {1}/new",
        "train person-search --dataset jsonl --root {0}/data/persons.jsonl --model {0}/model "
        "--output {1}/new",
    ],
    ids=lambda command: command.partition(" {")[0],
)
def test_no_figure_from_weights_that_are_no_numbers(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    assert main(command.format(folder, tmp_path).split()) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if "maskery " in line]
    assert len(said) == 1
    assert "not numbers (NaN or infinite), first in 'visual_encoder" in said[0]
    assert not (tmp_path / "new").exists()
