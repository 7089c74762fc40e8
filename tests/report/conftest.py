"""A small run of each kind, whose reports the tests of this folder look at."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_pairs import save_tiny_pairs
from tiny_persons import save_cuhk
from tiny_text import lines, save_tiny_model

from maskery.cli.main import main


def trained(*arguments: object) -> None:
    assert main(["train", *map(str, arguments)]) == 0


@pytest.fixture(scope="session")
def text_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    corpus = folder / "corpus.txt"
    corpus.write_text("\n".join(lines(120)))
    model, run = save_tiny_model(folder / "model"), folder / "run"
    arguments = [corpus, "--model", model, "--output", run, "--epochs", "2", "--cache-dir", folder]
    trained(
        "text", *arguments, "--batch-tokens", "256", "--log-every", "2", "--held-out-share", "0.2"
    )
    return run


@pytest.fixture(scope="session")
def pairs_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    pairs, run = save_tiny_pairs(folder / "pairs"), folder / "run"
    arguments = [pairs, "--output", run, "--max-steps", "2", "--batch-pairs", "4"]
    trained("pairs", *arguments, "--held-out-share", "0.3", "--height", "16", "--width", "16")
    return run


@pytest.fixture(scope="session")
def person_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("persons")
    root, run = save_cuhk(folder / "cuhk"), folder / "run"
    arguments = ["--dataset", "cuhk-pedes", "--root", root, "--output", run, "--max-steps", "2"]
    arguments += ["--batch-pairs", "4", "--height", "16", "--width", "16"]
    arguments += ["--itm-weight", "1", "--rerank", "4"]
    trained("person-search", *arguments)
    return run
