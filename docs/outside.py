"""Hook of MkDocs: the README is the first page, and whatever else pages link to comes along.

A page links to files of the repository as it would on a forge (`../benchmarks/RESULTS.md`). In the
site such a file is a page below `repository/`, and the link leads there. A link to a file that does
not exist stays as it is, and fails the build.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path, PurePosixPath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"(?<=\]\()(?!\w+:|[#/])(?P<path>[^)#\s]+)(?P<anchor>#[^)\s]*)?(?=\))")
# Lets the search work from the disk; but no page here asks another site for a script.
FOREIGN = '<script src="https://unpkg.com/iframe-worker/shim"></script>'
# Pages of the navigation that no other page need link to.
ALWAYS = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "examples/README.md")


def in_site(path: str) -> str:
    """Return the place in the site of a file of the repository."""
    if path == "README.md":
        return "index.md"
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return f"repository/{path if path.endswith('.md') else f'{path}.md'}"


def in_repository(uri: str) -> str:
    """Return the file of the repository behind a page of the site."""
    if uri == "index.md":
        return "README.md"
    path = uri.removeprefix("repository/")
    if path == uri:
        return f"docs/{uri}"
    return path if (ROOT / path).is_file() else path.removesuffix(".md")


def target(link: str, source: str) -> str | None:
    """Return the file of the repository that a link in another one means, or None."""
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), link))
    return path if not path.startswith("..") and (ROOT / path).is_file() else None


def as_page(path: str) -> str:
    """Return a file as Markdown: a script is a block of code."""
    text = (ROOT / path).read_text("utf-8")
    if path.endswith(".md"):
        return text
    return f"# {PurePosixPath(path).name}\n\n`{path}`\n\n```{path.rpartition('.')[2]}\n{text}```\n"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the README, and what pages link to outside of docs/."""
    waiting = [*ALWAYS, *(in_repository(file.src_uri) for file in files.documentation_pages())]
    seen: set[str] = set()
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        if not path.startswith("docs/"):
            files.append(File.generated(config, in_site(path), content=as_page(path)))
        if path.endswith(".md"):
            text = (ROOT / path).read_text("utf-8")
            waiting += filter(None, (target(link["path"], path) for link in LINK.finditer(text)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Lead links to files of the repository to their pages."""
    source = in_repository(page.file.src_uri)

    def leads(link: re.Match[str]) -> str:
        found = target(link["path"], source)
        if found is None:
            return link[0]
        here = posixpath.dirname(page.file.src_uri)
        return posixpath.relpath(in_site(found), here or ".") + (link["anchor"] or "")

    return LINK.sub(leads, markdown)


def on_post_page(output: str, **_: object) -> str:
    """Take out the one script that the theme would load from elsewhere."""
    return output.replace(FOREIGN, "")


on_post_template = on_post_page  # the page of an address that is not there
