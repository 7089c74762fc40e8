"""A masked language model that also says of tokens whether they were replaced.

Clark et al., "ELECTRA" (ICLR 2020), section 2; Bai et al., "RaSa" (IJCAI 2023), section 3.3.

Shapes: M masked tokens, P judged tokens, D width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from maskery.models.layout import EncoderInputs
from maskery.models.masked_lm import MaskedLanguageModel, with_first

HEAD = "mrtd_head"


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What one pass over masked and replaced text gives.

    Attributes:
        logits: (M, V), scores over the vocabulary at the masked tokens.
        judgements: (P, 2), scores of original against replaced at the judged tokens.
    """

    logits: torch.Tensor
    judgements: torch.Tensor


class ReplacedTokenModel(MaskedLanguageModel):
    """`MaskedLanguageModel` with a second head on the same encoder.

    The Hugging Face model inside is untouched, so it is saved and used as the plain masked language
    model that it is.

    Args:
        hf: As for `MaskedLanguageModel`.
        packed: Likewise.
        pad_token_id: Likewise.
        seed: Of the new head's weights.

    Attributes:
        mrtd_head: (D to 2), original against replaced.
    """

    def __init__(
        self, hf: PreTrainedModel, *, packed: bool, pad_token_id: int, seed: int = 0
    ) -> None:
        super().__init__(hf, packed=packed, pad_token_id=pad_token_id)
        self.mrtd_head = nn.Linear(hf.config.hidden_size, 2, device=hf.device)
        with torch.random.fork_rng(devices=[]):
            generator = torch.Generator().manual_seed(seed)
            weights = torch.randn(self.mrtd_head.weight.shape, generator=generator)
        with torch.no_grad():
            self.mrtd_head.weight.copy_(weights * hf.config.hidden_size**-0.5)
            self.mrtd_head.bias.zero_()
        self._num_masked: int | None = None
        self._judged = torch.empty(0)

    def forward(self, inputs: EncoderInputs, num_masked: int | None = None) -> Any:
        """Read once, answer twice.

        Args:
            inputs: Its rows are the M masked tokens and, after them, the P judged ones.
            num_masked: M; None where every row is a masked token.

        Returns:
            A `Reading`; with `num_masked` None the logits alone, as `MaskedLanguageModel`.
        """
        if num_masked is None:
            return super().forward(inputs)
        self._num_masked = num_masked
        try:
            logits = super().forward(inputs)
            return Reading(logits=logits, judgements=self.mrtd_head(self._judged))
        finally:
            self._num_masked, self._judged = None, torch.empty(0)

    def _keep_masked_rows(self, module: nn.Module, args: Any, output: Any) -> Any:
        kept = super()._keep_masked_rows(module, args, output)
        if kept is None or self._num_masked is None:
            return kept
        hidden: torch.Tensor = kept[0]
        self._judged = hidden[0, self._num_masked :]
        return with_first(kept, hidden[:, : self._num_masked])
