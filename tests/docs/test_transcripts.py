"""What is written by scripts is as they write it: pages of help, and notebooks of tutorials."""

from __future__ import annotations

import importlib.metadata
import re
import runpy
from pathlib import Path

import pytest

from maskery.cli.main import COMMANDS

ROOT = Path(__file__).parents[2]
WRITE = "python docs/make_transcripts.py --help-only"


def drawn_by_the_pinned_parser() -> bool:
    """Other versions break the lines elsewhere."""
    pins = (ROOT / "constraints.txt").read_text("utf-8")
    pinned = re.search(r"^tyro==(.+)$", pins, re.MULTILINE)
    return pinned is not None and importlib.metadata.version("tyro") == pinned[1]


def test_help_is_what_the_pages_show() -> None:
    help_page = runpy.run_path(str(ROOT / "docs" / "make_transcripts.py"))["help_page"]
    stale = []
    for name in ("", *COMMANDS):
        path, text = help_page(name)
        assert f"maskery {name}" in text
        if path.read_text("utf-8") != text:
            stale.append(path.name)
    if not drawn_by_the_pinned_parser():
        pytest.skip("tyro is not the version of constraints.txt")
    assert not stale, f"write them anew: {WRITE}"


def test_notebooks_are_the_tutorials() -> None:
    made = runpy.run_path(str(ROOT / "docs" / "make_notebooks.py"))
    for name, path in made["NOTEBOOKS"].items():
        assert path.read_text("utf-8") == made["notebook_of"](name), (
            f"write {name} anew: python docs/make_notebooks.py"
        )


def test_every_page_is_of_a_command() -> None:
    pages = {path.stem for path in (ROOT / "docs" / "commands").glob("*.md")}
    assert pages == {name.replace(" ", "-") for name in COMMANDS} | {"index", "session"}
