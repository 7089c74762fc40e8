"""Three small pictures that every format of pairs is written from."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image

COLOURS = [(250, 0, 0), (0, 250, 0), (0, 0, 250)]


def png(colour: tuple[int, int, int]) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 3), colour).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def pictures() -> list[bytes]:
    """PNG files in red, green and blue."""
    return [png(colour) for colour in COLOURS]


@pytest.fixture
def root(tmp_path: Path, pictures: list[bytes]) -> Path:
    """A folder with `imgs/0.png` to `imgs/2.png`."""
    folder = tmp_path / "root"
    (folder / "imgs").mkdir(parents=True)
    for number, content in enumerate(pictures):
        (folder / "imgs" / f"{number}.png").write_bytes(content)
    return folder
