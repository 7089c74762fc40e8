"""BERT state dicts, the old names included, to a Hugging Face `BertForMaskedLM`."""

from __future__ import annotations

from typing import Any

import torch
from transformers import BertConfig, BertForMaskedLM

from maskery.core.errors import ModelError
from maskery.models.checkpoint_import.report import ImportReport
from maskery.models.checkpoint_import.timm_vit import count_layers, shape_of

OLD_NAMES = {".gamma": ".weight", ".beta": ".bias"}
"""What layer normalisation's parameters were called in files converted from TensorFlow."""
HEAD = "cls.predictions."


def is_bert(state: dict[str, torch.Tensor]) -> bool:
    """Whether the names are BERT's, with or without the prefix `bert.`."""
    return any(n.removeprefix("bert.") == "embeddings.word_embeddings.weight" for n in state)


def import_bert(
    state: dict[str, torch.Tensor], *, num_heads: int | None = None
) -> tuple[Any, ImportReport]:
    """Build the masked language model that a state dict belongs to and fill it.

    Args:
        state: By BERT's names.
        num_heads: Attention heads, which no tensor tells; by default width / 64.

    Raises:
        ModelError: A tensor has a shape that does not fit the others.
    """
    renamed = {name: _modern(name) for name in state}
    by_new_name = {new: state[old] for old, new in renamed.items()}
    vocab_size, width = shape_of(by_new_name, "bert.embeddings.word_embeddings.weight", 2)
    positions, _ = shape_of(by_new_name, "bert.embeddings.position_embeddings.weight", 2)
    segments, _ = shape_of(by_new_name, "bert.embeddings.token_type_embeddings.weight", 2)
    hidden, _ = shape_of(by_new_name, "bert.encoder.layer.0.intermediate.dense.weight", 2)
    config = BertConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        num_hidden_layers=count_layers(by_new_name, "bert.encoder.layer."),
        num_attention_heads=num_heads or max(1, width // 64),
        intermediate_size=hidden,
        max_position_embeddings=positions,
        type_vocab_size=segments,
    )
    model = BertForMaskedLM(config).eval()
    own = model.state_dict()
    found = {n: t for n, t in by_new_name.items() if n in own}
    for name, tensor in found.items():
        if own[name].shape != tensor.shape:
            raise ModelError(
                f"'{name}' in the checkpoint has shape {list(tensor.shape)} and the model that its "
                f"other tensors describe has {list(own[name].shape)}; the checkpoint is damaged or "
                f"of another model"
            )
    model.load_state_dict(found, strict=False)
    # The projection is the word embeddings; its bias has two names.
    tied = {f"{HEAD}decoder.weight"}
    tied |= {f"{HEAD}bias", f"{HEAD}decoder.bias"} if f"{HEAD}bias" in found else set()
    report = ImportReport(
        kind="bert",
        used={old: new for old, new in renamed.items() if new in own},
        missing=tuple(sorted(set(own) - set(found) - tied)),
        left_over=tuple(sorted(old for old, new in renamed.items() if new not in own)),
    )
    return model, report


def _modern(name: str) -> str:
    for old, new in OLD_NAMES.items():
        if name.endswith(old):
            name = name.removesuffix(old) + new
    return name if name.startswith(("bert.", "cls.")) else f"bert.{name}"
