from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from maskery.data.corpus.config import CorpusConfig
from maskery.data.corpus.examples import Example
from maskery.data.corpus.reader import Corpus

Read = Callable[..., list[str]]
Write = Callable[[str, str | bytes], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a file of that name with that content."""

    def writer(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return writer


@pytest.fixture
def read() -> Read:
    """The texts of one file, read in blocks of that many bytes."""

    def reader(path: Path, *, block_bytes: int = 1 << 20, **config: Any) -> list[str]:
        corpus = Corpus(config=CorpusConfig(**config), files=[path], block_bytes=block_bytes)
        return texts(corpus)

    return reader


def texts(examples: Iterable[Example]) -> list[str]:
    return [example.text for example in examples]
