"""Inputs of public reports, made anew: each once gave a wrong value, and has the right one here.

| input | the kind that it stands for | tests of the kind |
| --- | --- | --- |
| Hindi | marks are a part of letters | `data/test_vocabulary.py` |
| Thai | scripts without spaces have words, too | `data/test_unspaced.py` |
| DNA | words of any length are cut | `data/test_vocabulary.py` |
| capitals | a word asked for is spelt as in its place | `evaluation/text/test_mask_places.py` |
| new drugs | new words change nothing beside them | `data/test_added_words.py` |
| quotes | published tables have no quoting | `data/corpus/test_table_files.py` |
| a layer less, a prefix | an encoder that is not all there | `models/test_loading.py` |
| MPNet | positions that a model has | `models/test_families.py` |
| NaN, zeros | logits that tell nothing | `evaluation/text/test_masked.py` |
| own code | what a folder says is never run | `test_own_code.py` |
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from families import save
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, RobertaConfig, RobertaForMaskedLM
from vocabularies import make

from maskery.cli.main import main
from maskery.core.batch import vocabulary_size
from maskery.data.added_words import add_words
from maskery.data.batching import Template, assemble
from maskery.data.corpus.config import VocabularyConfig
from maskery.data.corpus.reader import Corpus
from maskery.data.corpus.sentences import Line
from maskery.data.tokenise import encode_texts
from maskery.data.vocabulary import train_tokenizer
from maskery.masking.config import MaskingConfig
from maskery.masking.masker import Masker

Weights = dict[str, torch.Tensor]
WEIGHTS = "model.safetensors"
HINDI = ["में मे मे कि पर मे कु अपने", "मे पदों ऑफिस मे अपने की में अपने", "पर मे भर्ती अपने कि पोस्ट कु पोस्ट"]
THAI = ["ได้นี่น้ำม้าม้านี่ไปไปหมาใกล้มาไปที่ไกล", "หมาหมาหมาใกล้หมาใกล้มาไปนี่นี่น้ำไป"]
CAPITALS = "Paris is the capital of France.\nThe capital (Paris) of France is big.\n" * 4
GLUE = (
    'text\tlabel\nFirst row is fine.\t1\n"Second begins with a quote.\t0\nThird row.\t1\n'
    'Fourth row ends with a quote"\t0\nFifth row.\t1\n'
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A RoBERTa of two layers, with a byte-level vocabulary whose mask takes the space before."""
    folder = tmp_path_factory.mktemp("whole")
    tokenizer = make("byte-level", lstrip=True)
    pad = int(tokenizer.pad_token_id)
    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=vocabulary_size(tokenizer),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=pad + 129,
        pad_token_id=pad,
    )
    RobertaForMaskedLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def changed(whole: Path, folder: Path, change: Callable[[Weights], Weights]) -> Path:
    """Copy the model with other weights."""
    folder.mkdir()
    for file in whole.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    weights = {name: tensor.clone() for name, tensor in change(load_file(folder / WEIGHTS)).items()}
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    return folder


def with_nan(weights: Weights) -> Weights:
    broken = weights["lm_head.dense.weight"].clone()
    broken[0, 0] = float("nan")
    return weights | {"lm_head.dense.weight": broken}


def refused(model: Path, text: Path, capsys: pytest.CaptureFixture[str]) -> set[str]:
    """Return the one line that each command ends with, the command's name left out."""
    run = text.parent / "run"
    commands = (
        ["fill", str(model), "The <mask> of"],
        ["evaluate", str(model), "--data", str(text)],
        ["train", "text", str(text), "--model", str(model), "--output", str(run)],
    )
    told = set()
    for command in commands:
        assert main(command) == 2
        (line,) = [one for one in capsys.readouterr().err.splitlines() if "maskery " in one]
        told.add(line.partition(": ")[2])
    assert not run.exists()
    return told


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "cap.txt"
    path.write_text("".join(f"{line} {n}\n" for n, line in enumerate(CAPITALS.splitlines() * 5)))
    return path


def test_hindi_keeps_its_marks() -> None:
    tokenizer = train_tokenizer(
        Corpus.of(HINDI * 9), VocabularyConfig(vocab_size=300), progress=False
    )
    for line in HINDI:
        assert tokenizer.decode(tokenizer(line)["input_ids"], skip_special_tokens=True) == line
    assert tokenizer("में")["input_ids"] != tokenizer("मे")["input_ids"] != tokenizer("म")["input_ids"]


def test_thai_is_masked_by_words_and_not_by_rows() -> None:
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<s>", "</s>", "<pad>", "<unk>", "<mask>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=60, special_tokens=special, unk_token="<unk>", show_progress=False
    )
    backend.train_from_iterator(THAI * 20, trainer)
    names = zip(("bos", "eos", "pad", "unk", "mask"), special, strict=True)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, **{f"{role}_token": token for role, token in names}
    )
    texts = ["".join(np.random.default_rng(n).permutation(THAI * 3)) for n in range(40)]
    ids, starts, lengths = encode_texts(texts, tokenizer)
    firsts, numbers = np.cumsum(lengths) - lengths, np.arange(len(texts)).astype(np.uint64)
    begin = np.zeros(len(texts), np.int64)
    batch = assemble(ids, starts, firsts, lengths, numbers, begin, Template.of(tokenizer))
    masker = Masker.of(tokenizer, MaskingConfig(policy="word", mask_rate=0.15))
    shares = [len(masker.mask(batch, epoch=n).positions) / len(ids) for n in range(40)]
    assert 0.13 < np.mean(shares) < 0.17


def test_dna_is_pieces(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, draw = tmp_path / "dna.txt", np.random.default_rng(0)
    path.write_text("".join("".join(draw.choice(list("ACGT"), 150)) + "\n" for _ in range(60)))
    command = ["inspect", str(path), "--model", "scratch:tiny", "--timed-steps", "0", "--json"]
    assert main([*command, "--vocab-size", "300"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["unknown_tokens"] == 0
    assert found["lengths"]["median"] > 20


@pytest.mark.parametrize("sentence", ["<mask> is the capital.", "The capital (<mask>) of France"])
def test_a_capital_has_the_figure_of_the_list(
    whole: Path, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["fill", str(whole), sentence, "--words", "Paris", "Rome", "--top-k", "500", "--json"]
    assert main(command) == 0
    (found,) = json.loads(capsys.readouterr().out)
    listed = {row["token"]: row["probability"] for row in found["masks"][0]}
    for word in found["words"]:
        assert word["pieces"] == [word["word"]]  # as at the start of a word without a space
        assert word["probability"] == pytest.approx(listed[word["word"]], rel=1e-5)


@pytest.mark.parametrize("kind", ["unigram", "byte-level with prefix"])
def test_new_drugs_are_written_as_other_words(kind: str) -> None:
    words = [Line(1, "remdesivir"), Line(2, "foobarine")]
    tokenizer = add_words(make(kind), words, "new_words.txt").tokenizer
    text = "We gave remdesivir, foobarine"
    pieces = [piece.lstrip("▁Ġ") for piece in tokenizer.tokenize(text)]
    assert pieces[pieces.index("remdesivir") :] == ["remdesivir", ",", "foobarine"]
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids).strip() == text


def test_glue_has_five_rows(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "glue2.tsv").write_text(GLUE)
    command = ["inspect", str(tmp_path / "glue2.tsv"), "--model", str(whole), "--timed-steps", "0"]
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["lengths"]["examples"] == 5


def test_an_encoder_that_is_not_all_there(
    whole: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cut = changed(
        whole, tmp_path / "cut", lambda w: {n: t for n, t in w.items() if ".layer.1." not in n}
    )
    (told,) = refused(cut, text, capsys)
    assert "lack 16 parameters of its encoder" in told
    assert "roberta.encoder.layer.1." in told
    wrapped = changed(whole, tmp_path / "w", lambda w: {f"module.{n}": t for n, t in w.items()})
    (told,) = refused(wrapped, text, capsys)
    assert "every name begins with 'module.'" in told


def test_mpnet_of_66_rows_reads_64_tokens(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(save("mpnet", tmp_path / "model", max_position_embeddings=66))
    assert main(["fill", model, "[MASK]" + " w9" * 63]) == 0
    capsys.readouterr()
    assert main(["fill", model, "[MASK]" + " w9" * 64]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "has 65 tokens, and the model has 64 positions" in line
    path = tmp_path / "long.txt"
    path.write_text("".join(f"w{n} " + "w9 " * 64 + "\n" for n in range(10, 40)))
    inspect = ["inspect", str(path), "--model", model, "--timed-steps", "0", "--json"]
    assert main(inspect) == 0
    batches = json.loads(capsys.readouterr().out)["batches"]
    assert (batches["max_length"], batches["cut"]) == (64, 30)


def test_logits_that_tell_nothing(
    whole: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (told,) = refused(changed(whole, tmp_path / "nan", with_nan), text, capsys)
    assert "not numbers (NaN or infinite), first in 'lm_head.dense.weight'" in told
    zero = changed(whole, tmp_path / "zero", lambda w: {n: 0 * t for n, t in w.items()})
    assert main(["evaluate", str(zero), "--data", str(text), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["scores"][str(zero)]
    size = json.loads((zero / "config.json").read_text())["vocab_size"]
    assert found["top1"][0] == pytest.approx(1 / size, rel=1e-6)


def test_own_code_is_not_asked_about(
    whole: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = changed(whole, tmp_path / "own", dict)
    config = json.loads((own / "config.json").read_text()) | {"model_type": "own"}
    config |= {"auto_map": {"AutoConfig": "own.C", "AutoModelForMaskedLM": "own.M"}}
    (own / "config.json").write_text(json.dumps(config))
    (own / "own.py").write_text("import os\nopen(os.environ['CASE_MARKER'], 'w').close()\n")
    monkeypatch.setenv("CASE_MARKER", str(tmp_path / "ran"))
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    assert main(["fill", str(own), "The <mask> of"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "needs Python code of its own, which Maskery never" in line
    assert not (tmp_path / "ran").exists()
