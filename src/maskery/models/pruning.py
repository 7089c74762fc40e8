"""The last layer computes its output projection and feed-forward for masked rows only.

Exact, because everything after attention works row by row: in a BERT-like layer the attention's
output projection receives (context, residual), and both can be gathered there.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

# Model types whose last encoder layer is `encoder.layer[-1]` with
# `attention.output(context, residual)` followed by `intermediate` and `output`, each row by row.
BERT_LIKE = frozenset(
    {
        "bert",
        "camembert",
        "data2vec-text",
        "electra",
        "ernie",
        "roberta",
        "xlm-roberta",
        "xlm-roberta-xl",
        "xmod",
    }
)


class LastLayerPruning:
    """Gathers rows before the last layer's output projection.

    Attributes:
        rows: (M,) int64 during a forward pass that may be pruned, else None.
        done: Whether the current pass was pruned.
    """

    def __init__(self, output: nn.Module) -> None:
        self.rows: torch.Tensor | None = None
        self.done = False
        output.register_forward_pre_hook(self._gather)

    @classmethod
    def of(cls, hf: PreTrainedModel) -> LastLayerPruning | None:
        """For a family where it is known to be exact, else None."""
        if hf.config.model_type not in BERT_LIKE:
            return None
        base = getattr(hf, hf.base_model_prefix)
        return cls(base.encoder.layer[-1].attention.output)

    def _gather(self, module: nn.Module, args: tuple[torch.Tensor, ...]) -> Any:
        del module
        self.done = self.rows is not None and len(args) == 2
        if self.rows is None or not self.done:
            return None
        context, residual = args
        width, wide = context.shape[-1], residual.shape[-1]
        return (
            context.reshape(-1, width).index_select(0, self.rows).unsqueeze(0),
            residual.reshape(-1, wide).index_select(0, self.rows).unsqueeze(0),
        )
