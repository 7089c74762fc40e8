"""Write what the commands print into docs/commands/: their help, and a short run of the main ones.

    python docs/make_transcripts.py              # all; the runs take about two minutes
    python docs/make_transcripts.py --help-only

`tests/docs/test_transcripts.py` fails where a page of help is not what its command prints.
"""

from __future__ import annotations

import contextlib
import csv
import io
import os
import shlex
import sys
import tempfile
from pathlib import Path

from maskery.cli.main import COMMANDS, main

FOLDER = Path(__file__).parent / "commands"
COLUMNS = "100"
# Subjects of Python's own language reference, which every Python has: two kinds of notes.
SUBJECTS = {
    "statements": "assert class del for global if import try while with",
    "values": "numbers strings typesmapping typesseq integers slicings comparisons",
}
TEXT_RUN = "notes.txt --model minilm --max-steps 5 --max-length 64 --batch-tokens 512 --seed"
PEOPLE = "--dataset drawn-people --root people"
SESSION = {
    "Before a long run": ["inspect notes.txt --model minilm"],
    "Adapt an encoder": [f"train text {TEXT_RUN} 0 --output runs/notes"],
    "Use it": [
        'fill runs/notes "The [MASK] statement defines a class."',
        "score runs/notes sentences.tsv --pairs",
        "report runs/notes",
    ],
    "Measure it": [
        "evaluate runs/notes --data held_out.txt",
        "probe runs/notes --against minilm --labels subjects.csv",
    ],
    "Compare runs": [
        f"train text {TEXT_RUN} 1 --output runs/notes-1",
        "compare runs/notes runs/notes-1",
    ],
    "Cut a large corpus into shards": [
        "tokenize notes.txt shards --model minilm --workers 1",
    ],
    "People and their descriptions": [
        "data draw-people people --people 24 --images-per-person 2",
        f"train person-search {PEOPLE} --max-steps 4 --output runs/people",
        "evaluate runs/people",
        'search runs/people --gallery people/imgs "a woman in a red coat" --top 3',
    ],
}


HEAD = """# A session

What the main commands print, on a few paragraphs of Python's own language reference and a few
drawn people. `python docs/make_transcripts.py` wrote this page. So few steps on so little text
teach next to nothing, and the machine was busy with other work: the page shows what is printed,
not how good a model gets, nor how fast.
"""


def printed(arguments: list[str]) -> str:
    """Return what a command prints on both streams, as in a terminal of 100 columns."""
    out = io.TextIOWrapper(io.BytesIO(), "utf-8", newline="", write_through=True)
    kept = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = COLUMNS
    code: object = 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            code = main(arguments)
    except SystemExit as end:  # --help ends the program
        code = end.code
    finally:
        os.environ.pop("COLUMNS") if kept is None else os.environ.update(COLUMNS=kept)
    out.seek(0)
    text = out.read()
    if code:
        raise RuntimeError(f"maskery {shlex.join(arguments)} ended with {code}: {text}")
    # Of a bar that was drawn over itself, what stayed.
    lines = [line.rpartition("\r")[2].rstrip() for line in text.split("\n")]
    return "\n".join(lines)


def help_page(name: str) -> tuple[Path, str]:
    """Return the page about a command, or about all where it is empty, and what it should hold."""
    path = FOLDER / f"{name.replace(' ', '-') or 'index'}.md"
    about = COMMANDS[name][1] if name else "all commands"
    title, words = f"maskery {name}".rstrip(), name.split()
    short, full = printed([*words, "--help"]), printed([*words, "--help-all"])
    parts = [f"# {title}", f"{about[:1].upper()}{about[1:]}.", f"```text\n{short}```"]
    if full != short:
        parts += ["## All options", f"`{title} --help-all` prints:", f"```text\n{full}```"]
    return path, "\n\n".join(parts) + "\n"


def write_notes() -> None:
    """Write the texts that the session reads into the working folder."""
    from pydoc_data.topics import topics

    rows = [
        (" ".join(paragraph.split()), subject)
        for subject, names in SUBJECTS.items()
        for name in names.split()
        for paragraph in topics[name].split("\n\n")
        if len(paragraph) > 80
    ]
    Path("notes.txt").write_text("\n".join(text for text, _ in rows[::3]), "utf-8")
    Path("held_out.txt").write_text("\n".join(text for text, _ in rows[1::8]), "utf-8")
    Path("sentences.tsv").write_text("An object has a type.\tA object has an type.\n", "utf-8")
    with Path("subjects.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "label"), *rows[1::3]])


def session_page() -> str:
    """Run the session in a folder of its own. Returns the page about it."""
    parts = [HEAD]
    here = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            write_notes()
            for title, commands in SESSION.items():
                parts.append(f"## {title}\n")
                for command in commands:
                    told = printed(shlex.split(command))
                    parts.append(f"```text\n$ maskery {command}\n{told}```\n")
        finally:
            os.chdir(here)
    return "\n".join(parts)


if __name__ == "__main__":
    for command in ("", *COMMANDS):
        path, text = help_page(command)
        path.write_text(text, "utf-8")
    if "--help-only" not in sys.argv:
        (FOLDER / "session.md").write_text(session_page(), "utf-8")
