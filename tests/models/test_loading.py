"""Loading models: what is new, what is turned off, and errors that say what to do."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_text import save_tiny_model
from transformers import AutoTokenizer, BertForMaskedLM, GPT2Config, GPT2LMHeadModel

from maskery.cli.main import main
from maskery.core.errors import ModelError
from maskery.evaluation.text.fill import Filler
from maskery.models.loading import (
    known_as,
    load_config,
    load_masked_lm,
    load_tokenizer,
    resolve,
    start_new_head,
)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("encoder"), head=False)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("whole"))


def test_a_missing_head_is_noticed_and_seeded(encoder: Path, whole: Path) -> None:
    assert not load_masked_lm(str(whole)).new_parameters
    one, same, other = (load_masked_lm(str(encoder), seed=seed) for seed in (1, 1, 2))
    assert "cls.predictions.transform.dense.weight" in one.new_parameters
    name = "cls.predictions.transform.dense.weight"
    weights = [loaded.model.get_parameter(name) for loaded in (one, same, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_a_new_head_starts_at_the_unigram_distribution(encoder: Path) -> None:
    loaded = load_masked_lm(str(encoder))
    counts = np.arange(loaded.model.config.vocab_size)
    start_new_head(loaded.model, loaded.new_parameters, counts)
    transform = loaded.model.cls.predictions.transform.dense
    assert torch.equal(transform.weight, torch.eye(32))
    bias = loaded.model.get_output_embeddings().bias.detach().double().numpy()
    expected = np.log((counts + 1) / (counts + 1).sum())
    np.testing.assert_allclose(bias, expected, rtol=1e-5)


def test_attention_dropout_is_off_unless_asked_for(whole: Path) -> None:
    quiet, own = load_masked_lm(str(whole)), load_masked_lm(str(whole), attention_dropout=True)
    assert quiet.model.config.attention_probs_dropout_prob == 0.0
    assert quiet.attention_dropouts == {"attention_probs_dropout_prob": 0.1}
    assert own.model.config.attention_probs_dropout_prob == 0.1
    none = load_masked_lm(str(whole), hidden_dropout=0.0)
    assert none.model.config.hidden_dropout_prob == 0.0


def test_a_model_has_one_name(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(whole)
    for spelt in (str(whole), os.path.relpath(whole, tmp_path), "link", f"{whole}/"):
        assert known_as(spelt) == str(whole.resolve())
    for name in ("minilm", "bert-base-uncased", "someone/some-model", "scratch:tiny", "/no/such"):
        assert known_as(name) == name


def test_a_run_folder_stands_for_its_model(whole: Path, tmp_path: Path) -> None:
    (tmp_path / "model").symlink_to(whole)
    assert resolve(str(tmp_path)) == str(tmp_path / "model")


def test_a_family_without_a_head_class(tmp_path: Path, whole: Path) -> None:
    config = GPT2Config(vocab_size=100, n_embd=8, n_layer=1, n_head=1, n_positions=16)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(whole).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="'gpt2', which has no masked-language-modelling head"):
        load_masked_lm(str(tmp_path))


def test_a_tokenizer_without_a_mask_token(tmp_path: Path, whole: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(whole)
    tokenizer.mask_token = None
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text((whole / "config.json").read_text())
    with pytest.raises(ModelError, match="has no mask token"):
        load_tokenizer(str(tmp_path))


@pytest.mark.parametrize("role", ["unk", "pad", "sep"])
def test_a_mask_token_that_means_something_else(tmp_path: Path, role: str) -> None:
    """Every unknown word would be a mask."""
    folder = save_tiny_model(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.mask_token = getattr(tokenizer, f"{role}_token")
    tokenizer.save_pretrained(folder)
    told = rf"has no mask token but '{re.escape(tokenizer.mask_token)}', its {role} token: masked"
    with pytest.raises(ModelError, match=told) as caught:
        load_masked_lm(str(folder))
    assert "\n" not in str(caught.value)


def test_a_vocabulary_without_a_mask_token(tmp_path: Path) -> None:
    """Transformers adds one beyond the rows of the model."""
    folder = save_tiny_model(tmp_path)
    described = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    vocabulary = described["model"]["vocab"]
    kept = [token for token in sorted(vocabulary, key=vocabulary.get) if token != "[MASK]"]
    described["model"]["vocab"] = {token: index for index, token in enumerate(["[unused]", *kept])}
    described["added_tokens"] = []
    (folder / "tokenizer.json").write_text(json.dumps(described), "utf-8")
    size = len(vocabulary)
    told = rf"adds the mask token '\[MASK\]' as the id {size} and '.*' has {size} rows: they"
    with pytest.raises(ModelError, match=told):
        load_masked_lm(str(folder))


def test_rows_beyond_the_tokenizer_are_told_and_never_filled_in(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = BertForMaskedLM.from_pretrained(save_tiny_model(tmp_path))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    model.resize_token_embeddings(len(tokenizer) + 7, mean_resizing=False)
    with torch.no_grad():
        model.cls.predictions.bias[-7:] = 50.0  # by far the likeliest
    model.save_pretrained(tmp_path)
    with caplog.at_level(logging.INFO, logger="maskery"):
        filler = Filler.of(str(tmp_path))
    assert [record.message for record in caplog.records] == [
        f"'{tmp_path}' has 7 rows beyond its tokenizer's ids; none of them is filled in"
    ]
    for pieces in (False, True):
        (mask, _) = filler.fill("the [MASK] and [MASK]", pieces=pieces).masks
        assert all(candidate.token_id < len(tokenizer) for candidate in mask)


def test_weights_without_a_place_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = save_tiny_model(tmp_path)
    described = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(described | {"num_hidden_layers": 1}))
    load_masked_lm(str(folder))
    (record,) = caplog.records
    assert record.message == (
        f"left out: 16 weights of '{folder}' that its model has no place for (bert.encoder.layer.1"
        ".attention.output.LayerNorm.bias, bert.encoder.layer.1.attention.output.LayerNorm.weight, "
        "bert.encoder.layer.1.attention.output.dense.bias and 13 more)"
    )


def test_weights_that_are_cut_short(tmp_path: Path, whole: Path) -> None:
    for file in whole.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match="the weights in") as caught:
        load_masked_lm(str(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [("./nowhere", "no model folder"), ("some/name", "could not be fetched")],
)
def test_names_that_lead_nowhere(name: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load_tokenizer(name)


def test_a_file_is_no_model(tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    path.write_bytes(b"")
    with pytest.raises(ModelError, match="is a file"):
        resolve(str(path))


def rewritten(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> str:
    save_tiny_model(folder)
    weights = load_file(folder / "model.safetensors")
    changed = {name: tensor.clone() for name, tensor in change(weights).items()}
    save_file(changed, folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda w: {n: t for n, t in w.items() if ".layer.1." not in n},
            r"lack 16 parameters of its encoder.*bert\.encoder\.layer\.1\..* and 13 more\): name a",
        ),
        (lambda w: {f"module.{n}": t for n, t in w.items()}, "every name begins with 'module.'"),
    ],
    ids=["without a layer", "wrapped"],
)
def test_an_encoder_that_would_compute_noise_is_refused(
    change: Any, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        load_masked_lm(rewritten(tmp_path / "model", change))
    assert "\n" not in str(caught.value)


def test_a_models_own_code_is_never_run_nor_asked_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_tiny_model(tmp_path / "model")
    described = json.loads((folder / "config.json").read_text())
    own = {"AutoConfig": "own.C", "AutoModelForMaskedLM": "own.M", "AutoTokenizer": ["own.T", None]}
    described |= {"model_type": "own", "auto_map": own}
    (folder / "config.json").write_text(json.dumps(described))
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question was asked"))
    for load in (load_masked_lm, load_config):
        with pytest.raises(ModelError, match="needs Python code of its own, which Maskery never"):
            load(str(folder))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "name", ["../other.safetensors", "{home}/other.safetensors", "..", 5, None]
)
def test_a_list_of_weights_names_no_file_outside_its_folder(tmp_path: Path, name: Any) -> None:
    folder = save_tiny_model(tmp_path / "model")
    (folder / "model.safetensors").rename(tmp_path / "other.safetensors")
    names = load_file(tmp_path / "other.safetensors")
    file = name.format(home=tmp_path) if isinstance(name, str) else name
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(names, file)}))
    with pytest.raises(ModelError, match="must name weight files in the same folder"):
        load_masked_lm(str(folder))
    # The same, listed by its name in the folder.
    (tmp_path / "other.safetensors").rename(folder / "part.safetensors")
    index.write_text(
        json.dumps({"metadata": {}, "weight_map": dict.fromkeys(names, "part.safetensors")})
    )
    assert not load_masked_lm(str(folder)).new_parameters


@pytest.mark.parametrize("text", ["[]", "3", "null", '"a"', "[" * 100_000, '{"a":' * 100_000])
@pytest.mark.parametrize(
    "file",
    [
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "model.safetensors.index.json",
    ],
)
def test_json_of_another_kind_is_one_line(
    tmp_path: Path, file: str, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save_tiny_model(tmp_path / "model")
    (folder / file).write_text(text)
    capsys.readouterr()
    assert main(["fill", str(folder), "the [MASK]"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("maskery fill: the ")


@pytest.mark.parametrize(
    ("file", "key"), [("config.json", "add_cross_attention"), ("tokenizer.json", "truncation")]
)
def test_a_setting_of_another_kind_is_one_line(tmp_path: Path, file: str, key: str) -> None:
    """Transformers and Tokenizers have errors of their own for these."""
    folder = save_tiny_model(tmp_path / "model")
    described = json.loads((folder / file).read_text("utf-8")) | {key: [2**31]}
    (folder / file).write_text(json.dumps(described), "utf-8")
    with pytest.raises(ModelError, match="does not hold what belongs there") as caught:
        load_masked_lm(str(folder))
    assert len(str(caught.value).splitlines()) == 1
