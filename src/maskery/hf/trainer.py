"""`masked_lm_trainer`: a Hugging Face `Trainer` that is ready to train a masked language model.

Rows that lie end to end need no padding to be computed, and the model stays the plain one, so that
saving, resuming, callbacks and everything else are the Trainer's own.
"""

import logging
from collections.abc import Collection, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainingArguments

from maskery.core.batch import MaskedTokens
from maskery.core.errors import ConfigError
from maskery.data.rows import Row
from maskery.hf.collator import MaskCollator
from maskery.masking.config import MaskingConfig
from maskery.models import attention
from maskery.models.attention import use_fast_dropout
from maskery.models.layout import PACKABLE, can_pack, first_position, pack
from maskery.training.config import TrainingConfig
from maskery.training.optimiser import PEAK, build_optimiser

log = logging.getLogger(__name__)


def masked_lm_trainer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Any,
    args: TrainingArguments,
    *,
    masking: MaskingConfig | None = None,
    new_parameters: Collection[str] = (),
    head_learning_rate: float | None = None,
    **others: Any,
) -> Trainer:
    """Make the Trainer of a masked language model, packed where its family can be packed.

    Args:
        model: Any `AutoModelForMaskedLM`; its attention implementation and its dropout modules are
            replaced by Maskery's, which compute the same.
        rows: A dataset with `input_ids`; `maskery.data.rows.tokenise_rows` makes one from texts.
        args: The Trainer's settings; `args.seed` decides the masks.
        masking: Policy, rate and shares; BERT's if None.
        new_parameters: Names of parameters that start from nothing, such as those of a new head
            (`load_masked_lm(...).new_parameters`).
        head_learning_rate: Their peak learning rate. Default: ten times the other, at most 1e-3.
        **others: Further arguments of `Trainer`: `eval_dataset`, `callbacks` and so on.

    Raises:
        ModelError: The tokenizer has no mask token.
        ConfigError: `args.optim` takes no parameter groups, and there are new parameters.
    """
    pad_token_id = int(tokenizer.pad_token_id or 0)
    if model.config.model_type in PACKABLE:
        model.set_attn_implementation(attention.NAME)
    packed, reason = can_pack(model, pad_token_id)
    if args.n_gpu > 1:  # its threads would cut a packed row in two
        packed, reason = False, "one process with several GPUs; start with torchrun to pack"
    kind = PackedCollator if packed else MaskCollator
    collator = kind(tokenizer, masking, seed=args.seed)
    if isinstance(collator, PackedCollator):
        collator.first_position = first_position(model.config)
        args.prediction_loss_only = True  # packed logits of different batches have no common shape
    else:
        log.warning("batches are padded: %s", reason)
    use_fast_dropout(model)
    if new_parameters:
        optimiser = grouped_optimiser(model, args, new_parameters, head_learning_rate)
        others.setdefault("optimizers", (optimiser, None))
    return Trainer(
        model=model,
        args=args,
        train_dataset=rows,
        data_collator=collator,
        processing_class=tokenizer,
        **others,
    )


class PackedCollator(MaskCollator):
    """Masks rows and lays them end to end, for a model with Maskery's attention."""

    first_position = 0  # Of a row's first token; not 0 for a model that counts on from padding

    def arrange(self, masked: MaskedTokens, rows: Sequence[Row]) -> dict[str, Any]:
        """Lay a masked batch out: (1, T) ids and labels, and the rows' boundaries."""
        del rows
        ids, boundaries, start = masked.input_ids, masked.batch.boundaries, self.first_position
        inputs = pack(ids, boundaries, masked.positions, first_position=start)
        labels = torch.from_numpy(masked.labels()).unsqueeze(0)
        return {"input_ids": inputs.input_ids, "labels": labels, **inputs.arguments}


def grouped_optimiser(
    model: PreTrainedModel,
    args: TrainingArguments,
    new_parameters: Collection[str],
    head_learning_rate: float | None = None,
) -> torch.optim.Optimizer:
    """Make the optimiser that `args.optim` names, with a learning rate for new parameters."""
    kind, settings = Trainer.get_optimizer_cls_and_kwargs(args, model)
    if not isinstance(kind, type) or settings.keys() & {"params", "model"}:
        fix = "use adamw_torch_fused, or pass your own optimiser in optimizers=(optimiser, None)"
        raise ConfigError(f"optim is '{args.optim}', which groups parameters itself; {fix}")
    rates = TrainingConfig(
        learning_rate=args.learning_rate,
        head_learning_rate=head_learning_rate,
        weight_decay=args.weight_decay,
    )
    groups = build_optimiser(model, rates, new_parameters).param_groups
    named = [
        {"params": g["params"], "lr": g[PEAK], "weight_decay": g["weight_decay"]} for g in groups
    ]
    optimiser: torch.optim.Optimizer = kind(named, **settings)
    return optimiser
