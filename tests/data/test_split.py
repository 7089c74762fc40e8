"""No copy of a held-out text is trained on, however it is written."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from datasets import Dataset
from tiny_text import lines, save_tiny_model

from maskery.core.errors import DataError
from maskery.data.corpus.config import CorpusConfig
from maskery.data.corpus.examples import is_held_out
from maskery.data.corpus.reader import Corpus
from maskery.data.split import sample, split, split_by_value, without_held_out
from maskery.data.store import TokenStore
from maskery.data.tokenise import tokenise
from maskery.models.loading import load_tokenizer

EDITS = {
    "spaces": lambda text: text.replace(" ", "  "),
    "case": str.upper,
    "form": lambda text: unicodedata.normalize("NFD", text),
    "end": lambda text: f"{text}!!",
}


def stored(folder: Path, texts: list[str], name: str = "corpus") -> TokenStore:
    path = folder / f"{name}.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts), "utf-8")
    tokenizer = load_tokenizer(str(folder / "model"))
    return tokenise(Corpus.open([str(path)], CorpusConfig()), tokenizer, folder / "cache")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_tiny_model(tmp_path / "model")
    return tmp_path


@pytest.mark.parametrize("edit", EDITS)
def test_no_copy_stands_on_the_other_side(folder: Path, edit: str) -> None:
    texts = [f"{line} café" for line in lines(60)]
    store = stored(folder, [*texts, *map(EDITS[edit], texts)])
    train, held = split(store, load_tokenizer(str(folder / "model")), 0.3)
    assert len(train) + len(held) == store.num_documents
    assert 10 < len(held) < 80
    assert {n % 60 for n in held}.isdisjoint(n % 60 for n in train)


def test_without_copies_each_document_goes_by_its_own_hash(folder: Path) -> None:
    generator = np.random.default_rng(0)
    vocabulary = [word for line in lines(200) for word in line.split()]
    texts = [" ".join(generator.choice(vocabulary, 12)) for _ in range(80)]
    store = stored(folder, texts)
    _, held = split(store, load_tokenizer(str(folder / "model")), 0.2)
    expected = np.flatnonzero(is_held_out(np.asarray(store.ids), 0.2))
    assert set(expected.tolist()) == set(held.tolist())


def test_held_out_text_of_its_own_loses_training_copies(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    texts = lines(20)
    tokenizer = load_tokenizer(str(folder / "model"))
    store = stored(folder, ["walk beside the quiet river today, said nobody", texts[0].upper()])
    kept = without_held_out(
        store, np.arange(store.num_documents), [stored(folder, texts, "held")], tokenizer
    )
    assert kept.tolist() == [0]
    assert "1 examples also stand in --eval-data" in caplog.text


def test_one_text_in_many_forms_cannot_be_split(folder: Path) -> None:
    text = lines(1)[0]
    store = stored(folder, [text, text.upper(), f" {text} "])
    with pytest.raises(DataError, match="1 distinct example"):
        split(store, load_tokenizer(str(folder / "model")), 0.5)


def rows_of_patients(num: int = 120, patients: int = 30) -> list[dict[str, object]]:
    """Texts without near-copies, four of each patient."""
    generator = np.random.default_rng(0)
    words = sorted({word for line in lines(200) for word in line.split()})
    texts = [" ".join(generator.choice(words, 12)) for _ in range(num)]
    return [
        {"note": {"body": text, "by": {"patient": n % patients}}, "text": text}
        for n, text in enumerate(texts)
    ]


def corpus_in(folder: Path, kind: str, rows: list[dict[str, object]]) -> tuple[Corpus, str]:
    """A corpus of rows in a format, and the name of its column of patients."""
    path, flat = folder / f"notes.{kind}", [row["note"]["by"]["patient"] for row in rows]
    if kind in ("csv", "tsv"):
        between = "," if kind == "csv" else "\t"
        cells = [
            ["patient", "text"],
            *([p, row["text"]] for p, row in zip(flat, rows, strict=True)),
        ]
        path.write_text("\n".join(between.join(map(str, row)) for row in cells), "utf-8")
        return Corpus.open([str(path)], CorpusConfig()), "patient"
    if kind == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif kind == "json":
        path.write_text(json.dumps(rows), "utf-8")
    elif kind == "jsonl":
        path.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    config = CorpusConfig(text_column="note.body")
    if kind == "rows":
        return Corpus.of(rows, config), "note.by.patient"
    if kind == "dataset":
        return Corpus.of(Dataset.from_list(rows), config), "note.by.patient"
    return Corpus.open([str(path)], config), "note.by.patient"


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "tsv", "parquet", "rows", "dataset"])
def test_rows_of_one_value_stand_on_one_side(folder: Path, kind: str) -> None:
    rows = rows_of_patients()
    corpus, column = corpus_in(folder, kind, rows)
    tokenizer = load_tokenizer(str(folder / "model"))
    store = tokenise(corpus, tokenizer, folder / "cache")
    together = list(corpus.groups(column))
    assert [name for _, name in together] == [str(n % 30) for n in range(120)]
    train, held = split_by_value(store, tokenizer, 0.3, together)
    assert len(train) + len(held) == 120
    assert {n % 30 for n in held}.isdisjoint(n % 30 for n in train)
    assert 3 <= len({n % 30 for n in held}) <= 18


def test_what_has_a_copy_on_the_other_side_is_left_out(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Notes of many patients are alike: those of a held-out one are not trained on."""
    rows = [{"text": row["text"], "patient": n % 30} for n, row in enumerate(rows_of_patients())]
    common = [{"text": f"{'  ' * n}Nothing was found here.", "patient": n} for n in range(30)]
    same = [{"text": rows[0]["text"], "patient": n} for n in range(1, 30)]
    corpus = Corpus.of([*rows, *common, *same], CorpusConfig())
    tokenizer = load_tokenizer(str(folder / "model"))
    store = tokenise(corpus, tokenizer, folder / "cache")
    together = list(corpus.groups("patient"))
    train, held = split_by_value(store, tokenizer, 0.3, together)
    assert {together[n][1] for n in held}.isdisjoint(together[n][1] for n in train)
    # Texts of many values stand on neither side.
    assert set(held.tolist()) | set(train.tolist()) == set(range(1, 120))
    assert "60 examples have copies in held-out groups and are left out" in caplog.text


def test_one_value_is_nothing_to_split_by(folder: Path) -> None:
    rows = [{"text": row["text"], "patient": "a"} for row in rows_of_patients()]
    corpus = Corpus.of(rows, CorpusConfig())
    tokenizer = load_tokenizer(str(folder / "model"))
    store = tokenise(corpus, tokenizer, folder / "cache")
    together = list(corpus.groups("patient"))
    with pytest.raises(DataError, match="--group-column has 1 value"):
        split_by_value(store, tokenizer, 0.3, together)


def test_rows_without_a_value_are_counted_in_one_line(folder: Path) -> None:
    rows: list[dict[str, object]] = [
        {"text": text, "patient": value}
        for text, value in zip(lines(6), ["a", None, "", "  ", float("nan"), 0], strict=True)
    ]
    told = "--group-column patient is empty for 4 of 6 examples"
    with pytest.raises(DataError, match=told):
        list(Corpus.of(rows, CorpusConfig()).groups("patient"))
    with pytest.raises(DataError, match=r"no column 'doctor'; .*name one by --group-column"):
        list(Corpus.of(rows, CorpusConfig()).groups("doctor"))
    path = folder / "plain.txt"
    path.write_text("\n".join(lines(6)), "utf-8")
    with pytest.raises(DataError, match=r"plain\.txt is plain text, which has no columns"):
        list(Corpus.open([str(path)], CorpusConfig()).groups("patient"))


def test_a_sample_follows_from_the_texts_alone(folder: Path) -> None:
    texts = [str(row["text"]) for row in rows_of_patients(200)]
    stores = [stored(folder, texts), stored(folder, texts[::-1], "reversed")]
    chosen = [sample(store, np.arange(200), 600) for store in stores]
    ids = [set(np.asarray(s.ids)[c].tolist()) for s, c in zip(stores, chosen, strict=True)]
    assert ids[0] == ids[1]
    assert 540 < stores[0].lengths()[chosen[0]].sum() <= 600
    assert set(sample(stores[0], np.arange(200), 300).tolist()) < set(chosen[0].tolist())
    assert sample(stores[0], np.arange(200), 10**9).tolist() == list(range(200))
    assert len(sample(stores[0], np.arange(200), 1)) == 1
    # Of what the split has held out, any half may be chosen.
    _, held = split(stores[0], load_tokenizer(str(folder / "model")), 0.5)
    half = sample(stores[0], held, int(stores[0].lengths()[held].sum()) // 2)
    low = is_held_out(np.asarray(stores[0].ids)[half], 0.25).mean()
    assert 0.3 < low < 0.7


@pytest.mark.parametrize("name", ["notes.jsonl", "notes.txt"])
def test_pieces_of_one_text_stand_on_one_side(folder: Path, name: str) -> None:
    generator = np.random.default_rng(1)
    vocabulary = [word for line in lines(200) for word in line.split()]
    texts = [" ".join(generator.choice(vocabulary, 60)) for _ in range(40)]
    as_json = name.endswith("jsonl")
    written = [json.dumps({"text": text}) if as_json else text for text in texts]
    (folder / name).write_text("\n".join(written), "utf-8")
    corpus = Corpus.open([str(folder / name)], CorpusConfig(max_example_chars=90))
    tokenizer = load_tokenizer(str(folder / "model"))
    store = tokenise(corpus, tokenizer, folder / "cache")
    text_of = [next(n for n, text in enumerate(texts) if one.text in text) for one in corpus]
    assert len(text_of) == store.num_documents > 120
    train, held = split(store, tokenizer, 0.3)
    assert {text_of[n] for n in held}.isdisjoint(text_of[n] for n in train)
    assert 4 < len({text_of[n] for n in held}) < 36
    assert len(set(store.ids.tolist())) == store.num_documents
    # Shards, which are not compared with one another, go by the ids alone.
    by_id = is_held_out(np.asarray(store.ids), 0.3)
    assert len({(text_of[n], bool(by_id[n])) for n in range(len(text_of))}) == 40
