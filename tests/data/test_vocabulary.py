from __future__ import annotations

import random
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, BertConfig, PreTrainedTokenizerBase

from maskery.cli.main import main
from maskery.core.batch import Vocabulary
from maskery.core.errors import ConfigError
from maskery.data.corpus.config import VocabularyConfig
from maskery.data.corpus.reader import Corpus
from maskery.data.vocabulary import learnt_tokenizer, train_tokenizer
from maskery.runs.frame.config_file import load_config, save_config
from maskery.runs.text.config import TextRunConfig

KINDS = ("wordpiece", "bpe", "unigram")
LINES = {
    "hindi": "भारत में हिंदी बोली जाती है। क्या आप मुझे ‘क़लम’ दे सकते हैं?",
    "vietnamese": "Tiếng Việt có nhiều dấu thanh, ví dụ: \"đường phố\" và 'nước mắm'.",
    "german": "In Straßen (groß) fährt Jörg-Peter für 3,50 Euro um 10:30 Uhr; „schön“, sagt er.",
    "japanese": "私は東京でPythonと日本語を勉強しています。2024年に「本」を読みました!",
    "turkish": "İstanbul'da ışık, çiçek, ğ ve ü; Iğdır'a gidiyorum.",
    "hebrew": "בְּרֵאשִׁית בָּרָא אֱלֹהִים אֵת־הַשָּׁמַיִם וְאֵת הָאָרֶץ׃",
    "emoji": "Family 👩‍👩‍👧‍👦 and ❤️ and 1️⃣ and #️⃣ of 🇩🇪 👍🏽 🏴󠁧󠁢󠁳󠁣󠁴󠁿 now",
    "guillemets": "»Guten Tag«, «oui» et «non»; »ja« (5%).",
    "percent": "Fiyatı %20 düştü, rẻ hơn 20%: %5 ve 1.250,75 TL.",
    "english": "He said: \"It's [here], isn't it?\" and/or (not).",
}


def learnt(texts: list[str], **settings: Any) -> PreTrainedTokenizerBase:
    config = VocabularyConfig(**{"vocab_size": 700, **settings})
    return train_tokenizer(Corpus.of(texts), config, progress=False)


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> PreTrainedTokenizerBase:
    """As it is read from the folder of a model."""
    folder = tmp_path_factory.mktemp(request.param)
    learnt(list(LINES.values()) * 3, tokenizer=request.param).save_pretrained(folder)
    BertConfig(architectures=["BertForMaskedLM"]).save_pretrained(folder)
    read: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
    return read


def around(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    return str(tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True))


@pytest.mark.parametrize("line", LINES.values(), ids=LINES)
def test_text_comes_back(tokenizer: PreTrainedTokenizerBase, line: str) -> None:
    assert around(tokenizer, line) == unicodedata.normalize("NFC", line)
    decomposed = unicodedata.normalize("NFD", line)
    assert around(tokenizer, decomposed) == unicodedata.normalize("NFC", line)


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_other_kinds_know_any_character_and_every_space(kind: str) -> None:
    tokenizer = learnt(["some plain words"] * 4, tokenizer=kind)
    text = "unseen ☃, 龍 and\tꙮ;  two  spaces"
    assert tokenizer.unk_token_id not in tokenizer(text)["input_ids"]
    assert around(tokenizer, text) == text


@pytest.mark.parametrize("kind", KINDS)
def test_words_of_any_length_are_cut(kind: str) -> None:
    dna = "".join("ACGT"[(7 * n + n // 5) % 4] for n in range(3_000))
    tokenizer = learnt([dna[:400], dna[300:900]], tokenizer=kind, vocab_size=300)
    ids = tokenizer(dna)["input_ids"]
    assert tokenizer.unk_token_id not in ids
    assert around(tokenizer, dna).replace(" ", "") == dna


def test_a_large_alphabet_is_left_to_bytes() -> None:
    texts = [chr(first) * 2 + " of" for first in range(0x4E00, 0x5200)]
    tokenizer = learnt(texts, tokenizer="unigram", vocab_size=300)
    assert len(tokenizer) <= 300
    assert around(tokenizer, texts[-1]) == texts[-1]


def test_roles_and_the_space_before_a_mask(tokenizer: PreTrainedTokenizerBase) -> None:
    vocabulary = Vocabulary.of(tokenizer)
    assert vocabulary.special_ids == (0, 1, 2, 3, 4)
    pieces = tokenizer.tokenize("words [MASK] and")
    place = next(n for n, piece in enumerate(pieces) if "[MASK]" in piece)
    # A masked word has its space within where words have.
    assert pieces[place - 1] not in ("▁", "Ġ")


def test_case_and_marks_are_folded_when_asked_for() -> None:
    text = "Žluťoučký KŮŇ में"
    assert around(learnt([text] * 2), text) == text
    assert around(learnt([text] * 2, lowercase=True), text) == "žluťoučký kůň में"
    folded = learnt([text] * 2, lowercase=True, strip_accents=True)
    assert around(folded, text) == "zlutoucky kun म"


def test_a_kept_tokenizer_is_read_again(tmp_path: Path) -> None:
    config = VocabularyConfig(vocab_size=400, tokenizer="unigram")
    first = learnt_tokenizer(Corpus.of(["a few words"]), config, tmp_path / "kept", progress=False)
    other = learnt_tokenizer(Corpus.of(["others"]), config, tmp_path / "kept", progress=False)
    assert other.get_vocab() == first.get_vocab()


def test_a_run_says_how_its_vocabulary_was_made(tmp_path: Path) -> None:
    text, run = tmp_path / "hindi.txt", tmp_path / "run"
    words = LINES["hindi"].split()
    text.write_text("\n".join(" ".join(random.Random(n).sample(words, 9)) for n in range(40)))
    command = ["train", "text", str(text), "--model", "scratch:tiny", "--output", str(run)]
    command += ["--cache-dir", str(tmp_path / "cache"), "--max-steps", "1"]
    command += ["--tokenizer", "unigram", "--lowercase", "--vocab-size", "400"]
    assert main(command) == 0
    config = load_config(run / "config.yaml", TextRunConfig)
    assert (config.tokenizer, config.lowercase, config.strip_accents) == ("unigram", True, False)
    assert "--tokenizer unigram --lowercase" in (run / "model" / "README.md").read_text()
    assert around(AutoTokenizer.from_pretrained(run / "model"), "में") == "में"
    # The same folder with another choice is another run.
    assert main([*command, "--strip-accents", "--resume", "auto"]) == 2


def test_runs_of_earlier_versions_are_read_with_what_they_had(tmp_path: Path) -> None:
    save_config(tmp_path, TextRunConfig(corpus=("a.txt",), model="scratch:tiny"))
    path = tmp_path / "config.yaml"
    assert load_config(path, TextRunConfig).tokenizer == "wordpiece"
    new = ("tokenizer:", "lowercase:", "strip_accents:")
    kept = [line for line in path.read_text().splitlines() if not line.startswith(new)]
    path.write_text("\n".join(kept))
    assert load_config(path, TextRunConfig).tokenizer == "bert-uncased"


def test_bytes_need_room() -> None:
    with pytest.raises(ConfigError, match="at least 280"):
        TextRunConfig(corpus=("a.txt",), tokenizer="bpe", vocab_size=200)
