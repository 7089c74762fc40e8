"""No copy of a held-out text is trained on, however it is written."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from tiny_text import lines, save_tiny_model

from maskery.core.errors import DataError
from maskery.data.corpus.config import CorpusConfig
from maskery.data.corpus.examples import is_held_out
from maskery.data.corpus.reader import Corpus
from maskery.data.split import split, without_held_out
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
    kept = without_held_out(store, stored(folder, texts, "held"), tokenizer)
    assert kept.tolist() == [0]
    assert "1 examples also stand in --eval-data" in caplog.text


def test_one_text_in_many_forms_cannot_be_split(folder: Path) -> None:
    text = lines(1)[0]
    store = stored(folder, [text, text.upper(), f" {text} "])
    with pytest.raises(DataError, match="1 distinct example"):
        split(store, load_tokenizer(str(folder / "model")), 0.5)
