"""Every `maskery` command that a page shows is one that the parser takes, flags and values alike.

The README, the tutorials and the pages about Python run whole (`test_blocks.py`). Other pages show
commands on real data, hours and hubs; those are read by the parser here, and not executed.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from maskery.cli.evaluate import WAYS
from maskery.cli.main import command_of, find_command, parse
from maskery.core.errors import MaskeryError

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    str(path.relative_to(ROOT))
    for folder in ("docs", "benchmarks", "examples", "")
    for path in (ROOT / folder).glob("**/*.md" if folder else "*.md")
    if path.parent.name not in ("commands", "api", "tutorials") and path.name != "CHANGELOG.md"
)
IN_BLOCK = re.compile(r"^(?:    |\$ )?(?:[A-Z_]+=\S+ )*(maskery [a-z].*)$", re.MULTILINE)
IN_LINE = re.compile(r"`(?:[A-Z_]+=\S+ )*(maskery [a-z][^`]* --[^`]+)`")


def commands_of(page: str) -> list[str]:
    """Return the commands of a page that are whole: without dots or variables in their place."""
    text = (ROOT / page).read_text("utf-8").replace("\\\n", " ")
    found = IN_BLOCK.findall(text) + [" ".join(told.split()) for told in IN_LINE.findall(text)]
    return [told for told in found if not re.search(r"\.\.\.|\$|…|<|--help", told)]


def refusal(told: str) -> str:
    """Return what the parser says against a command; nothing where it takes it."""
    found = find_command(shlex.split(told.partition(" | ")[0], comments=True)[1:])
    if found is None:
        return "there is no such command"
    name, arguments = found
    command = command_of(name)
    # Which flags `evaluate` has depends on the model, which is not here.
    ways = WAYS if name == "evaluate" else [command]
    return min((complaint(way, name, arguments) for way in ways), key=len)


def complaint(way: Any, name: str, arguments: list[str]) -> str:
    try:
        parse(way, name, arguments) if isinstance(way, type) else way(arguments)
    except MaskeryError as error:
        # Other complaints are about the page's files, which are not here.
        return str(error) if "--help" in str(error) else ""
    return ""


@pytest.mark.parametrize("page", [page for page in PAGES if commands_of(page)])
def test_commands_of_a_page_are_taken(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    refused = {told: why for told in commands_of(page) if (why := refusal(told))}
    assert not refused


def test_a_flag_that_is_none_is_found() -> None:
    assert "--no-such-flag" in refusal("maskery fill minilm 'a [MASK]' --no-such-flag 3")
    assert refusal("maskery fil minilm") == "there is no such command"
    assert not refusal("maskery fill minilm 'a [MASK]' --top-k 3")
