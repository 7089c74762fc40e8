"""For a script that has a model, a tokenizer, rows and `TrainingArguments`: its Trainer."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

from maskery.data.plan import Layout
from maskery.data.rows import Row, RowSource
from maskery.hf.trainer import MaskedLMTrainer
from maskery.masking.config import MaskingConfig
from maskery.masking.masker import Masker
from maskery.models import attention
from maskery.models.dropout import use_fast_dropout
from maskery.models.layout import PACKABLE, can_pack
from maskery.models.masked_lm import MaskedLanguageModel
from maskery.tasks.text_mlm import TextMLM

log = logging.getLogger(__name__)


def masked_lm_trainer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Row],
    args: TrainingArguments,
    *,
    masking: MaskingConfig | None = None,
    batch_tokens: int = 4096,
    micro_tokens: int | None = None,
    **others: Any,
) -> MaskedLMTrainer:
    """The Trainer of a masked language model, packed where its family can be packed.

    Args:
        model: Any `AutoModelForMaskedLM`; its attention implementation and its dropout modules are
            replaced by Maskery's, which compute the same.
        tokenizer: Of the model; saved beside it.
        rows: With `input_ids`; `maskery.data.rows.tokenise_rows` makes them from texts.
        args: The Trainer's settings; `args.seed` decides masks, order and dropout.
        masking: Policy, rate and shares; BERT's if None.
        batch_tokens: The most tokens of an optimiser step, in the place of a batch size.
        micro_tokens: The most tokens computed at once. Default: `batch_tokens`.
        **others: Of `MaskedLMTrainer`: callbacks, evaluate, new_parameters and so on.

    Raises:
        ModelError: The tokenizer has no mask token.
        ConfigError: An argument would have no effect.
    """
    pad_token_id = int(tokenizer.pad_token_id or 0)
    if model.config.model_type in PACKABLE:
        attention.register()
        model.set_attn_implementation(attention.NAME)
    packed, reason = can_pack(model, pad_token_id)
    if not packed:
        log.warning("batches are grouped by length and padded: %s", reason)
    layout: Layout = "packed" if packed else "padded"
    wrapped = MaskedLanguageModel(model, packed=packed, pad_token_id=pad_token_id)
    use_fast_dropout(wrapped)
    masker = Masker.of(tokenizer, masking, seed=args.seed)
    source = RowSource(
        rows, batch_tokens=batch_tokens, micro_tokens=micro_tokens, layout=layout, seed=args.seed
    )
    task = TextMLM(wrapped, masker, pin_memory=torch.cuda.is_available())
    return MaskedLMTrainer(task, source, args, processing_class=tokenizer, **others)
