from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_text import save_tiny_model

pytest.importorskip("starlette", reason="the extra 'playground' is not installed")

from served import Client, served

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
