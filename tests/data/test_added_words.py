from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_text import WORDS, lines, save_tiny_model, uncased
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForMaskedLM,
    AutoTokenizer,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from vocabularies import KINDS, make

from maskery.cli.main import main
from maskery.core.batch import vocabulary_size
from maskery.core.errors import DataError, ModelError
from maskery.data.added_words import AddedWords, add_words, read_words
from maskery.data.batching import Template
from maskery.data.corpus.sentences import Line
from maskery.data.vocabulary import SPECIAL, train_tokenizer
from maskery.models.loading import add_rows


class Text(NamedTuple):
    text: str
    id: int = 0


class Corpus:
    num_bytes = None
    bytes_read = 0

    def __iter__(self) -> Iterator[Text]:
        for line in (
            "The philosopher writes.",
            "Philosophers were writing, and wrote.",
            "我们读书",
        ):
            yield from [Text(line)] * 5

    def fingerprint(self) -> str:
        return "fixed"


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return train_tokenizer(Corpus(), uncased(120), progress=False)


def test_the_vocabulary_is_learnt_within_its_size(tokenizer: PreTrainedTokenizerBase) -> None:
    assert 60 <= len(tokenizer) <= 120
    assert sorted(tokenizer.get_vocab().values()) == list(range(len(tokenizer)))
    assert {"philosopher", "philosophers"} & set(tokenizer.get_vocab())


def test_special_tokens_have_the_first_ids_and_their_roles(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    assert tokenizer.convert_tokens_to_ids(SPECIAL) == [0, 1, 2, 3, 4]
    roles = tokenizer.special_tokens_map
    assert roles["mask_token"] == "[MASK]"
    assert roles["pad_token"] == "[PAD]"
    assert Template.of(tokenizer) == Template(prefix=(2,), suffix=(3,))


def test_text_comes_back_in_lower_case(tokenizer: PreTrainedTokenizerBase) -> None:
    ids = tokenizer("The Philosophers wrote 读")["input_ids"]
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == "the philosophers wrote 读"


def test_a_repeated_run_gets_the_same_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    for _ in range(3):
        again = train_tokenizer(Corpus(), uncased(120), progress=False)
        assert again.get_vocab() == tokenizer.get_vocab()


def test_a_large_alphabet_leaves_the_vocabulary_within_its_size() -> None:
    class Ideographs(Corpus):
        def __iter__(self) -> Iterator[Text]:
            for first in range(0x4E00, 0x4E00 + 400, 20):
                yield Text("".join(map(chr, range(first, first + 20))) + "的" * 3 + " and er")

    first, again = (train_tokenizer(Ideographs(), uncased(200), progress=False) for _ in range(2))
    assert len(first) <= 200
    assert first.get_vocab() == again.get_vocab()
    assert "的" in first.get_vocab()
    # An ideograph is a word of its own, so a piece that continues one would be wasted.
    assert "##的" not in first.get_vocab()


def test_it_is_saved_and_read_as_any_other(
    tokenizer: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("wordpiece")
    tokenizer.save_pretrained(folder)
    read = AutoTokenizer.from_pretrained(folder)
    text = "Philosophers, writing 我们"
    assert read(text)["input_ids"] == tokenizer(text)["input_ids"]


NEW = ["foxes", "Riverbank", "stone", "foxes"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def added(folder: Path) -> AddedWords:
    numbered = [Line(number, word) for number, word in enumerate(NEW, 1)]
    return add_words(AutoTokenizer.from_pretrained(folder), numbered, Path("new.txt"))


def test_new_words_are_single_tokens_after_the_old_ones(folder: Path, added: AddedWords) -> None:
    old = AutoTokenizer.from_pretrained(folder)
    size = vocabulary_size(old)
    assert added.tokenizer.tokenize("foxes riverbank, Foxes") == [
        "foxes",
        "riverbank",
        "[UNK]",
        "foxes",
    ]
    assert sorted(added.pieces) == [size, size + 1]
    assert added.known == ("stone",)
    assert added.pieces[size] == tuple(old("foxes", add_special_tokens=False)["input_ids"])
    assert added.tokenizer.all_special_ids == old.all_special_ids
    assert vocabulary_size(old) == size


@given(st.lists(st.sampled_from([*WORDS, "the", "fox", "42", "x"]), max_size=8).map(" ".join))
def test_texts_without_the_words_are_cut_as_before(
    folder: Path, added: AddedWords, text: str
) -> None:
    old = AutoTokenizer.from_pretrained(folder)
    assert added.tokenizer(text)["input_ids"] == old(text)["input_ids"]


def test_a_saved_tokenizer_keeps_them(added: AddedWords, tmp_path: Path) -> None:
    added.tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again.tokenize("the foxes") == ["the", "foxes"]
    assert again("foxes")["input_ids"] == added.tokenizer("foxes")["input_ids"]
    # In the vocabulary itself, so that nothing is searched for in every text.
    described = json.loads((tmp_path / "tokenizer.json").read_text())
    assert "foxes" in described["model"]["vocab"]
    assert "foxes" not in [token["content"] for token in described["added_tokens"]]


def test_rows_start_as_the_mean_of_their_pieces(folder: Path, added: AddedWords) -> None:
    model = AutoModelForMaskedLM.from_pretrained(folder).eval()
    with torch.no_grad():
        model.cls.predictions.bias.normal_()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    add_rows(model, added.pieces, vocabulary_size(added.tokenizer))
    after = model.state_dict()
    for name in ("bert.embeddings.word_embeddings.weight", "cls.predictions.bias"):
        old, new = before[name], after[name]
        assert torch.equal(new[: len(old)], old)
        for index, parts in added.pieces.items():
            assert torch.allclose(new[index], old[list(parts)].mean(dim=0))
    assert model.config.vocab_size == len(after["bert.embeddings.word_embeddings.weight"])
    with torch.no_grad():
        logits = model(torch.tensor([added.tokenizer("the foxes [MASK]")["input_ids"]])).logits
    assert logits.shape[-1] == vocabulary_size(added.tokenizer)
    # A tied head gives a new word the mean of its pieces' scores.
    for index, parts in added.pieces.items():
        assert torch.allclose(logits[..., index], logits[..., list(parts)].mean(-1), atol=1e-5)


def test_other_tokenizers_get_added_tokens(tmp_path: Path) -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({p: i for i, p in enumerate(["<m>", *alphabet])}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, mask_token="<m>")
    found = add_words(tokenizer, [Line(1, "fox")], Path("new.txt"))
    (index,) = found.pieces
    assert found.tokenizer("a fox")["input_ids"][-1] == index
    assert index not in found.tokenizer("a foxglove")["input_ids"]
    assert len(found.pieces[index]) == 4  # the space and three letters
    found.tokenizer.save_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path)("a fox")["input_ids"][-1] == index


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fox\ntwo words\n", r"new.txt: line 2 is 'two words'"),
        ("", "no text"),
        (b"fox\n\xff\n", "byte 4"),
    ],
)
def test_files_that_are_wrong(tmp_path: Path, text: str | bytes, message: str) -> None:
    path = tmp_path / "new.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=message):
        read_words(path)


def test_a_word_that_is_always_cut_is_named(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with pytest.raises(DataError, match=r"w.txt: line 7 is 'covid-19'.*'covid - 19'"):
        add_words(tokenizer, [Line(7, "covid-19")], Path("w.txt"))


def test_all_faults_of_a_list_are_told_at_once(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "new.txt"
    path.write_text("covid-19\nfoxes\ntwo words\nx-ray\n")
    with pytest.raises(DataError, match=r"line 1 is 'cov.*line 3 is 'two w.*line 4 is 'x-ray'"):
        read_words(path, AutoTokenizer.from_pretrained(folder))


GROWING = [kind for kind in KINDS if kind != "end of word"]
TEXTS = [
    "Rome is the capital (of France), 12 remdesigns and rem desi Vir.",
    "  The capitals of  Italy are <big>; foo barine, obarine",
    "Paris",
]


def metaspace_bpe() -> PreTrainedTokenizerBase:
    tokenizer = make("byte-level")
    backend = tokenizer.backend_tokenizer
    described = json.loads(backend.to_str().replace("Ġ", "▁"))
    described["pre_tokenizer"] = {"type": "Metaspace", "replacement": "▁"}
    described["pre_tokenizer"] |= {"prepend_scheme": "always", "split": True}
    described["decoder"] = described["pre_tokenizer"]
    roles = {name: getattr(tokenizer, name) for name in ("mask_token", "unk_token", "pad_token")}
    made = Tokenizer.from_str(json.dumps(described))
    return PreTrainedTokenizerFast(tokenizer_object=made, **roles)


@pytest.mark.parametrize("kind", [*GROWING, "metaspace bpe"])
def test_words_join_any_vocabulary_and_change_nothing_beside_them(kind: str) -> None:
    old = metaspace_bpe() if kind == "metaspace bpe" else make(kind)
    words = [Line(1, "remdesivir"), Line(2, "foobarine")]
    added = add_words(old, words, Path("new.txt"))
    new, first = added.tokenizer, vocabulary_size(old)
    assert sorted(added.pieces) == [first, first + 1]
    assert new.all_special_ids == old.all_special_ids
    for text in TEXTS:
        assert new(text)["input_ids"] == old(text)["input_ids"]
        assert new.decode(new(text)["input_ids"]) == old.decode(old(text)["input_ids"])
    text = "The remdesivir, foobarine <mask>".replace("<mask>", new.mask_token)
    ids = new(text, add_special_tokens=False)["input_ids"]
    assert [ids.index(first), ids.index(first + 1)] == [ids.index(first), ids.index(first) + 2]
    assert new.mask_token_id in ids
    before = old.decode(old(text, add_special_tokens=False)["input_ids"])
    if old.unk_token not in before and kind != "wordpiece":
        assert new.decode(ids) == before
    assert added.pieces[first] == tuple(old(" remdesivir", add_special_tokens=False)["input_ids"])


def test_ends_of_words_leave_no_room_for_new_ones() -> None:
    with pytest.raises(ModelError, match="marks the ends of words"):
        add_words(make("end of word"), [Line(1, "foobarine")], Path("new.txt"))


def test_a_run_with_added_words_saves_and_knows_them(tmp_path: Path, folder: Path) -> None:
    corpus, words, run = tmp_path / "corpus.txt", tmp_path / "words.txt", tmp_path / "run"
    corpus.write_text("\n".join(f"{line} foxes" for line in lines(60)))
    words.write_text("foxes\n")
    arguments = ["train", "text", corpus, "--model", folder, "--add-words", words, "--output", run]
    assert main([*map(str, arguments), "--epochs", "1", "--batch-tokens", "512"]) == 0
    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    assert tokenizer.tokenize("foxes") == ["foxes"]
    model = AutoModelForMaskedLM.from_pretrained(run / "model")
    assert model.config.vocab_size == vocabulary_size(tokenizer)
    assert main(["evaluate", str(run)]) == 0
    assert main(["fill", str(run), "the river [MASK]", "--words", "foxes"]) == 0
