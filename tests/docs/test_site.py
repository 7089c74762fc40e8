"""What `make docs` would refuse is found here in a second, without its packages."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

import maskery
from maskery.cli.main import find_command

ROOT = Path(__file__).parents[2]
FOLDERS = ("*.md", "docs/**/*.md", "examples/**/*.md", "benchmarks/*.md")
PAGES = sorted(str(path.relative_to(ROOT)) for name in FOLDERS for path in ROOT.glob(name))
# A command in a block, after a prompt or in a line of text; a backslash goes on.
COMMAND = re.compile(
    r"(?:^|`|\$ |    )(?:[A-Z_]+=\S+ )*maskery (?P<rest>(?:[^\n`]|\\\n)+)", re.MULTILINE
)
FLAG = re.compile(r"(?<!\S)--[a-z][a-z-]+(?!\S*\.)")
LINK = re.compile(r"\]\((?!\w+:)(?P<path>[^)#\s]*)#?(?P<anchor>[^)\s]*)\)")


def prose_of(path: Path) -> str:
    """Return a page without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", path.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)


def anchors_of(path: Path) -> set[str]:
    """Return what a page's headings can be linked by."""
    headings = re.findall(r"^#+ (.+)$", prose_of(path), re.MULTILINE)
    plain = (re.sub(r"[^\w\s-]", "", heading.lower()).strip() for heading in headings)
    return {re.sub(r"[\s-]+", "-", heading) for heading in plain}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files_and_headings(page: str) -> None:
    for link in LINK.finditer(prose_of(ROOT / page)):
        found = (ROOT / page).parent / link["path"] if link["path"] else ROOT / page
        assert found.is_file(), f"{page}: {link[0]}"
        assert not link["anchor"] or link["anchor"] in anchors_of(found), f"{page}: {link[0]}"


def test_every_page_stands_once_in_the_navigation() -> None:
    text = (ROOT / "mkdocs.yml").read_text("utf-8")
    named = re.findall(r"[\w/-]+\.md", str(yaml.safe_load(text)["nav"]))
    own = [name for name in named if not name.startswith("repository/") and name != "index.md"]
    assert sorted(own) == [path.removeprefix("docs/") for path in PAGES if path.startswith("docs/")]


def test_the_reference_has_every_public_name_once() -> None:
    named = [
        name
        for path in (ROOT / "docs" / "api").glob("*.md")
        for name in re.findall(r"^::: maskery\.(\w+)$", path.read_text("utf-8"), re.MULTILINE)
    ]
    assert sorted(named) == sorted(set(maskery.__all__) - {"__version__"})


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page != "CHANGELOG.md" and "/commands/" not in page]
)
def test_commands_and_flags_exist(page: str) -> None:
    """The blocks that no test runs have at least no word that a command would refuse."""
    text = (ROOT / page).read_text("utf-8")
    for match in COMMAND.finditer(text):
        words = match["rest"].replace("\\\n", " ").split()
        found = find_command(words)
        if found is None:
            assert words[0] in ("--help", "--version", "COMMAND", "train"), f"{page}: {words}"
            continue
        # Those of `evaluate` and `train` depend on the model or the file: any command's.
        name = "*" if found[0] in ("evaluate", "train") else found[0].replace(" ", "-")
        helps = (path.read_text("utf-8") for path in (ROOT / "docs/commands").glob(f"{name}.md"))
        known = set(re.findall(r"--[a-z][a-z-]+", "\n".join(helps)))
        assert set(FLAG.findall(match["rest"])) <= known, f"{page}: maskery {match['rest']}"


def test_the_page_about_flags_names_flags_that_exist() -> None:
    helps = (path.read_text("utf-8") for path in (ROOT / "docs" / "commands").glob("*.md"))
    known = set(re.findall(r"--[a-z][a-z-]+", "\n".join(helps)))
    named = set(re.findall(r"--[a-z][a-z-]+", (ROOT / "docs" / "flags.md").read_text("utf-8")))
    assert named <= known


def test_every_section_of_results_is_told_how_to_reproduce() -> None:
    page = (ROOT / "docs" / "reproduce.md").read_text("utf-8")
    told = set(re.findall(r"RESULTS\.md#([^)]+)", page))
    sections = anchors_of(ROOT / "benchmarks" / "RESULTS.md")
    # The heading of the page; what was not measured; what was tried by hand.
    assert sections - told == {"results", "gpus", "bf16-on-a-cpu"}
    for script in re.findall(r"benchmarks/\w+\.py", page):
        assert (ROOT / script).is_file()
