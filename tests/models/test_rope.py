"""A rotary base that is set in a model is as Transformers reads it from its configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForMaskedLM,
    BertConfig,
    BertForMaskedLM,
    EuroBertConfig,
    EuroBertForMaskedLM,
    ModernBertConfig,
    ModernBertForMaskedLM,
)

from maskery.core.errors import ConfigError
from maskery.models.rope import set_rope_base

SIZES: dict[str, Any] = {
    "vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2,
    "intermediate_size": 24, "max_position_embeddings": 32, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip


@pytest.mark.parametrize("family", ["modernbert", "eurobert"])
def test_a_base_that_is_set_is_transformers_own(family: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    hf: Any
    if family == "modernbert":
        options = {"cls_token_id": 1, "sep_token_id": 2, "local_attention": 4}
        hf = ModernBertForMaskedLM(ModernBertConfig(**SIZES, **options)).eval()
    else:
        hf = EuroBertForMaskedLM(EuroBertConfig(**SIZES)).eval()
    hf.save_pretrained(tmp_path / "start")
    config = type(hf.config).from_pretrained(tmp_path / "start")
    near = (config.rope_parameters or {}).get("sliding_attention")
    if family == "modernbert":
        config.rope_parameters["full_attention"]["rope_theta"] = 500.0
    else:
        config.rope_parameters["rope_theta"] = 500.0
    theirs = AutoModelForMaskedLM.from_pretrained(tmp_path / "start", config=config).eval()
    ids = torch.randint(3, 40, (2, 30))
    before = hf(ids).logits
    set_rope_base(hf, 500.0, 64)
    assert torch.equal(hf(ids).logits, theirs(ids).logits)
    assert not torch.allclose(hf(ids).logits, before)
    # Saved and opened again it is the same, for texts of twice the length, too.
    hf.save_pretrained(tmp_path / "changed")
    again: Any = AutoModelForMaskedLM.from_pretrained(tmp_path / "changed").eval()
    assert again.config.max_position_embeddings == 64
    assert (again.config.rope_parameters or {}).get("sliding_attention") == near
    longer = torch.randint(3, 40, (1, 60))
    assert torch.equal(again(longer).logits, hf(longer).logits)


def test_a_model_without_rotary_positions_is_refused() -> None:
    sizes = {name: value for name, value in SIZES.items() if not name.endswith("os_token_id")}
    with pytest.raises(ConfigError, match="--rope-base 500: models of the family 'bert'"):
        set_rope_base(BertForMaskedLM(BertConfig(**sizes)), 500.0)
