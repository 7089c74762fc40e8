from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import huggingface_hub
import pandas
import pytest

from maskery.core.errors import DataError
from maskery.data.corpus.config import CorpusConfig
from maskery.data.corpus.examples import example_id
from maskery.data.corpus.reader import Corpus

ROWS = {"text": ["one", " two ", "", "three"], "id": [1, 2, 3, 4]}


def rows() -> Iterator[dict[str, object]]:
    for text, number in zip(ROWS["text"], ROWS["id"], strict=True):
        yield {"text": text, "id": number}


def failing_rows() -> Iterator[dict[str, object]]:
    yield {"text": "one"}
    raise ConnectionError("gone")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[Any, ...]]:
    """A hub of one dataset; returns what it was asked for."""
    asked: list[tuple[Any, ...]] = []

    def load_dataset(name: str, configuration: str | None, *, split: str, streaming: bool) -> Any:
        asked.append((name, configuration, split, streaming))
        if streaming:
            return datasets.IterableDataset.from_generator(rows)
        return datasets.Dataset.from_dict(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.chdir(tmp_path)
    return asked


@pytest.mark.parametrize("stream", [False, True])
def test_a_dataset_is_read_again_and_again(hub: list[tuple[Any, ...]], stream: bool) -> None:
    corpus = Corpus.open(["org/name:small"], CorpusConfig(split="test", stream=stream))
    assert hub == [("org/name", "small", "test", stream)]
    for _ in range(2):
        assert [(e.text, e.source) for e in corpus] == [
            ("one", "org/name:small"),
            ("two", "org/name:small"),
            ("three", "org/name:small"),
        ]
        assert corpus.report.examples == 3
        assert corpus.bytes_read == len("one two three")
    assert corpus.num_bytes is None


@pytest.mark.parametrize("stream", [False, True])
def test_columns(hub: list[tuple[Any, ...]], stream: bool) -> None:
    corpus = Corpus.open(["name"], CorpusConfig(text_column="body", stream=stream))
    with pytest.raises(DataError, match=r"^name.* has no column 'body'; there are 'text', 'id'"):
        list(corpus)
    corpus = Corpus.open(["name"], CorpusConfig(text_column="id", stream=stream))
    with pytest.raises(DataError, match=r"^name, row 1 has a value of type int in 'id'"):
        list(corpus)


def test_fingerprints(hub: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch) -> None:
    one = Corpus.open(["name"]).fingerprint()
    assert one == Corpus.open(["name"]).fingerprint()
    assert one != Corpus.open(["name"], CorpusConfig(split="test")).fingerprint()
    assert one != Corpus.open(["name:small"]).fingerprint()

    revision = "a"
    monkeypatch.setattr(
        huggingface_hub.HfApi, "dataset_info", lambda self, name: SimpleNamespace(sha=revision)
    )
    streamed = Corpus.open(["name"], CorpusConfig(stream=True))
    first = streamed.fingerprint()
    revision = "b"
    assert streamed.fingerprint() != first


def test_without_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "imdb.txt").write_text("text")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    for stream in (False, True):
        with pytest.raises(DataError) as caught:
            Corpus.open(["imdb"], CorpusConfig(stream=stream))
        message = str(caught.value)
        assert message.startswith("no file or folder is called 'imdb' (near: imdb.txt), and the ")
        assert "hub could not be reached" in message
        assert "pass a local file" in message
        assert "\n" not in message


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (datasets.exceptions.DatasetNotFoundError("x\ny"), "the hub has no such dataset"),
        (
            ValueError("Unknown split 'train'.\nmore"),
            "name cannot be read: ValueError: Unknown spl",
        ),
        (RuntimeError("Dataset scripts are no longer supported"), "scripts are no longer"),
        (TimeoutError("read timed out"), "hub could not be reached"),
        (RuntimeError(""), "cannot be read: RuntimeError"),
    ],
)
def test_what_the_hub_refuses(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception, message: str
) -> None:
    def load_dataset(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(DataError) as caught:
        Corpus.open(["name"])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_stream_that_breaks_off(hub: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        datasets,
        "load_dataset",
        lambda *args, **kwargs: datasets.IterableDataset.from_generator(failing_rows),
    )
    corpus = Corpus.open(["name"], CorpusConfig(stream=True))
    with pytest.raises(DataError, match="could not be reached"):
        list(corpus)


def stream_of_rows() -> datasets.IterableDataset:
    return datasets.IterableDataset.from_generator(rows)


@pytest.mark.parametrize(
    "data",
    [
        ["one", " two ", "", "three"],
        ("one", "two", "three"),
        [{"text": text} for text in ROWS["text"]],
        (text for text in ["one", "two", "three"]),
        datasets.Dataset.from_dict(ROWS),
        stream_of_rows(),
    ],
    ids=["list", "tuple", "records", "generator", "dataset", "stream"],
)
def test_anything_that_gives_texts_is_a_corpus(data: Any) -> None:
    corpus = Corpus.of(data)
    expected = [(text, "the data", example_id(text)) for text in ("one", "two", "three")]
    for _ in range(2):
        assert [tuple(example) for example in corpus] == expected
    assert corpus.fingerprint() == Corpus.of(["one", "two", "three"]).fingerprint()
    assert corpus.fingerprint() != Corpus.of(["one", "three", "two"]).fingerprint()
    assert corpus.num_bytes is None


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("a text", "^the data cannot be a str; pass an iterable of strings"),
        (3, "^the data cannot be a int"),
        # They give the names of their columns.
        ({"text": ["one", "two"]}, "^the data cannot be a dict; pass .*one column or split"),
        (pandas.DataFrame({"text": ["one"]}), "^the data cannot be a DataFrame"),
        (
            datasets.DatasetDict({"train": datasets.Dataset.from_dict({"text": ["a"]})}),
            "DatasetDict",
        ),
        (["one", 2], "^the data, text 2 has a value of type int in 'text', not a string; mend"),
        ([{"body": "one"}], "^the data, text 1 has no column 'text'; there is 'body'"),
        ([" "], "^the data contains no text"),
        (datasets.Dataset.from_dict({"body": ["a"]}), "^the data has no column 'text'"),
    ],
)
def test_what_gives_no_texts_is_said(data: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        list(Corpus.of(data))


def test_an_iterable_that_fails_is_one_line() -> None:
    class Failing:
        def __iter__(self) -> Iterator[str]:
            yield "one"
            raise KeyError("gone")

    with pytest.raises(DataError, match=r"text 1 cannot be read \(KeyError: 'gone'\); mend"):
        list(Corpus.of(Failing()))
