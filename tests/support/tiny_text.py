"""A tiny BERT with a vocabulary of a few words, saved as a Hugging Face folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForMaskedLM, BertTokenizer

from maskery.data.corpus.config import VocabularyConfig

WORDS = [
    "river",
    "stone",
    "cloud",
    "ember",
    "forest",
    "signal",
    "harbour",
    "lantern",
    "meadow",
    "thunder",
    "copper",
    "violet",
]


POOLINGS = {
    "mean": {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False},
    "cls": {"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True},
    "cls today": {"pooling_mode": "cls", "embedding_dimension": 32},
}


def lines(count: int, seed: int = 0) -> list[str]:
    """Distinct sentences of 3 to 14 words with a pattern to learn: words follow their order."""
    generator = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        start, length = generator.integers(len(WORDS)), generator.integers(3, 15)
        words = [WORDS[(start + i) % len(WORDS)] for i in range(length)]
        rows.append(" ".join(words) + f" number {number}.")
    return rows


def save_tiny_model(folder: Path, *, head: bool = True, seed: int = 0) -> Path:
    """Write `config.json`, weights and tokenizer; without a head, the encoder alone."""
    # Spelled out and not trained: the trainer's order of equal pairs changes from run to run.
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)] + list("0123456789.")
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces = [*special, *letters, *(f"##{x}" for x in letters), *WORDS, "number", "the", "and"]
    tokenizer = BertTokenizer(
        vocab={piece: index for index, piece in enumerate(pieces)}, model_max_length=32
    )
    torch.manual_seed(seed)
    model = BertForMaskedLM(
        BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=32,
            pad_token_id=0,
        )
    )
    (model if head else model.bert).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_sentence_encoder(folder: Path, pooling: str = "mean") -> Path:
    """Write a tiny encoder with the modules of sentence-transformers."""
    save_tiny_model(folder, head=False)
    parts = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    modules = [
        {"idx": n, "name": str(n), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for n, (path, kind) in enumerate(parts)
    ]
    (folder / "modules.json").write_text(json.dumps(modules), "utf-8")
    (folder / "1_Pooling").mkdir()
    width = json.loads((folder / "config.json").read_text("utf-8"))["hidden_size"]
    config = {"word_embedding_dimension": width, **POOLINGS[pooling]}
    if "embedding_dimension" in config:
        config = {"pooling_mode": "cls", "embedding_dimension": width}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(config), "utf-8")
    limit = json.dumps({"max_seq_length": 16, "do_lower_case": False})
    (folder / "sentence_bert_config.json").write_text(limit, "utf-8")
    return folder


def spoil(folder: Path, change: Callable[[torch.Tensor], object]) -> Path:
    """Change every weight of a saved model in place."""
    path = folder / "model.safetensors"
    weights = load_file(path)
    for weight in weights.values():
        change(weight)
    save_file(weights, path, metadata={"format": "pt"})
    return folder


def uncased(vocab_size: int) -> VocabularyConfig:
    return VocabularyConfig(vocab_size=vocab_size, tokenizer="bert-uncased")
