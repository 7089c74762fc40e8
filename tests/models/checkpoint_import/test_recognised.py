"""Checkpoints that resemble others: recognised, or refused with what they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import (
    AutoModelForMaskedLM,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertForPreTraining,
    DebertaV2Config,
    DebertaV2ForMaskedLM,
    RobertaConfig,
    RobertaForMaskedLM,
    ViTConfig,
    ViTModel,
)

from maskery.core.errors import ConfigError, MaskeryError, ModelError
from maskery.models.checkpoint_import.convert import import_checkpoint
from maskery.models.checkpoint_import.state_dict import heads_of, read_tokenizer

WORDS = 50
SIZES: dict[str, Any] = {
    "vocab_size": WORDS,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
}
MODELS: dict[str, Any] = {
    "bert": lambda: BertForMaskedLM(BertConfig(**SIZES)),
    "roberta": lambda: RobertaForMaskedLM(
        RobertaConfig(**SIZES, type_vocab_size=1, max_position_embeddings=34)
    ),
    "deberta-v2": lambda: DebertaV2ForMaskedLM(
        DebertaV2Config(**SIZES, relative_attention=True, pos_att_type=["c2p", "p2c"])
    ),
}


@pytest.fixture(autouse=True)
def words(tmp_path: Path) -> Path:
    return save_words(tmp_path / "vocab.txt", WORDS)


def save_words(path: Path, count: int, word: str = "w{}") -> Path:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    path.write_text("\n".join([*special, *(word.format(n) for n in range(count - 5))]))
    return path


def refused(path: Path, **settings: Any) -> str:
    with pytest.raises(MaskeryError) as caught:
        import_checkpoint(path, path.parent / "out", **settings)
    message = str(caught.value)
    assert "\n" not in message
    assert not (path.parent / "out").exists()
    return message


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("prefix", ["", "module.", "net.encoder."])
def test_a_config_beside_the_file_tells_the_family(
    family: str, prefix: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = MODELS[family]().eval()
    torch.save(
        {"state_dict": {f"{prefix}{n}": t for n, t in model.state_dict().items()}},
        tmp_path / "model.pth",
    )
    model.config.save_pretrained(tmp_path)
    report = import_checkpoint(tmp_path / "model.pth", tmp_path / "out")
    assert (report.kind, report.missing) == (family, ())
    assert ("every name begins with" in str(report.notes)) == bool(prefix)
    assert "attention heads: 4" in str(report.notes)
    ids = torch.randint(5, WORDS, (2, 6))
    again = AutoModelForMaskedLM.from_pretrained(tmp_path / "out").eval()
    torch.testing.assert_close(again(ids).logits, model(ids).logits)
    assert len(AutoTokenizer.from_pretrained(tmp_path / "out")) == WORDS


@pytest.mark.parametrize("family", ["roberta", "deberta-v2"])
@pytest.mark.parametrize("bare", [False, True])
def test_without_it_what_resembles_bert_is_refused(family: str, bare: bool, tmp_path: Path) -> None:
    model = MODELS[family]()
    state = (model.base_model if bare else model).state_dict()
    torch.save(dict(state), tmp_path / "model.pth")
    assert "config.json" in refused(tmp_path / "model.pth", num_text_heads=4)


def test_a_bert_with_another_position_code_is_refused(tmp_path: Path) -> None:
    state = dict(MODELS["bert"]().state_dict())
    state["bert.encoder.rel_embeddings.weight"] = torch.zeros(3, 16)
    torch.save(state, tmp_path / "model.pth")
    assert "rel_embeddings" in refused(tmp_path / "model.pth", num_text_heads=4)


def test_hugging_face_folders_are_taken(tmp_path: Path) -> None:
    model = MODELS["roberta"]().eval()
    model.save_pretrained(tmp_path, max_shard_size="4KB")
    assert (tmp_path / "model.safetensors.index.json").is_file()
    report = import_checkpoint(tmp_path, tmp_path / "out")
    assert (report.kind, report.missing, report.left_over) == ("roberta", (), ())
    ids = torch.randint(5, WORDS, (2, 6))
    again = AutoModelForMaskedLM.from_pretrained(tmp_path / "out").eval()
    torch.testing.assert_close(again(ids).logits, model(ids).logits)


def test_a_vision_folder_needs_no_tokenizer(tmp_path: Path) -> None:
    sizes = {name: size for name, size in SIZES.items() if name != "vocab_size"}
    config = ViTConfig(**sizes, image_size=16, patch_size=8)
    folder = tmp_path / "vit"
    ViTModel(config).save_pretrained(folder)
    report = import_checkpoint(folder, tmp_path / "out")
    assert (report.kind, report.missing) == ("vit", ())
    assert report.left_over == ("pooler.dense.bias", "pooler.dense.weight")


def test_an_antibody_model_keeps_its_capital_letters(tmp_path: Path) -> None:
    """As AntiBERTy is published: heads of its own, amino acids as words."""
    acids = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"ACDEFGHIKLMNPQRSTVWY"]
    (tmp_path / "vocab.txt").write_text("\n".join(acids) + "\n")
    model = BertForPreTraining(BertConfig(**{**SIZES, "vocab_size": 25})).eval()
    state = dict(model.state_dict()) | {"cls.species.weight": torch.zeros(6, 16)}
    torch.save(state, tmp_path / "pytorch_model.bin")
    described = model.config.to_dict() | {"architectures": ["AntiBERTy"]}
    (tmp_path / "config.json").write_text(json.dumps(described))
    report = import_checkpoint(tmp_path, tmp_path / "out")
    assert report.missing == ()
    assert "cls.species.weight" in report.left_over
    ids = AutoTokenizer.from_pretrained(tmp_path / "out")("E V Q L", return_tensors="pt").input_ids
    assert ids.tolist() == [[2, 8, 22, 18, 14, 3]]
    again = BertForMaskedLM.from_pretrained(tmp_path / "out").eval()
    torch.testing.assert_close(again(ids).logits, model(ids).prediction_logits)


def test_heads_are_asked_for_where_a_width_allows_several() -> None:
    assert heads_of("vision", 1280, None, {}) == 16  # ViT-H: 80 for each
    assert heads_of("vision", 1280, None, {"num_attention_heads": 20}) == 20
    with pytest.raises(ConfigError, match="--vision-heads"):
        heads_of("vision", 384, None, {})
    with pytest.raises(ConfigError, match="must divide its width 384"):
        heads_of("vision", 384, 7, {})
    with pytest.raises(ConfigError, match="must divide its width 384"):
        heads_of("vision", 384, None, {"num_attention_heads": "6"})


def test_a_config_of_another_model_is_refused(tmp_path: Path) -> None:
    torch.save(MODELS["bert"]().state_dict(), tmp_path / "model.pth")
    BertConfig(**{**SIZES, "hidden_size": 32}).save_pretrained(tmp_path)
    assert "config.json is of another model" in refused(tmp_path / "model.pth")
    for content in ("{", "[]", '{"model_type": "bert", "hidden_size": "x"}'):
        (tmp_path / "config.json").write_text(content)
        refused(tmp_path / "model.pth")


def test_what_is_nested_elsewhere_is_listed(tmp_path: Path) -> None:
    state = dict(MODELS["bert"]().state_dict())
    torch.save({"net": state, "optimizer": {}, "epoch": 3}, tmp_path / "model.pth")
    assert "'net', 'optimizer', 'epoch'" in refused(tmp_path / "model.pth")
    torch.save(
        {f"encoder.{n}": t for n, t in state.items()} | {"head.bias": torch.zeros(2)},
        tmp_path / "model.pth",
    )
    assert f"'encoder' ({len(state)}), 'head' (1)" in refused(tmp_path / "model.pth")
    torch.save({"model": state, "ema": state}, tmp_path / "model.pth")
    report = import_checkpoint(tmp_path / "model.pth", tmp_path / "out", num_text_heads=4)
    assert report.notes[0] == "read 'model' of the file; beside it are 'ema'"


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_the_content_counts_and_not_the_name(suffix: str, tmp_path: Path) -> None:
    state = {n: t.clone() for n, t in MODELS["bert"]().state_dict().items()}
    path = tmp_path / f"model{suffix}"
    (save_file if suffix == ".pth" else torch.save)(state, path)
    report = import_checkpoint(path, tmp_path / "out", num_text_heads=4)
    kind = "safetensors" if suffix == ".pth" else "PyTorch"
    assert report.notes[0] == f"a {kind} file, which its name does not say"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_other_files_say_what_they_are(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    model = MODELS["bert"]().eval()
    torch.save(model, path)
    assert "whole saved model" in refused(path)
    torch.jit.script(torch.nn.Linear(2, 2)).save(path)
    assert "whole saved model" in refused(path)
    for content, what in (
        (b"\x89HDF\r\n\x1a\n", "Keras"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "Git LFS"),
        (b"<!DOCTYPE html><html>", "web page"),
    ):
        path.write_bytes(content)
        assert what in refused(path)
    (tmp_path / "flax_model.msgpack").write_bytes(b"\x85")
    assert "Flax" in refused(tmp_path / "flax_model.msgpack")
    path.unlink()
    assert "flax_model.msgpack" in refused(tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_none_are_refused(value: float, tmp_path: Path) -> None:
    state = MODELS["bert"]().state_dict()
    state["bert.embeddings.LayerNorm.bias"][3] = value
    torch.save(state, tmp_path / "model.pth")
    message = refused(tmp_path / "model.pth", num_text_heads=4)
    assert "not numbers" in message
    assert "bert.embeddings.LayerNorm.bias" in message


@pytest.mark.parametrize("count", [WORDS - 1, WORDS + 1, 10])
def test_a_tokenizer_of_another_vocabulary_is_refused(count: int, tmp_path: Path) -> None:
    torch.save(MODELS["bert"]().state_dict(), tmp_path / "model.pth")
    save_words(tmp_path / "other.txt", count)
    message = refused(
        tmp_path / "model.pth", num_text_heads=4, tokenizer=str(tmp_path / "other.txt")
    )
    assert f"has {count} words and the checkpoint {WORDS} rows" in message


def test_rows_of_padding_are_no_other_vocabulary(tmp_path: Path) -> None:
    save_words(tmp_path / "vocab.txt", 30_522)
    assert len(read_tokenizer(None, tmp_path, 30_528)) == 30_522
    (tmp_path / "vocab.txt").unlink()
    with pytest.raises(ModelError, match="has no tokenizer beside it"):
        read_tokenizer(None, tmp_path, 30_528)
