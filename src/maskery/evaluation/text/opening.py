"""Opening a model for evaluation: a run folder, a model folder, a hub name or `minilm`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from maskery.core.errors import ModelError
from maskery.models.loading import load_masked_lm
from maskery.models.masked_lm import MaskedLanguageModel
from maskery.models.packing import can_pack


@dataclass(frozen=True, kw_only=True)
class OpenModel:
    """A model ready for use.

    Attributes:
        name: As given.
        model: In evaluation mode, on the GPU where there is one.
        tokenizer: Its tokenizer.
    """

    name: str
    model: MaskedLanguageModel
    tokenizer: PreTrainedTokenizerBase


def open_model(name: str, *, trained_head: bool = True) -> OpenModel:
    """Load a model by name.

    Args:
        name: A run folder, a model folder, a hub name or `minilm`.
        trained_head: Whether a model whose prediction head would start from noise is refused.

    Raises:
        ModelError: It cannot be loaded, or has no trained head.
    """
    loaded = load_masked_lm(name)
    if trained_head and loaded.new_parameters:
        raise ModelError(
            f"'{name}' has no masked-language-modelling head of its own, so its predictions would "
            f"be noise; train one first: maskery train text CORPUS --model {name}"
        )
    pad = int(loaded.tokenizer.pad_token_id or 0)
    packed, _ = can_pack(loaded.model, pad)
    model = MaskedLanguageModel(loaded.model, packed=packed, pad_token_id=pad)
    if torch.cuda.is_available():
        model.cuda()
    return OpenModel(name=name, model=model.eval(), tokenizer=loaded.tokenizer)
