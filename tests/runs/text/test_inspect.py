"""Figures counted by hand on a small corpus, and the command as typed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_text import save_tiny_model
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM, BertTokenizer
from vocabularies import make

from maskery.cli.main import main
from maskery.data.added_words import add_words, read_words
from maskery.runs.text.config import TextRunConfig
from maskery.runs.text.inspect import describe_lengths, inspect_corpus
from maskery.training.config import TrainingConfig

LINES = [
    *["river stone foxes"] * 1,
    "river stone",
    "river stone",  # a duplicate
    "ember foxes foxes harbours",
    "cloud λόγος",
    " ".join(["meadow"] * 70),  # exceeds the 32 positions twice
    *[f"signal lantern {number}" for number in range(20)],
]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> TextRunConfig:
    folder = tmp_path_factory.mktemp("inspect")
    corpus = folder / "corpus.txt"
    corpus.write_text("\n".join(LINES))
    return TextRunConfig(
        corpus=(str(corpus),),
        model=str(save_tiny_model(folder / "model")),
        cache_dir=folder / "cache",
        held_out_share=0.2,
        training=TrainingConfig(batch_tokens=64, epochs=2),
    )


def test_what_is_counted_is_what_is_there(config: TextRunConfig) -> None:
    found = inspect_corpus(config, timed_steps=0, progress=False)
    tokenizer = AutoTokenizer.from_pretrained(config.model)
    pieces = [len(tokenizer.tokenize(line)) for line in LINES]
    assert found.lengths.examples == len(LINES)
    assert found.lengths.tokens == sum(pieces)
    assert found.lengths.longest == 70
    assert sum(count for _, count in found.lengths.histogram) == len(LINES)
    assert found.duplicates == 1
    assert (found.unknown_tokens, found.unknown) == (1, (("λόγος", 1),))
    words = {word.word: (word.pieces, word.count, word.saved) for word in found.broken}
    assert words["foxes"] == (5, 3, 12)
    assert found.broken[0].word == "foxes"
    assert found.broken_share > 0
    assert found.batches.cut == 1
    assert found.batches.truncated_tokens == 72 - 32
    assert found.batches.real_share["this run"] == 1.0
    assert 0 < found.batches.real_share["everything padded to max_length"] < 0.5
    assert found.estimate is None


def test_candidates_are_written_as_the_texts_spell_them(
    config: TextRunConfig, tmp_path: Path
) -> None:
    folder, corpus = tmp_path / "model", tmp_path / "corpus.txt"
    letters = "abcdefghijklmnopqrstuvwxyz"
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{x}" for x in letters)]
    save_tiny_model(folder)
    # It reads German without case and accents.
    tokenizer = BertTokenizer(vocab={piece: i for i, piece in enumerate(pieces)})
    tokenizer.save_pretrained(folder)
    texts = [f"eine Größe wie die Übung Nr {x}{y}" for x in letters for y in "ab"]
    corpus.write_text("\n".join(text.replace("ß", "ss") for text in texts))
    held_out, out = tmp_path / "held.txt", tmp_path / "words.txt"
    held_out.write_text("ganz und gar anderes\n")
    arguments = ["inspect", str(corpus), "--model", str(folder), "--timed-steps", "0"]
    arguments += ["--eval-data", str(held_out)]
    assert main([*arguments, "--words", "2", "--words-out", str(out)]) == 0
    assert out.read_text() == "Grösse\nÜbung\n"
    # The list is one that training takes.
    assert len(add_words(tokenizer, read_words(out, tokenizer), out).pieces) == 2
    assert main([*arguments, "--words-out", str(tmp_path / "none" / "words.txt")]) == 2


def test_steps_and_masks_are_those_of_the_run(config: TextRunConfig) -> None:
    from maskery.runs.text.prepare import TextRun

    found = inspect_corpus(config, timed_steps=0, progress=False)
    run = TextRun(config, progress=False)
    assert found.batches.steps == sum(run.train.num_steps(epoch) for epoch in range(2))
    assert found.batches.masked_tokens == pytest.approx(0.15 * found.batches.tokens, rel=0.6)
    fewer = replace(config, training=replace(config.training, max_steps=1))
    assert inspect_corpus(fewer, timed_steps=0, progress=False).batches.steps == 1


def test_the_padded_layout_wastes_what_it_pads(config: TextRunConfig) -> None:
    padded = replace(config, layout="padded")
    share = inspect_corpus(padded, timed_steps=0, progress=False).batches.real_share
    assert share["everything padded to max_length"] <= share["this run"] < 1.0


def test_an_estimate_comes_from_steps_that_were_taken(config: TextRunConfig) -> None:
    estimate = inspect_corpus(config, timed_steps=2, progress=False).estimate
    assert estimate is not None
    assert estimate.timed_steps == 2
    assert estimate.tokens_per_second > 0
    assert estimate.seconds > estimate.evaluation_seconds > 0
    assert estimate.evaluations >= 2
    assert estimate.peak_megabytes > 10


def test_buckets_hold_what_their_bounds_say() -> None:
    import numpy as np

    found = describe_lengths(np.array([1, 8, 9, 16, 17, 3000]))
    assert [count for _, count in found.histogram][:3] == [2, 2, 1]
    assert found.histogram[-1] == (None, 1)


def test_the_command_prints_for_people_and_as_json(
    config: TextRunConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["inspect", config.corpus[0], "--model", config.model, "--batch-tokens", "64"]
    arguments += ["--cache-dir", str(config.cache_dir), "--held-out-share", "0.2"]
    assert main([*arguments, "--timed-steps", "1"]) == 0
    printed = capsys.readouterr().out
    for said in ("26 examples", "foxes", "λόγος", "tokens/s", "packed"):
        assert said in printed
    assert main([*arguments, "--json", "--timed-steps", "0"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["broken"][0]["word"] == "foxes"
    assert found["estimate"] is None
    assert main(["inspect", config.corpus[0], "--words", "-1"]) == 2


def test_a_word_with_and_without_a_space_is_one(tmp_path: Path) -> None:
    """A byte-level vocabulary writes it with other pieces at the start of a text."""
    tokenizer = make("byte-level")
    tokenizer.save_pretrained(tmp_path / "model")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    shape = BertConfig(vocab_size=len(tokenizer), intermediate_size=16, **sizes)
    BertForMaskedLM(shape).save_pretrained(tmp_path / "model")
    corpus, out = tmp_path / "corpus.txt", tmp_path / "words.txt"
    corpus.write_text("".join(f"Füchse {n} Füchse, ({n}) the Füchse\n" for n in range(40)))
    command = ["inspect", str(corpus), "--model", str(tmp_path / "model"), "--timed-steps", "0"]
    assert main([*command, "--words-out", str(out)]) == 0
    assert out.read_text().split() == ["Füchse"]
