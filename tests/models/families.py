"""Tiny masked language models of many families, with random weights and no downloads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from maskery.models import attention
from maskery.models.layout import PACKABLE

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
SEQUENCE_TO_SEQUENCE = {
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
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
    "roc_bert": {
        "enable_pronunciation": False,
        "enable_shape": False,
        "concat_input": False,
        "shape_vocab_size": 10,
        "pronunciation_vocab_size": 10,
    },
    "bart": SEQUENCE_TO_SEQUENCE,
    "mbart": SEQUENCE_TO_SEQUENCE,
    "mvp": SEQUENCE_TO_SEQUENCE,
    "flaubert": {"emb_dim": 32, "n_layers": 2, "n_heads": 4},
    "xlm": {"emb_dim": 32, "n_layers": 2, "n_heads": 4},
    "convbert": {"embedding_size": 32},
    "roformer": {"embedding_size": 32},
    "squeezebert": {"embedding_size": 32},
    "mobilebert": {"embedding_size": 16, "true_hidden_size": 32, "intra_bottleneck_size": 32},
    "rembert": {"input_embedding_size": 16, "output_embedding_size": 16},
    "luke": {"entity_vocab_size": 10, "entity_emb_size": 8},
    "funnel": {"d_model": 32, "n_head": 4, "d_head": 8, "d_inner": 48, "block_sizes": [1, 1, 1]},
    "esmc": {"num_key_value_heads": 4, "head_dim": 8},
    "neomme": {"num_key_value_heads": 4, "head_dim": 16, "embedding_dim": 16},
    "nomic_bert": {"head_dim": 8},
    "longformer": {"attention_window": 4},
    "perceiver": {
        "d_model": 32,
        "d_latents": 32,
        "num_latents": 8,
        "num_self_attends_per_block": 1,
        "num_self_attention_heads": 4,
        "num_cross_attention_heads": 4,
        "qk_channels": 32,
        "v_channels": 32,
    },
    "reformer": {
        "attention_head_size": 8,
        "feed_forward_size": 48,
        "axial_pos_embds_dim": [16, 16],
        "axial_pos_shape": [8, 8],
        "attn_layers": ["local", "lsh"],
        "local_attn_chunk_length": 4,
        "lsh_attn_chunk_length": 4,
        "hash_seed": 0,  # else buckets are drawn anew in every pass
    },
    "ultrabert": {"num_key_value_heads": 4, "head_dim": 8, "prediction_head_size": 32},
}
# Those whose text encoder is a configuration of its own, and what they see with.
WITH_PICTURES = {"modernvbert": "modernbert", "ultravbert": "ultrabert"}
SEES = {
    "model_type": "siglip_vision_model",
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
    "vision_use_head": False,
}


def tiny_config(family: str, **changed: Any) -> PreTrainedConfig:
    """The configuration of a tiny model."""
    inner = WITH_PICTURES.get(family)
    if inner is not None:
        text = {"model_type": inner, **SMALL, **SPECIFIC.get(inner, {}), **changed}
        return AutoConfig.for_model(family, text_config=text, vision_config=SEES)
    settings = {**SMALL, **SPECIFIC.get(family, {}), **changed}
    if family == "funnel":  # has no limit, and counts its layers in blocks
        del settings["max_position_embeddings"], settings["num_hidden_layers"]
    return AutoConfig.for_model(family, **settings)


def tiny(family: str, *, seed: int = 0, **changed: Any) -> PreTrainedModel:
    """A model of a family, in evaluation mode; weights large enough to matter."""
    config = tiny_config(family, **changed)
    torch.manual_seed(seed)
    kind = attention.NAME if config.model_type in PACKABLE else None
    model = AutoModelForMaskedLM.from_config(config, attn_implementation=kind)
    with torch.no_grad():
        for parameter in model.parameters():
            # Default weights are so small that attention hardly tells positions apart.
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def save(family: str, folder: Path, **changed: object) -> Path:
    """Save a tiny model with a tokenizer of 99 words: `w9` has the id 9."""
    special = ["[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {word: n for n, word in enumerate(special)}
    vocabulary |= {f"w{n}": n for n in range(len(special), VOCAB)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = dict(zip(("unk", "pad", "cls", "sep", "mask"), special, strict=True))
    roles = {f"{role}_token": token for role, token in names.items()}
    PreTrainedTokenizerFast(tokenizer_object=backend, **roles).save_pretrained(folder)
    tiny(family, **changed).save_pretrained(folder)
    return folder
