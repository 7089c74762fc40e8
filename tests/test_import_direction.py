"""The table of `docs/architecture.md`, held by reading every import."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import maskery

PACKAGE = Path(maskery.__file__).parent

TABLE = Path(__file__).parents[1] / "docs" / "architecture.md"
ROW = re.compile(r"^\| `(\w+)/` \|.*\| ([\w, -]+) \|$", re.MULTILINE)
ALLOWED = {
    folder: set(re.findall(r"\w+", allowed)) for folder, allowed in ROW.findall(TABLE.read_text())
}
MODULES = sorted(PACKAGE.rglob("*.py"))


def maskery_imports(path: Path) -> set[str]:
    """The folders of `maskery` that a module imports from, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            names.add(node.module or "")
            if node.module == "maskery":
                members = [alias.name for alias in node.names]
                names.update(f"maskery.{n}" for n in members if (PACKAGE / n).is_dir())
    return {name.split(".")[1] for name in names if name.startswith("maskery.")}


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_imports_go_downward_only(path: Path) -> None:
    parts = path.relative_to(PACKAGE).parts
    if len(parts) == 1:
        return
    folder = parts[0]
    outside = maskery_imports(path) - ALLOWED[folder] - {folder}
    assert not outside, f"{folder}/ may not import {sorted(outside)}"


def test_every_folder_is_in_the_table() -> None:
    folders = {p.parent.relative_to(PACKAGE).parts[0] for p in MODULES if p.parent != PACKAGE}
    assert folders == set(ALLOWED)
    assert set().union(*ALLOWED.values()) <= folders
