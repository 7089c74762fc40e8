"""Write three of the tutorials as notebooks into `examples/notebooks/`.

    python docs/make_notebooks.py

Text becomes Markdown cells, and blocks of code become cells of code, commands behind `!`. A test
compares the notebooks with the tutorials, and `make docs` runs them by a kernel.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = {name: ROOT / f"examples/notebooks/{name}.ipynb" for name in (
    "adapt_and_probe", "plug_in", "pictures",
)}  # fmt: skip
BLOCK = re.compile(r"^```(python|console)\n(.*?)^```\n", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!\w+:)([^)]+)\)")


def notebook_of(name: str) -> str:
    """Return the notebook of a tutorial, as the file has it."""
    page = (ROOT / f"docs/tutorials/{name}.md").read_text("utf-8")
    # A notebook lies elsewhere, so its links start at the repository's top.
    page = LINK.sub(lambda link: f"](../../{relative(link[1])})", page)
    text, *rest = BLOCK.split(page)
    cells = [cell("markdown", text, 0)]
    for number, (kind, code, text) in enumerate(zip(*[iter(rest)] * 3, strict=True)):
        lines = code if kind == "python" else re.sub(r"^\$ ", "!", code, flags=re.MULTILINE)
        cells += [cell("code", lines, 2 * number + 1), cell("markdown", text, 2 * number + 2)]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    book = {
        "cells": [one for one in cells if one["source"]],
        "metadata": {"kernelspec": kernel, "language_info": {"name": "python"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    return json.dumps(book, indent=1, ensure_ascii=False) + "\n"


def relative(link: str) -> str:
    """Return a link of a page in `docs/tutorials/` as a path from the repository's top."""
    path = (ROOT / "docs/tutorials" / link).resolve()
    return path.relative_to(ROOT).as_posix()


def cell(kind: str, text: str, number: int) -> dict[str, Any]:
    """Return a cell; its name stays as long as its content and place do."""
    source = text.strip().splitlines(keepends=True)
    name = hashlib.sha256(f"{number} {text}".encode()).hexdigest()[:8]
    told: dict[str, Any] = {"cell_type": kind, "id": name, "metadata": {}, "source": source}
    return told | ({"execution_count": None, "outputs": []} if kind == "code" else {})


def main() -> None:
    """Write all of them."""
    for name, path in NOTEBOOKS.items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(notebook_of(name), "utf-8")


if __name__ == "__main__":
    main()
