"""`maskery score` as typed."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from tiny_text import save_tiny_model

from maskery.cli.main import main
from maskery.evaluation.text.pseudo_likelihood import score as score_sentences


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "sentences.txt"
    path.write_text("the river stone\n\nlanterns thunder\n")
    return path


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    assert main(["score", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def test_json_holds_what_the_library_says(
    model: Path, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = json.loads(run(capsys, model, file, "--json", "--words"))
    scores = score_sentences(model, ["the river stone", "lanterns thunder"])
    assert [row["line"] for row in printed] == [1, 3]
    for row, score in zip(printed, scores, strict=True):
        assert row["log_probability"] == pytest.approx(score.log_probability, abs=1e-5)
        assert row["per_token"] == pytest.approx(score.per_token, abs=1e-5)
        assert [word["word"] for word in row["words"]] == [word.word for word in score.words]


def test_tsv_and_table_show_the_same(
    model: Path, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = list(csv.DictReader(io.StringIO(run(capsys, model, file, "--tsv")), delimiter="\t"))
    printed = run(capsys, model, file)
    for row in rows:
        assert f"{float(row['log_probability']):.3f}" in printed
        assert row["text"] in printed
    assert "2 sentences" in printed
    words = run(capsys, model, file, "--tsv", "--words").splitlines()
    assert [line.split("\t")[:2] for line in words[1:]] == [
        ["1", "the"],
        ["1", "river"],
        ["1", "stone"],
        ["3", "lanterns"],
        ["3", "thunder"],
    ]


def test_words_that_the_tokenizer_does_not_know_are_named(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "greek.txt"
    path.write_text("the river λόγος\n")
    assert main(["score", str(model), str(path)]) == 0
    assert "[UNK]: 1 word: λόγος" in (err := capsys.readouterr().err)
    assert "λόγος" in err


def test_pairs_tell_which_sentence_is_likelier(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "pairs.tsv"
    path.write_text("the river\tstone cloud\nstone cloud\tthe river\nember\tember\n")
    printed = json.loads(run(capsys, model, path, "--pairs", "--json"))
    first, second, tie = printed["pairs"]
    assert first["difference"] == pytest.approx(-second["difference"], abs=1e-4)
    assert {first["likelier"], second["likelier"]} == {"first", "second"}
    assert (tie["likelier"], tie["difference"]) == ("tie", 0.0)
    assert printed["accuracy"] == 0.5  # one of two, and a tie that counts half of one
    table = run(capsys, model, path, "--pairs")
    assert "1.5 of 3 pairs" in table


@pytest.mark.parametrize(
    ("text", "flags", "message"),
    [
        ("the [MASK] stone", [], "line 1 has a [MASK]"),
        ("river\n" + "stone " * 50, [], "line 2"),
        ("no tab", ["--pairs"], "line 1 has 1 sentence"),
        ("a\tb", ["--pairs", "--words"], "leave out --words"),
        ("river", ["--json", "--tsv"], "choose one"),
        ("river", ["--image", "x.png"], "reads text alone"),
        ("river", ["--batch-tokens", "2"], "at least 8"),
        # No flag of another command.
        ("a\0b", [], "in UTF-16 (pass --encoding utf-16-le or utf-16-be)\n"),
        ("river", ["--encoding", "nope"], "--encoding is 'nope': it must be a text encoding"),
    ],
)
def test_bad_input_is_one_line(
    model: Path,
    tmp_path: Path,
    text: str,
    flags: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "bad.txt"
    path.write_text(text + "\n")
    assert main(["score", str(model), str(path), *flags]) == 2
    out, err = capsys.readouterr()
    assert message in err
    assert err.strip().count("\n") == 0
    assert out == ""
