from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_pairs import save_tiny_pairs
from tiny_text import save_tiny_model

pytest.importorskip("starlette", reason="the extra 'playground' is not installed")

from served import Client, served

from maskery.cli.main import main
from maskery.playground.session import Session


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two models with the same tokenizer; the name of one tries to break out of the page."""
    folder = tmp_path_factory.mktemp("models")
    other = "b<img src=x onerror=alert(1)>"
    return [
        save_tiny_model(folder / "first"),
        save_tiny_model(folder / other, seed=1),
    ]


@pytest.fixture(scope="session")
def client(models: list[Path]) -> Iterator[Client]:
    with served(Session(*map(str, models))) as found:
        yield found


@pytest.fixture(scope="session")
def alone(models: list[Path]) -> Iterator[Client]:
    """One model served by itself."""
    with served(Session(str(models[0]))) as found:
        yield found


@pytest.fixture(scope="session")
def pairs_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that looks at pictures; they lie beside it, in `data`."""
    folder = tmp_path_factory.mktemp("pairs")
    run = folder / "run"
    made = ["train", "pairs", str(save_tiny_pairs(folder / "data")), "--output", str(run)]
    assert main([*made, "--max-steps", "2", "--height", "16", "--width", "16"]) == 0
    return run


@pytest.fixture(scope="session")
def seeing(pairs_run: Path) -> Iterator[Client]:
    """The run served, with its pictures to search."""
    folder = pairs_run.parent
    with served(Session(str(pairs_run), gallery=folder / "data", cache_dir=folder)) as found:
        yield found
