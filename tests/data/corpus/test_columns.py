"""Columns inside records, and several columns joined, in every format that has columns."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from maskery.core.errors import DataError
from maskery.data.corpus.config import CorpusConfig
from maskery.data.corpus.reader import Corpus

Write = Callable[[str, str | bytes], Path]
ROWS: list[dict[str, Any]] = [
    {"title": "One", "body": "first", "note": {"body": "inner", "deep": {"er": "inmost"}}},
    {"title": None, "body": "second", "note": {"body": "in", "deep": {"er": "most"}}},
    {"title": " ", "body": "third", "note": {"body": "", "deep": {"er": "m"}}},
]


def opened(form: str, tmp_path: Path, config: CorpusConfig, rows: list[dict[str, Any]]) -> Corpus:
    path = tmp_path / f"a.{form}"
    if form == "jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    elif form == "json":
        path.write_text(json.dumps(rows))
    elif form == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif form == "dataset":
        return Corpus.of(datasets.Dataset.from_list(rows), config)
    else:
        return Corpus.of(rows, config)
    return Corpus.open([str(path)], config)


@pytest.mark.parametrize("form", ["jsonl", "json", "parquet", "dataset", "rows"])
@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"text_column": "note.body"}, ["inner", "in"]),
        ({"text_column": "note.deep.er"}, ["inmost", "most", "m"]),
        ({"text_column": "title,body"}, ["One\nfirst", "second", "third"]),
        (
            {"text_column": "body,note.body", "join": r" \t"},
            ["first \tinner", "second \tin", "third"],
        ),
    ],
)
def test_columns(form: str, tmp_path: Path, settings: dict[str, str], expected: list[str]) -> None:
    corpus = opened(form, tmp_path, CorpusConfig(**settings), ROWS)  # type: ignore[arg-type]
    assert [example.text for example in corpus] == expected
    assert corpus.report.empty == len(ROWS) - len(expected)


@pytest.mark.parametrize("form", ["jsonl", "json", "parquet", "dataset", "rows"])
@pytest.mark.parametrize("column", ["note.other", "title,other", "other.body"])
def test_missing_columns(form: str, tmp_path: Path, column: str) -> None:
    corpus = opened(form, tmp_path, CorpusConfig(text_column=column), ROWS[:1])
    with pytest.raises(DataError, match=rf"no column '{column}'; there .*'note'"):
        list(corpus)


@pytest.mark.parametrize("form", ["jsonl", "json", "parquet", "dataset", "rows"])
def test_no_path_leads_through_a_list(form: str, tmp_path: Path) -> None:
    rows = [{"note": [{"body": "one"}]}, {"note": [{"body": "two"}]}]
    corpus = opened(form, tmp_path, CorpusConfig(text_column="note.body"), rows)
    with pytest.raises(DataError, match=r"a value of type list in 'note\.body', not a string"):
        list(corpus)


def test_a_name_with_a_point_or_comma_is_taken_as_it_is(tmp_path: Path) -> None:
    rows = [{"a.b": "point", "c,d": "comma"}]
    for column, text in rows[0].items():
        corpus = opened("jsonl", tmp_path, CorpusConfig(text_column=column), rows)
        assert [example.text for example in corpus] == [text]


def test_values_that_are_no_strings(tmp_path: Path) -> None:
    rows = [{"a": "x", "b": 1}, {"a": None, "b": None}]
    for chosen, kind in ((rows[:1], "int"), (rows[1:], "null")):
        corpus = opened("jsonl", tmp_path, CorpusConfig(text_column="a,b"), chosen)
        with pytest.raises(DataError, match=f"has a value of type {kind} in 'a,b'"):
            list(corpus)


def test_columns_of_csv_are_joined(write: Write) -> None:
    path = write("a.csv", "title;body;n\nOne;first;1\n;second;2\n;;3\n")
    corpus = Corpus.open([str(path)], CorpusConfig(text_column="title,body", join=": "))
    assert [example.text for example in corpus] == ["One: first", "second"]
    assert corpus.report.describe() == "left out 1 empty text"
    with pytest.raises(DataError, match="no column 'title,other'"):
        list(Corpus.open([str(path)], CorpusConfig(text_column="title,other")))


def test_fingerprints_follow_the_join(write: Write) -> None:
    path = write("a.csv", "a,b\nx,y\n")
    one, other = (CorpusConfig(text_column="a,b", join=join) for join in (" ", "-"))
    corpora = [Corpus.open([str(path)], config).fingerprint() for config in (one, other)]
    assert len(set(corpora)) == 2
