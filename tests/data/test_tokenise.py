from __future__ import annotations

import hashlib
import itertools
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from tokenizers import (
    Tokenizer,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)
from transformers import BertTokenizer, PreTrainedTokenizer, PreTrainedTokenizerFast

from maskery.core.errors import DataError
from maskery.data import tokenise as tokenise_module
from maskery.data.corpus import reader
from maskery.data.corpus.config import CorpusConfig
from maskery.data.corpus.examples import ReadingReport
from maskery.data.store import MANIFEST, TokenStore
from maskery.data.tokenise import (
    default_cache_dir,
    encode_texts,
    tokenise,
    tokenizer_fingerprint,
)

VOCABULARY = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "the",
    "man",
    "##kind",
    "is",
    "mild",
    ".",
]
TEXTS = ["the man is mild.", "mankind", "the the the", "is is man."]


class Text(NamedTuple):
    text: str
    id: int


class Corpus:
    """Some texts; counts how often it is read."""

    def __init__(self, texts: list[str]) -> None:
        self.texts = texts
        self.num_bytes: int | None = None
        self.bytes_read = 0
        self.times_read = 0
        self.report = ReadingReport()

    def __iter__(self) -> Iterator[Text]:
        self.times_read += 1
        for number, text in enumerate(self.texts):
            self.bytes_read += len(text)
            yield Text(text, 2**63 + number)

    def fingerprint(self) -> str:
        return hashlib.sha256("\0".join(self.texts).encode()).hexdigest()


def bert(**changes: object) -> BertTokenizer:
    return BertTokenizer(vocab={token: n for n, token in enumerate(VOCABULARY)}, **changes)


def documents(store: TokenStore) -> list[list[int]]:
    edges = store.boundaries.tolist()
    return [store.tokens[a:b].tolist() for a, b in itertools.pairwise(edges)]


def run(corpus: Corpus, folder: Path, tokenizer: object | None = None) -> TokenStore:
    return tokenise(corpus, tokenizer or bert(), folder, progress=False)  # type: ignore[arg-type]


def test_the_store_holds_what_the_tokenizer_says(tmp_path: Path) -> None:
    tokenizer = bert()
    store = run(Corpus(TEXTS), tmp_path, tokenizer)
    assert documents(store) == [tokenizer(t, add_special_tokens=False)["input_ids"] for t in TEXTS]
    assert store.ids.tolist() == [2**63 + n for n in range(4)]
    assert store.word_starts[5:7].tolist() == [True, False]  # man ##kind


def test_batches_of_texts_make_no_difference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(Corpus(TEXTS), tmp_path / "whole")
    monkeypatch.setattr(tokenise_module, "BATCH_TEXTS", 3)
    monkeypatch.setattr(tokenise_module, "BATCH_CHARS", 10)
    parts = run(Corpus(TEXTS), tmp_path / "parts")
    assert documents(parts) == documents(whole)
    assert parts.ids.tolist() == whole.ids.tolist()
    assert parts.word_starts.tolist() == whole.word_starts.tolist()


def test_texts_without_tokens_are_no_documents(tmp_path: Path) -> None:
    store = run(Corpus(["the", "\u200d", "man"]), tmp_path)
    assert documents(store) == [[5], [6]]
    assert store.ids.tolist() == [2**63, 2**63 + 2]


def test_a_second_run_reads_the_store(tmp_path: Path) -> None:
    corpus = Corpus(TEXTS)
    first = run(corpus, tmp_path)
    second = run(corpus, tmp_path)
    assert corpus.times_read == 1
    assert second.folder == first.folder
    assert documents(second) == documents(first)


def test_what_reading_came_upon_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """For every corpus: of training, to measure on, of another run."""
    (tmp_path / "a.txt").write_text("the man is mild.\n", "utf-16")
    (tmp_path / "b.jsonl").write_text('{"text": "mankind"}\n{"text": " "}\n')
    corpus = reader.Corpus.open([str(tmp_path)], CorpusConfig(encoding="auto"))
    tokenise(corpus, bert(), tmp_path / "cache", progress=False)
    (record,) = caplog.records
    assert record.message == ("left out 1 empty text; --encoding auto: 1 as utf-16-le, 1 as utf-8")


def test_another_corpus_or_tokenizer_has_another_store(tmp_path: Path) -> None:
    folders = {
        run(Corpus(TEXTS), tmp_path).folder,
        run(Corpus(TEXTS[:-1]), tmp_path).folder,
        run(Corpus(TEXTS), tmp_path, bert(do_lower_case=False)).folder,
    }
    assert len(folders) == 3
    assert len(list((tmp_path / "tokens").iterdir())) == 3


@pytest.mark.parametrize("damage", ["tokens.bin", MANIFEST])
def test_a_damaged_store_is_made_again_with_a_warning(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    corpus = Corpus(TEXTS)
    store = run(corpus, tmp_path)
    before = documents(store)
    data = bytearray((store.folder / damage).read_bytes())
    data[3] ^= 0xFF
    (store.folder / damage).write_bytes(bytes(data))
    with caplog.at_level(logging.WARNING):
        again = run(corpus, tmp_path)
    assert corpus.times_read == 2
    assert documents(again) == before
    assert ["tokenising again" in record.message for record in caplog.records] == [True]
    caplog.clear()
    run(corpus, tmp_path)
    assert corpus.times_read == 2
    assert not caplog.records


def test_truncation_and_padding_saved_with_a_tokenizer_do_not_count(tmp_path: Path) -> None:
    tokenizer = bert()
    plain = run(Corpus(TEXTS), tmp_path / "a", tokenizer)
    tokenizer.backend_tokenizer.enable_truncation(2)
    tokenizer.backend_tokenizer.enable_padding(length=4)
    tokenizer.save_pretrained(tmp_path / "saved")
    assert '"max_length": 2' in (tmp_path / "saved" / "tokenizer.json").read_text()
    saved = PreTrainedTokenizerFast.from_pretrained(tmp_path / "saved")
    cut = run(Corpus(TEXTS), tmp_path / "b", saved)
    assert documents(cut) == documents(plain)
    # The tokenizer is the caller's: its own settings stay.
    assert saved.backend_tokenizer.truncation is not None
    assert tokenizer_fingerprint(saved) == tokenizer_fingerprint(bert())


def test_a_corpus_without_tokens_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    for texts in ([], ["\u200d"]):
        with pytest.raises(DataError, match=r"holds no tokens"):
            run(Corpus(texts), tmp_path)
    assert list((tmp_path / "tokens").iterdir()) == []


def test_ids_past_the_number_of_tokens_fit(tmp_path: Path) -> None:
    backend = Tokenizer(models.WordLevel({"[UNK]": 0, "far": 70_000}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")
    assert documents(run(Corpus(["far x"]), tmp_path, fast)) == [[70_000, 0]]


class Letters(PreTrainedTokenizer):
    """A tokenizer in Python: every letter is a token."""

    def __init__(self, *, shift: int = 0, **settings: object) -> None:
        self.shift = shift
        super().__init__(shift=shift, **settings)

    @property
    def vocab_size(self) -> int:
        return 200

    def get_vocab(self) -> dict[str, int]:
        return {chr(n): n for n in range(200)}

    def _tokenize(self, text: str, **_: object) -> list[str]:
        return list(text)

    def _convert_token_to_id(self, token: str) -> int:
        return (ord(token) + self.shift) % 200

    def _convert_id_to_token(self, index: int) -> str:
        return chr(index)


def test_a_tokenizer_in_python_counts_every_token_as_a_word(tmp_path: Path) -> None:
    ids, starts, lengths = encode_texts(["abc", "", "de"], Letters())
    assert ids.tolist() == [97, 98, 99, 100, 101]
    assert starts.all()
    assert lengths.tolist() == [3, 0, 2]
    plain, shifted = (run(Corpus(["ab"]), tmp_path, Letters(shift=shift)) for shift in (0, 1))
    assert (documents(plain), documents(shifted)) == ([[97, 98]], [[98, 99]])


def test_special_tokens_are_left_to_the_batch() -> None:
    backend = Tokenizer(models.WordLevel({"[UNK]": 0, "<s>": 1, "a": 2}, unk_token="[UNK]"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")
    ids, _, lengths = encode_texts(["a b"], fast)
    assert (ids.tolist(), lengths.tolist()) == ([2, 0], [2])


def test_the_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MASKERY_CACHE", str(tmp_path / "own"))
    assert default_cache_dir() == tmp_path / "own"
    monkeypatch.delenv("MASKERY_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / "maskery"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_cache_dir() == Path.home() / ".cache" / "maskery"


def test_no_texts() -> None:
    ids, starts, lengths = encode_texts([], bert())
    assert (len(ids), len(starts), len(lengths)) == (0, 0, 0)
    assert ids.dtype == np.int64
