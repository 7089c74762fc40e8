"""Help, and what is said about arguments that are mistyped."""

from __future__ import annotations

import contextlib
import importlib
import io
import re
from pathlib import Path
from typing import Any

import pytest
import tyro

from maskery.cli.evaluate import WAYS
from maskery.cli.flags import COMMON, Flag, flags_of, help_of, split_arguments
from maskery.cli.main import COMMANDS, main
from maskery.cli.train import command_class, starting_point

KINDS: dict[str, type[Any]] = {
    **{f"train {kind}": command_class(kind) for kind in ("text", "pairs", "person-search")},
    **{f"evaluate {way.__name__}": way for way in WAYS},
}
for _name, (_where, _) in COMMANDS.items():
    _module, _, _made = _where.partition(":")
    _kind = getattr(importlib.import_module(f"maskery.cli.{_module}"), _made)
    if isinstance(_kind, type):
        KINDS[_name] = _kind


def flags_of_the_parser(kind: type[Any]) -> set[str]:
    """Return the flags that tyro's own help lists."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), pytest.raises(SystemExit):
        tyro.cli(kind, args=["--help"])
    rows = re.findall(r"^  (-\S.*)$", out.getvalue(), re.MULTILINE)
    starts = (row.partition("  ")[0] for row in rows)
    return {flag for start in starts for flag in re.findall(r"--\w[\w.-]*", start)} - {"--help"}


@pytest.mark.parametrize("name", KINDS)
def test_the_flags_are_those_that_the_parser_takes(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    own = {name for flag in flags_of(KINDS[name]) if not flag.positional for name in flag.names}
    assert own == flags_of_the_parser(KINDS[name])


@pytest.mark.parametrize("name", KINDS)
def test_every_flag_is_told_in_whole_sentences_on_narrow_terminals(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "90")
    command = name if name in COMMON else name.partition(" Evaluate")[0]
    for flag in flags_of(KINDS[name]):
        assert flag.about.endswith("."), f"{flag.names}: {flag.about}"
    text = help_of(command, KINDS[name], everything=True)
    assert "None" not in text.replace("None for never", "")
    assert "(default: )" not in text
    examples = text.partition("examples:")[2].partition("\n\n")[0]
    others = text.replace(examples, "")
    assert all(len(line) <= 90 for line in others.splitlines()[1:] if " {" not in line)
    assert not re.search(r"[ \t]\n", text)


def test_help_shows_a_dozen_and_help_all_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    for wanted in ("--help", "--help-all"):
        with pytest.raises(SystemExit) as end:
            main(["train", "text", wanted])
        assert end.value.code == 0
    out = capsys.readouterr().out
    short, full = out[: out.index("usage:", 1)], out[out.index("usage:", 1) :]
    total = len([flag for flag in flags_of(command_class("text")) if not flag.positional])
    assert short.endswith(f"\n--help-all shows all {total} options.\n")
    listed = re.findall(r"^  (--[\w-]+)", short, re.MULTILINE)
    assert 10 <= len(listed) <= 16
    assert listed[:3] == ["--model", "--output", "--resume"]
    assert re.findall(r"^  (--[\w-]+)", full, re.MULTILINE)[: len(listed)] == listed
    assert len(re.findall(r"^  --[\w-]+", full, re.MULTILINE)) == total
    assert "--help-all" not in full


def test_the_flags_that_come_first_are_there() -> None:
    evaluating = {name for way in WAYS for flag in flags_of(way) for name in flag.names}
    for command, common in COMMON.items():
        there = evaluating
        if command != "evaluate":
            there = {name for flag in flags_of(KINDS[command]) for name in flag.names}
        assert {f"--{name}" for name in common.split()} <= there


def flag(name: str, command: str = "convert", values: Any = None) -> Flag:
    return next(one for one in flags_of(KINDS[command], values) if name in one.names)


def test_what_stands_for_values_and_defaults_in_words() -> None:
    assert flag("--image-size").shown == "--image-size INT INT"
    assert "Default: those of the checkpoint." in flag("--image-size").about
    assert flag("--epochs", "train text").about == "Times the corpus is read. Default: 3."
    assert flag("--unit", "train text").choices == ("line", "paragraph", "document")
    assert flag("--eval-data", "train text").shown == "--eval-data STR ..."
    assert flag("--clean-captions", "train person-search").about.endswith(
        "Default: on; --no-clean-captions: off."
    )
    assert flag("--people", "data draw-people").names == ("--people", "--num-people")
    assert flag("--labels", "probe").required


def test_a_preset_changes_the_defaults_that_help_shows() -> None:
    kind = command_class("person-search")
    shown = {}
    for preset in ("small", "rasa"):
        values = starting_point(kind, ["--preset", preset], None)
        shown[preset] = flag("--mask-rate", "train person-search", values).about
    assert shown["small"].endswith("Default: 0.3.")
    assert shown["rasa"].endswith("Default: 0.15.")


MISTYPED = [
    ("train text a.txt --epoch 3", "there is no flag --epoch; did you mean --epochs?"),
    ("train text a.txt --lerning_rate 3", "did you mean --learning-rate?"),
    ("fill m x --top 3", "there is no flag --top; did you mean --top-k?"),
    ("evaluate runs --bacth-tokens 4", "did you mean --batch-tokens?"),
    ("train text a.txt --unit paragraf", "it must be one of line, paragraph, document; did you"),
    ("train text a.txt --layout=paked", "--layout is 'paked': it must be one of auto, packed"),
    ("train text a.txt --policy wrod", "did you mean word?"),
    ("train text a.txt --reader jsnl", "did you mean jsonl?"),
    ("train person-search --dataset cuhk --root x", "did you mean cuhk-pedes?"),
    ("train text a.txt --epochs many", "--epochs many: it takes INT. Times the corpus is read."),
    ("train text a.txt --max-steps", "--max-steps: it takes INT. Most optimiser steps"),
    ("convert a b --image-size 3", "--image-size 3: it takes INT INT. Height and width"),
    ("probe minilm", "--labels STR is missing. Labelled texts"),
    ("convert a", "OUT is missing. The folder to write"),
    ("evaluate runs --mask-rate 0.3", "need --data FILE: what a run held out is"),
    ("evaluate runs --trust a.py", "--trust is 'a.py': it must be FILE.py:NAME"),
    (f"fill {'x' * 300} [MASK]", "too long for the name of a file; name a file or folder that"),
    (f"train text {'x' * 300}", "too long for the name of a file; name a file or folder that"),
    ("fill", "MODEL and SENTENCE ... are missing. A run folder"),
    ("train person-search", "and --root DIR are missing. The layout of"),
    ("convert a b c", "'c' is one argument too many (maskery"),
    ("quickstart pair", "did you mean quickstart pairs?"),
    ("train txt", "did you mean text?"),
    ("evaluat runs/a", "did you mean evaluate?"),
    ("data draw-peple x", "did you mean data draw-people?"),
]


@pytest.mark.parametrize(("typed", "told"), MISTYPED)
def test_what_is_mistyped_is_one_line_with_what_may_be_meant(
    typed: str,
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MASKERY_CACHE", str(tmp_path / "cache"))
    (tmp_path / "runs").mkdir()
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main(typed.split()) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert told in err
    left = {path.name for path in tmp_path.iterdir()} - {"cache"}
    assert left == {"a.txt", "runs"}


def test_arguments_are_split_by_what_flags_take() -> None:
    sizes = {"--data": float("inf"), "--seed": 1, "--json": 0}
    words = ["runs/a", "--json", "runs/b", "--seed", "3", "-", "--data", "x", "y"]
    assert split_arguments(words, sizes) == (
        ["runs/a", "runs/b", "-"],
        {"--json": [], "--seed": ["3"], "--data": ["x", "y"]},
    )


@pytest.mark.parametrize(
    ("environment", "coloured"),
    [({}, False), ({"FORCE_COLOR": "1"}, True), ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, False)],
)
def test_headings_are_bold_where_colours_are_wanted(
    environment: dict[str, str], coloured: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    text = help_of("convert", KINDS["convert"])
    assert ("\x1b[1musage:\x1b[0m" in text) == coloured
    assert ("\x1b" in text) == coloured


@pytest.mark.parametrize(
    "arguments", [["--color", "always"], ["--color=never"], ["--color", "auto"]]
)
def test_a_flag_decides_about_colours_wherever_it_stands(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for first in (True, False):
        monkeypatch.setenv("NO_COLOR", "1")
        monkeypatch.setenv("FORCE_COLOR", "")
        with pytest.raises(SystemExit):
            main([*arguments * first, "convert", *arguments * (not first), "--help"])
        out = capsys.readouterr().out
        assert out.startswith("\x1b[1musage:" if "always" in arguments else "usage:")


def test_another_word_about_colours_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fill", "--color", "allways", "m", "x"]) == 2
    told = "--color is 'allways': it must be auto, always or never; did you mean always?"
    assert capsys.readouterr().err == f"maskery: {told}\n"


def test_alone_it_says_what_to_do_first(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    out = capsys.readouterr().out
    first, commands = out.index("try first:"), out.index("commands:")
    tried = re.findall(r"^  maskery (\w+)", out[first:commands], re.MULTILINE)
    assert tried == ["quickstart", "inspect", "train"]
