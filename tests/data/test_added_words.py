"""Words that become single tokens: the text around them, their exact rows, and wrong files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_text import WORDS, lines, save_tiny_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForMaskedLM, AutoTokenizer, PreTrainedTokenizerFast

from maskery.cli.main import main
from maskery.core.errors import DataError
from maskery.core.vocabulary import vocabulary_size
from maskery.data.added_words import AddedWords, add_words, read_words
from maskery.data.sentences import Line
from maskery.models.loading import add_rows

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
