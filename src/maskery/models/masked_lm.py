"""Any `AutoModelForMaskedLM`, computing its vocabulary projection on masked tokens alone.

Shapes: B sequences, L padded length, T tokens, M masked tokens, D width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from maskery.core.batch import MaskedTokens, StaticShapes
from maskery.core.errors import ModelError
from maskery.models.layout import EncoderInputs, pack, pad
from maskery.models.packing import first_position
from maskery.models.pruning import LastLayerPruning
from maskery.models.static_layout import StaticInputs, pack_static


class MaskedLanguageModel(nn.Module):
    """A Hugging Face masked language model that returns the logits of the masked tokens.

    A forward hook on the base model replaces its last hidden state by the masked rows, shaped
    (1, M, D); the model's own head, its tying and its bias stay as they are.

    Args:
        hf: The model; trained and saved as it is.
        packed: Whether batches are packed or padded.
        pad_token_id: Of the tokenizer.
        prune: Whether the last layer skips rows that no label needs, where that is exact.
    """

    def __init__(
        self, hf: PreTrainedModel, *, packed: bool, pad_token_id: int, prune: bool = True
    ) -> None:
        super().__init__()
        self.hf = hf
        self.packed = packed
        self.pad_token_id = pad_token_id
        self._rows: torch.Tensor | None = None
        base = getattr(hf, hf.base_model_prefix, None)
        if not isinstance(base, nn.Module) or base is hf:
            raise ModelError(
                f"{type(hf).__name__} has no base model '{hf.base_model_prefix}', so its head "
                f"cannot be split from its encoder; use another encoder"
            )
        self._pruning = LastLayerPruning.of(hf) if prune else None
        base.register_forward_hook(self._keep_masked_rows)

    def lay_out(self, masked: MaskedTokens) -> EncoderInputs:
        """Turn a masked batch into forward arguments, on the CPU."""
        ids, boundaries = masked.input_ids, masked.batch.boundaries
        if self.packed:
            start = first_position(self.hf.config)
            return pack(ids, boundaries, masked.positions, first_position=start)
        return pad(ids, boundaries, masked.positions, pad_token_id=self.pad_token_id)

    def lay_out_static(self, masked: MaskedTokens, shapes: StaticShapes) -> StaticInputs:
        """The same with constant shapes; for packed models."""
        assert self.packed
        return pack_static(
            masked,
            shapes,
            pad_token_id=self.pad_token_id,
            first_position=first_position(self.hf.config),
        )

    def forward(self, inputs: EncoderInputs) -> torch.Tensor:
        """The logits of the masked tokens: (M, V)."""
        self._rows = inputs.rows
        if self._pruning is not None:
            self._pruning.rows = inputs.rows
        try:
            output = self.hf(input_ids=inputs.input_ids, **inputs.arguments)
        finally:
            self._rows = None
            if self._pruning is not None:
                self._pruning.rows = None
        logits: torch.Tensor = output.logits
        return logits.reshape(-1, logits.shape[-1])

    def _keep_masked_rows(self, module: nn.Module, args: Any, output: Any) -> Any:
        del module, args
        if self._rows is None:
            return None
        hidden: torch.Tensor = output[0]
        if self._pruning is None or not self._pruning.done:
            hidden = hidden.reshape(-1, hidden.shape[-1]).index_select(0, self._rows).unsqueeze(0)
        return with_first(output, hidden)


def with_first(output: Any, hidden: torch.Tensor) -> Any:
    """A base model's output with another last hidden state."""
    if isinstance(output, ModelOutput):
        first = next(iter(output.keys()))
        return type(output)(**{**output, first: hidden})
    return (hidden, *output[1:])
