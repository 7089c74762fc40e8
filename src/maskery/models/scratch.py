"""New BERT-like encoders of three sizes, for training from scratch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerBase

from maskery.core.errors import ModelError
from maskery.core.vocabulary import vocabulary_size
from maskery.models import attention
from maskery.models.loading import Loaded


@dataclass(frozen=True, kw_only=True)
class Size:
    """The shape of an encoder."""

    layers: int
    width: int
    heads: int


SIZES: dict[str, Size] = {
    "tiny": Size(layers=3, width=128, heads=2),
    "small": Size(layers=6, width=384, heads=6),
    "base": Size(layers=12, width=768, heads=12),
}


def new_masked_lm(size: str, tokenizer: PreTrainedTokenizerBase, *, seed: int) -> Loaded:
    """A BERT of random weights for a tokenizer.

    Raises:
        ModelError: There is no such size.
    """
    if size not in SIZES:
        raise ModelError(f"scratch:{size} is no size; choose scratch:{', scratch:'.join(SIZES)}")
    attention.register()
    shape = SIZES[size]
    config = BertConfig(
        vocab_size=vocabulary_size(tokenizer),
        hidden_size=shape.width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=4 * shape.width,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pad_token_id=tokenizer.pad_token_id,
        attn_implementation=attention.NAME,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = BertForMaskedLM(config)
    head = frozenset(name for name, _ in model.named_parameters() if name.startswith("cls."))
    return Loaded(model=model.eval(), tokenizer=tokenizer, new_parameters=head)
