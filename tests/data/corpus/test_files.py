from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from maskery.core.errors import DataError
from maskery.data.corpus.files import HubName, find_files, hub_name


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of everything, which is also the current one."""
    for name in (
        "data/b.txt", "data/a.txt.gz", "data/deep/er/c.JSONL", "data/deep/d.csv.zst",
        "data/.hidden.txt", "data/.git/x.txt", "data/README.md", "data/picture.png", "data/run.log",
        "data/e.parquet", "other/only.pdf", "corpus.txt", "plain", "odd[1].txt", "notes.md",
    ):  # fmt: skip
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("text\n")
    (tmp_path / "void").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def found(*sources: str) -> list[str]:
    return [path.as_posix() for path in find_files(sources)]


def test_folders_are_searched_for_usable_files(house: Path) -> None:
    inside = ["data/a.txt.gz", "data/b.txt", "data/deep/d.csv.zst", "data/deep/er/c.JSONL"]
    assert found("data") == [*inside, "data/e.parquet"]
    assert found("data/", "data/b.txt", str(house / "data")) == [
        str(house / path) for path in [*inside, "data/e.parquet"]
    ]


def test_order_and_repetition_of_sources_do_not_matter(house: Path) -> None:
    assert found("data/b.txt", "corpus.txt") == found("corpus.txt", "data/b.txt", "corpus.txt")


def test_globs(house: Path) -> None:
    assert found("data/*.txt*") == ["data/a.txt.gz", "data/b.txt"]
    assert found("data/**/*.csv.zst") == ["data/deep/d.csv.zst"]
    assert found("data/*.md") == ["data/README.md"]
    assert found("data/d*") == ["data/deep/d.csv.zst", "data/deep/er/c.JSONL"]
    assert found(str(house / "**" / "d.*")) == [str(house / "data/deep/d.csv.zst")]
    assert found("odd[1].txt") == ["odd[1].txt"]


def test_text_of_other_suffixes_counts_when_named(house: Path) -> None:
    assert found("notes.md", "data/run.log") == ["data/run.log", "notes.md"]


def test_linked_folders_are_followed_once(house: Path) -> None:
    (house / "void" / "loop").symlink_to(house / "void", target_is_directory=True)
    (house / "void" / "data").symlink_to(house / "data", target_is_directory=True)
    (house / "void" / "again").symlink_to(house / "data", target_is_directory=True)
    assert len(found("void")) == 5


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        (["corpsu.txt"], r"^corpsu\.txt does not exist; did you mean corpus\.txt\?"),
        (["data/bb.txt"], r"^data/bb\.txt does not exist; did you mean data/b\.txt"),
        (["nowhere/x.txt"], r"^nowhere/x\.txt does not exist; check the name"),
        (["corpus.txt", "imdb"], r"^imdb does not exist"),
        (
            ["other"],
            r"^the folder other holds no file .*\.txt, .*\.parquet, plain or packed \(\.gz",
        ),
        (["void"], "^the folder void holds no file"),
        (["data/*.xml"], r"^the pattern 'data/\*\.xml' matches no file"),
        (
            ["other/only.pdf"],
            r"^other/only\.pdf has the suffix '\.pdf', which is not read.*\.jsonl",
        ),
        (["other/*"], r"^other/only\.pdf has the suffix '\.pdf'"),
        (["plain"], r"^plain has no suffix.*rename it to end in \.txt"),
        (["/dev/null"], "^/dev/null is neither a file nor a folder"),
        ([], "^no corpus is named"),
        (["word " * 2000], "is no name of a file"),
        (["nul\0.txt"], "does not exist"),
        (
            ["data\\b.txt"],
            r"^data\\b\.txt does not exist; it has backslashes.* mean data/b\.txt\?$",
        ),
        (["data\\bb.txt"], r"^data\\bb\.txt does not exist; it has backslashes.* mean data/b\.txt"),
        (["no\\such/x.txt"], r"^no\\such/x\.txt does not exist; it has backslashes.*write those$"),
        (["data\\*.txt"], r"^the pattern 'data\\\*\.txt' .* backslashes.* mean data/\*\.txt\?$"),
        ([""], "."),
    ],
)
def test_errors_name_the_source_and_the_fix(house: Path, sources: list[str], message: str) -> None:
    if sources == [""]:
        sources = ["data/picture.png/x.txt"]
    with pytest.raises(DataError, match=re.compile(message)) as caught:
        find_files(sources)
    assert "\n" not in str(caught.value)


def test_a_name_that_no_file_can_have_is_refused() -> None:
    with pytest.raises(DataError, match=r"\\x00/0 does not exist"):
        find_files(["\0/0"])


def test_a_file_whose_own_name_has_backslashes_is_read(house: Path) -> None:
    (house / r"data\b.txt").write_text("a river")
    assert find_files([r"data\b.txt"]) == [Path(r"data\b.txt")]


def test_a_broken_link_is_named(house: Path) -> None:
    (house / "link.txt").symlink_to("gone.txt")
    with pytest.raises(DataError, match=r"^link\.txt does not exist"):
        find_files(["link.txt"])


@pytest.mark.parametrize(
    ("source", "name", "configuration"),
    [
        ("imdb", "imdb", None),
        ("Salesforce/wikitext", "Salesforce/wikitext", None),
        ("wikitext:wikitext-2-raw-v1", "wikitext", "wikitext-2-raw-v1"),
        ("org/name-2.0:a.b", "org/name-2.0", "a.b"),
    ],
)
def test_hub_names(house: Path, source: str, name: str, configuration: str | None) -> None:
    expected = HubName(name=name, configuration=configuration)
    assert hub_name([source]) == expected
    assert str(expected) == source


@pytest.mark.parametrize(
    "source",
    ["data", "plain", "missing.txt", "missing.json.gz", "x.gz", "data/missing", "a/b/c", "./imdb",
     "../imdb", "data/*", "a b", "C:/x", "name:", "x" * 5000],
)  # fmt: skip
def test_what_is_no_hub_name(house: Path, source: str) -> None:
    assert hub_name([source]) is None
    assert hub_name([source, "imdb"]) is None


def test_what_is_no_file_is_passed_over_and_counted(
    house: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import socket

    os.mkfifo(house / "data" / "pipe.txt")
    (house / "data" / "round.txt").symlink_to(house / "data" / "round.txt")
    (house / "data" / "gone.txt").symlink_to("nothing")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("data/socket.txt")
        assert len(found("data")) == 5
    assert "passed over 4 that are no files" in caplog.text
    for name in ("pipe.txt", "round.txt", "gone.txt"):
        with pytest.raises(DataError, match=r"is neither a file nor a folder|does not exist"):
            find_files([f"data/{name}"])
    assert found("data/*.txt") == ["data/b.txt"]


@pytest.mark.parametrize(
    ("suffixes", "converter"),
    [
        (".pdf", "pdftotext FILE{}"),
        (".docx .odt .epub .html .htm .xhtml .rtf .tex .RTF", "pandoc .* FILE{} -o"),
        (".doc .pages", "soffice --headless --convert-to txt:Text FILE{}"),
        (".xlsx .xls .ods", "soffice --headless --convert-to csv FILE{}"),
    ],
)
def test_documents_name_their_converter(house: Path, suffixes: str, converter: str) -> None:
    for suffix in suffixes.split():
        (house / f"a{suffix}").write_text("x")
        by = f"first, for example by: {converter.format(suffix.lower())}"
        with pytest.raises(DataError, match=by) as caught:
            find_files([f"a{suffix}"])
        assert "\n" not in str(caught.value)


def test_documents_in_a_folder_are_told(house: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("b.docx", "deep.pdf", "c.bin"):
        (house / "void" / name).write_text("x")
    with pytest.raises(DataError, match=r"void holds no file .*example by: pandoc .*\.docx"):
        find_files(["void"])
    (house / "void" / "a.txt").write_text("text")
    assert found("void") == ["void/a.txt"]
    assert caplog.messages == [
        "passed over 2 documents that are no plain text, such as void/b.docx: turn it into text "
        "first, for example by: pandoc -t plain --wrap=none FILE.docx -o FILE.txt"
    ]
