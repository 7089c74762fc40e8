"""A masked language model in two public calls: `hidden(inputs)`, then `logits(rows)`.

`hidden` encodes and keeps the rows that are asked for (the masked tokens); `logits` runs the
model's own head on rows alone, so the vocabulary projection, the costliest product of a small
encoder, is never computed for words that nobody asks about.

Shapes: B sequences, L padded length, T tokens, M rows asked for, D width, V vocabulary.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MethodType
from typing import Any, Self

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions

from maskery.core.batch import MaskedTokens, StaticShapes
from maskery.core.errors import ConfigError, ModelError
from maskery.models import layout
from maskery.models.layout import EncoderInputs

# Model types whose last encoder layer is `encoder.layer[-1]` with
# `attention.output(context, residual)` followed by `intermediate` and `output`, each row by row.
BERT_LIKE = frozenset({
    "bert", "camembert", "data2vec-text", "electra", "ernie", "roberta", "xlm-roberta",
    "xlm-roberta-xl",
})  # fmt: skip


class MaskedLanguageModel(nn.Module):
    """A Hugging Face masked language model, read through `hidden` and `logits`.

    Over several processes the training loop wraps the model (DDP) or shards it (FSDP), and only
    `forward` goes through the wrapper. So a task calls `model(inputs)` for logits, and
    `model(inputs, read=function)` for anything else: `function(model, rows)` runs inside.

    Args:
        hf: The model; trained and saved as it is.
        packed: True if batches are packed, False if they are padded.
        pad_token_id: Of the tokenizer.
        prune: Skip the last layer's feed-forward for rows that are not asked for, where that is
            exact.

    Raises:
        ModelError: The model's encoder cannot be told from its head.
    """

    def __init__(
        self, hf: PreTrainedModel, *, packed: bool, pad_token_id: int, prune: bool = True
    ) -> None:
        super().__init__()
        self.hf = hf
        self.packed = packed
        self.pad_token_id = pad_token_id
        self.head_names: tuple[str, ...] = ()
        base = getattr(hf, hf.base_model_prefix, None)
        if not isinstance(base, nn.Module) or base is hf:
            problem = f"{type(hf).__name__} has no base model '{hf.base_model_prefix}'"
            effect = "so its head cannot be split from its encoder"
            raise ModelError(f"{problem}, {effect}; use another encoder")
        # On the encoder itself, since two of our models may share one; and as a method of the
        # instance, which a deep copy (the momentum twin) binds to the copy.
        encoder: Any = base
        encoder.stand_in = None
        encoder.forward = MethodType(_stand_in_or_forward, encoder)
        # An object of its own: what copies or keeps the encoder takes the hook along, and must not
        # take this model and its heads along too.
        self._pruning = _Pruning()
        if prune and hf.config.model_type in BERT_LIKE:
            last_output = encoder.encoder.layer[-1].attention.output
            last_output.register_forward_pre_hook(self._pruning.gather)

    @property
    def base(self) -> Any:
        """Encoder inside, without its head."""
        # No attribute of its own: its parameters would have two names in a checkpoint.
        return getattr(self.hf, self.hf.base_model_prefix)

    @property
    def heads(self) -> Mapping[str, nn.Module]:
        """Heads that objectives have added, by name."""
        return {name: self.get_submodule(name) for name in self.head_names}

    def add_head(self, name: str, head: nn.Module) -> None:
        """Add a head of an objective's own, before the loop is made; its name must be free.

        It is trained and saved with the model. In `read`, it is `model.heads[name]`.
        """
        if hasattr(self, name):
            raise ConfigError(f"the model has a '{name}' already; give the head another name")
        self.add_module(name, head.to(self.hf.device))
        self.head_names += (name,)

    def lay_out(self, masked: MaskedTokens) -> EncoderInputs:
        """Turn a masked batch into forward arguments, on the CPU; rows are the masked tokens."""
        parts = masked.input_ids, masked.batch.boundaries, masked.positions
        if self.packed:
            return layout.pack(*parts, first_position=layout.first_position(self.hf.config))
        least = layout.least_length(self.hf.config)
        return layout.pad(*parts, pad_token_id=self.pad_token_id, least=least)

    def lay_out_static(
        self, masked: MaskedTokens, shapes: StaticShapes
    ) -> tuple[EncoderInputs, torch.Tensor]:
        """Turn a masked batch into those of constant shapes, and targets; for packed models."""
        assert self.packed
        start, pad_id = layout.first_position(self.hf.config), self.pad_token_id
        return layout.pack_static(masked, shapes, pad_token_id=pad_id, first_position=start)

    def forward(
        self, inputs: EncoderInputs, read: Callable[[Self, torch.Tensor], Any] | None = None
    ) -> Any:
        """Encode, and read the M rows: their logits (M, V), or what `read` returns.

        `read` is a function of this model and its hidden rows (M, D). It returns tensors, or a
        tuple, list or dict of them, so that FSDP finds them.
        """
        rows = self.hidden(inputs)
        return self.logits(rows) if read is None else read(self, rows)

    def hidden(self, inputs: EncoderInputs) -> torch.Tensor:
        """Encode; returns (M, D), the last hidden states of `inputs.rows`."""
        base, self._pruning.rows = self.base, inputs.rows
        try:
            output = base(**{base.main_input_name: inputs.input_ids}, **inputs.arguments)
        finally:
            self._pruning.rows = None
        hidden: torch.Tensor = output[0]
        if self._pruning.done:
            return hidden.reshape(-1, hidden.shape[-1])  # the M rows, in one sequence
        # Perceiver returns all of its positions, and Reformer what it was padded to.
        if hidden.dim() == 3:
            hidden = hidden[:, : inputs.input_ids.shape[1]]
        return hidden.reshape(-1, hidden.shape[-1]).index_select(0, inputs.rows)

    def logits(self, rows: torch.Tensor) -> torch.Tensor:
        """Run the model's own head; (M, D) hidden states to (M, V) logits."""
        # The head is whatever the family's forward does after its encoder. So the whole model is
        # called, and its encoder hands out the rows instead of reading the one token here.
        base = self.base
        base.stand_in = rows.unsqueeze(0)
        try:
            token = torch.zeros((1, 1), dtype=torch.int64, device=rows.device)
            logits: torch.Tensor = self.hf(input_ids=token).logits
        finally:
            base.stand_in = None
        return logits.reshape(-1, logits.shape[-1])


@dataclass
class _Rows(BaseModelOutputWithPoolingAndCrossAttentions):  # type: ignore[misc]  # untyped
    """Rows in the place of a base model's output; what else a family asks for is None."""

    def __getattr__(self, name: str) -> None:
        if not name.endswith(("_states", "_state", "_attentions")):
            raise AttributeError(name)

    @property
    def logits(self) -> Any:
        """Perceiver's name for its decoder's hidden states."""
        return self.last_hidden_state


def _stand_in_or_forward(base: Any, *args: Any, **kwargs: Any) -> Any:
    """Return `stand_in` in the place of an encoder's hidden states, where it is not None."""
    if base.stand_in is not None:
        return _Rows(last_hidden_state=base.stand_in)
    return type(base).forward(base, *args, **kwargs)


class _Pruning:
    """Compute the last layer's output projection and feed-forward for the rows asked for only.

    Exact, because everything after attention works row by row; see `BERT_LIKE`.
    """

    rows: torch.Tensor | None = None  # (M,) during a pass that may be pruned
    done = False  # True if the last pass was pruned

    def gather(self, _module: nn.Module, args: tuple[torch.Tensor, ...]) -> Any:
        """Keep the rows of what goes into the output projection; its forward pre-hook."""
        rows = self.rows
        self.done = rows is not None and len(args) == 2
        if rows is None or not self.done:
            return None
        return tuple(t.reshape(-1, t.shape[-1]).index_select(0, rows).unsqueeze(0) for t in args)
