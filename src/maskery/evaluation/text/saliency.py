"""Which words a prediction hangs on: gradient times input.

How much the log-probability of the predicted token would change as each word's vector shrinks, to
first order (Denil, Demiraj and de Freitas, "Extraction of salient sentences from labelled
documents", 2014). It says what the prediction reacts to, not why.

Shapes: L tokens, D width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from maskery.core.errors import DataError
from maskery.evaluation.text.fill import Filler
from maskery.evaluation.text.words_of_text import TextReader, Word


@dataclass(frozen=True, kw_only=True)
class Saliency:
    """What one mask's prediction hangs on.

    Attributes:
        token: The token whose probability is looked at.
        probability: That probability.
        words: The words of the text.
        weights: Of each, not negative; they sum to 1.
    """

    token: str
    probability: float
    words: tuple[Word, ...]
    weights: tuple[float, ...]


def saliency(filler: Filler, reader: TextReader, text: str, *, mask: int = 0) -> Saliency:
    """What the likeliest token of a mask hangs on.

    Args:
        filler: The model.
        reader: Cuts the text into words.
        text: With at least one mask, as the tokenizer writes it.
        mask: Which, from 0.

    Raises:
        DataError: There are fewer masks, or the text is too long.
    """
    ids = torch.tensor([filler.encode(text)])
    held: list[torch.Tensor] = []

    def keep(module: Any, arguments: Any, output: torch.Tensor) -> torch.Tensor:
        del module, arguments
        held.append(output.detach().requires_grad_())
        return held[0]

    hook = filler.embeddings.register_forward_hook(keep)
    try:
        with torch.enable_grad():
            logits = filler.logits(ids).float()
            if mask >= len(logits):
                raise DataError(
                    f"mask {mask + 1} is asked for and the text has {len(logits)}; name another"
                )
            logs = logits[mask].log_softmax(dim=-1)
            token = int(logs.argmax())
            (gradient,) = torch.autograd.grad(logs[token], held[0])
    finally:
        hook.remove()
    norms = (gradient * held[0]).detach().norm(dim=-1).flatten().cpu()
    words = reader.read(text).words
    sums = [float(norms[word.first : word.last].sum()) for word in words]
    total = sum(sums) or 1.0
    return Saliency(
        token=filler.tokenizer.decode([token]).strip(),
        probability=float(logs[token].detach().exp()),
        words=words,
        weights=tuple(value / total for value in sums),
    )
