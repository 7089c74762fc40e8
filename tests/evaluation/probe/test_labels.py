"""Label files as people have them, and one line for each that cannot be read."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from maskery.cli.main import main
from maskery.core.errors import DataError
from maskery.evaluation.probe.labels import read_labelled

ROWS = [("A cat, asleep", "animal"), ("Shares fell", "money"), ("", "animal"), ("A dog", "")]


def written(folder: Path, suffix: str) -> Path:
    path = folder / f"labels{suffix}"
    if suffix == ".parquet":
        texts, labels = zip(*ROWS, strict=True)
        pq.write_table(pa.table({"text": texts, "label": labels}), path)
        return path
    lines = {
        ".jsonl": [json.dumps({"text": t, "label": label or None}) for t, label in ROWS],
        ".csv": ["text,label", *(f'"{t}",{label}' for t, label in ROWS)],
        ".tsv": ["text\tlabel", *(f"{t}\t{label}" for t, label in ROWS)],
    }[suffix.removesuffix(".gz")]
    data = ("\ufeff" + "\n".join(lines) + "\n").encode()
    path.write_bytes(gzip.compress(data) if suffix.endswith(".gz") else data)
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".tsv", ".parquet", ".jsonl.gz"])
def test_every_format_gives_the_same(tmp_path: Path, suffix: str) -> None:
    found = read_labelled(written(tmp_path, suffix))
    assert found.texts == ("A cat, asleep", "Shares fell")
    assert found.labels == ("animal", "money")
    assert found.skipped == {"without a text": 1, "without a label": 1}


def test_tsv_has_no_quoting(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text('text\tlabel\n"Well, he said\ta\nno" quote\tb\n', "utf-8")
    assert read_labelled(path).texts == ('"Well, he said', 'no" quote')


def test_other_columns_and_pairs(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"q": "Who?", "a": "Me."}\n{"q": "When?", "a": ""}\n', "utf-8")
    found = read_labelled(path, "pairs", text_column="q", label_column="a")
    assert (found.texts, found.labels) == (("Who?",), ("Me.",))
    assert found.skipped == {"without a second text": 1}


def test_words_in_columns(tmp_path: Path) -> None:
    path = tmp_path / "a.conll"
    path.write_text(
        "-DOCSTART- X O\n\n# text = Ann sings\nAnn N B-PER\nsings V O\n\nShe P O\n\n\n", "utf-8"
    )
    found = read_labelled(path, "tokens")
    assert found.words == (("Ann", "sings"), ("She",))
    assert found.tags == (("B-PER", "O"), ("O",))


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.jsonl", '{"text": "x"}', r"no column 'label' \(it has text\); .* --label-column"),
        ("a.jsonl", "[1]", "line 1 is no JSON object"),
        ("a.jsonl", "{", "line 1 is no JSON object"),
        ("a.jsonl", "[" * 100_000, "line 1 is no JSON object"),
        ("a.csv", "text,label\na,b,c", "line 2 has 3 fields, the heading has 2"),
        ("a.csv", "text,label\na,0.5\nb,1.25\nc,7.5", "numbers on a scale"),
        ("a.parquet", "nothing", "no readable Parquet"),
        ("a.xyz", "text", "of no known kind"),
    ],
)
def test_one_line_says_what_is_wrong(tmp_path: Path, name: str, text: str, said: str) -> None:
    (tmp_path / name).write_text(text, "utf-8")
    with pytest.raises(DataError, match=said) as caught:
        read_labelled(tmp_path / name)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("name", ["a.conll", "a.conllu", "a.txt", "a.tsv", "a.json", "a"])
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Ann\n", "line 1 has 1 columns, not 2 or more"),
        ("a N\nb N O\n", "line 2 has 3 columns, where the lines before it have 2"),
        ("-DOCSTART-\n\na N\n\nb\tN\tO\n", "line 5 has 3 columns"),
        ('{"tokens": ["a", "b"], "tags": ["X", "O"]}\n', "line 1 is JSON, and --kind tokens reads"),
    ],
)
def test_columns_that_do_not_agree(
    tmp_path: Path, name: str, text: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / name
    path.write_text(text, "utf-8")
    assert main(["probe", "minilm", "--labels", str(path), "--kind", "tokens"]) == 2
    told = capsys.readouterr().err
    assert f"'{path}': {said}" in told
    assert told.count("\n") == 1


def test_whole_numbers_are_classes(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\na,0\nb,1\nc,1", "utf-8")
    assert read_labelled(tmp_path / "a.csv").labels == ("0", "1", "1")
