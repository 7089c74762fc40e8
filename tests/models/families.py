"""Tiny masked language models of many families, with random weights and no downloads."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForMaskedLM, PreTrainedModel

from maskery.models.loading import implementation

VOCAB = 99
PAD = 1
SMALL: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "type_vocab_size": 2,
    "pad_token_id": PAD,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
SPECIFIC: dict[str, dict[str, Any]] = {
    "albert": {"embedding_size": 16},
    "distilbert": {
        "dim": 32,
        "n_layers": 2,
        "n_heads": 4,
        "hidden_dim": 48,
        "dropout": 0.0,
        "attention_dropout": 0.0,
    },
    "deberta-v2": {
        "relative_attention": True,
        "pos_att_type": ["p2c", "c2p"],
        "position_biased_input": False,
        "pooler_hidden_size": 32,
    },
    "electra": {"embedding_size": 16},
    "esm": {"mask_token_id": 4, "position_embedding_type": "absolute", "token_dropout": False},
    "modernbert": {
        "local_attention": 8,
        "global_attn_every_n_layers": 2,
        "embedding_dropout": 0.0,
        "mlp_dropout": 0.0,
        "attention_dropout": 0.0,
        "bos_token_id": 2,
        "eos_token_id": 3,
        "cls_token_id": 2,
        "sep_token_id": 3,
    },
    "eurobert": {
        "num_key_value_heads": 2,
        "attention_dropout": 0.0,
        "bos_token_id": 2,
        "eos_token_id": 3,
    },
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
    "layoutlm": {"max_2d_position_embeddings": 16},
    "roc_bert": {"enable_pronunciation": False, "enable_shape": False, "concat_input": False},
}


def tiny(family: str, *, seed: int = 0) -> PreTrainedModel:
    """A model of a family, in evaluation mode; weights large enough to matter."""
    settings = {**SMALL, **SPECIFIC.get(family, {})}
    config = AutoConfig.for_model(family, **settings)
    torch.manual_seed(seed)
    model = AutoModelForMaskedLM.from_config(config, attn_implementation=implementation(config))
    with torch.no_grad():
        for parameter in model.parameters():
            # Default weights are so small that attention hardly tells positions apart.
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()
