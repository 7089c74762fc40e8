from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM

from maskery.cli.convert import Convert
from maskery.cli.main import parse
from maskery.core.errors import ConfigError, ModelError


def convert(*arguments: str) -> None:
    parse(Convert, "convert", arguments).execute()


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = BertForMaskedLM(BertConfig(vocab_size=20, intermediate_size=24, **sizes))
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    (tmp_path / "vocab.txt").write_text("\n".join([*special, *map(chr, range(97, 112))]))
    torch.save(dict(model.state_dict()) | {"extra": torch.zeros(1)}, tmp_path / "bert.pth")
    return tmp_path / "bert.pth"


def test_the_report_names_what_is_left_over(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    convert(str(checkpoint), str(tmp_path / "out"), "--text-heads", "2")
    printed = capsys.readouterr().out
    assert "read as bert" in printed
    assert "left over  extra" in printed
    assert BertForMaskedLM.from_pretrained(tmp_path / "out").config.num_attention_heads == 2


def test_json_is_the_whole_report(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    convert(str(checkpoint), str(tmp_path / "out"), "--text-heads", "2", "--json")
    report = json.loads(capsys.readouterr().out)
    assert report["kind"] == "bert"
    assert report["left_over"] == ["extra"]
    assert report["used"]["bert.embeddings.LayerNorm.weight"] == "bert.embeddings.LayerNorm.weight"


def test_a_wrong_flag_is_one_line(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="text_heads is 0: it must be at least 1"):
        convert(str(checkpoint), str(tmp_path / "out"), "--text-heads", "0")


def test_a_missing_tokenizer_is_one_line(checkpoint: Path, tmp_path: Path) -> None:
    arguments = [str(checkpoint), str(tmp_path / "out"), "--text-heads", "2"]
    with pytest.raises(ModelError, match="is not a tokenizer") as caught:
        convert(*arguments, "--tokenizer", str(tmp_path / "none"))
    assert "\n" not in str(caught.value)
