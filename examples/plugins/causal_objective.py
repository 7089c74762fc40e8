r"""Causal language modelling of a share of the examples, beside masked language modelling.

Charpentier and Samuel, "GPT or BERT: why not both?" (BabyLM 2024); a phase that is all causal goes
before a masked one in arXiv 2605.12438. In each epoch, a share of the texts is read from left to
right: each token sees those before it, and predicts the next. GPT-BERT also predicts masked tokens
from the place before them, so that both losses share one read-out. Here they are predicted in their
own place: the model stays a masked language model, for `maskery fill`, `score` and Transformers.

    CAUSAL_SHARE=0.3 maskery train text CORPUS \
        --objective examples/plugins/causal_objective.py:causal

Held-out figures are those of masked tokens. Shapes: B sequences, T tokens, M predicted tokens.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch

from maskery import ConfigError, TextMLM, TextParts
from maskery.core.batch import TokenBatch
from maskery.core.random import to_uniforms
from maskery.masking.policies import Draws
from maskery.models.layout import PACKABLE
from maskery.objectives.mlm import mlm_loss_sum
from maskery.tasks.text_mlm import PreparedText


class Causal(TextMLM):
    """Next tokens of some texts, masked tokens of the others, in one pass; `share` is in [0, 1]."""

    def __init__(self, parts: TextParts, share: float) -> None:
        if not 0.0 <= share <= 1.0:
            raise ConfigError(f"CAUSAL_SHARE is {share}: it must be from 0 to 1; try 0.3")
        if parts.compile_backend is not None:
            raise ConfigError("--compile and causal texts do not go together; leave out --compile")
        if not parts.model.packed:
            raise ConfigError(
                f"causal texts need packed batches, and those of "
                f"'{parts.model.hf.config.model_type}' are padded; leave out --layout padded, or "
                f"use a model of {', '.join(sorted(PACKABLE))}"
            )
        super().__init__(parts.model, parts.masker)
        self.share, self.loss_weights = share, {"mlm": 1.0 - share, "causal": share}

    def prepare(self, batch: TokenBatch, *, epoch: int, progress: float) -> PreparedText:
        """Mask a batch, and give causal texts back as they were."""
        masked = self.masker.mask(batch, epoch=epoch, progress=progress)
        causal = np.repeat(self.chosen(batch, epoch), batch.lengths)
        # The next token of the same sequence, if it is one that could be masked.
        before = ~self.masker.vocabulary.protected[batch.input_ids]
        before[batch.boundaries[:-1][batch.lengths > 0]] = False
        before = np.flatnonzero(causal & np.append(before[1:], False))
        kept = ~causal[masked.positions]
        read = replace(
            masked,
            input_ids=np.where(causal, batch.input_ids, masked.input_ids),
            positions=np.concatenate((masked.positions[kept], before)),
            targets=np.concatenate((masked.targets[kept], batch.input_ids[before + 1])),
        )
        inputs, all_causal = self.lay_out(read), self.share == 1.0
        flags = True if all_causal else torch.from_numpy(causal)
        return PreparedText(
            inputs=replace(inputs, arguments={**inputs.arguments, "causal": flags}),
            targets=torch.from_numpy(read.targets),
            counts={"mlm": int(kept.sum()), "causal": len(before)},
            num_tokens=batch.num_tokens,
        )

    def chosen(self, batch: TokenBatch, epoch: int) -> np.ndarray:
        """Return which sequences are causal this time: (B,) bool, by their text's id alone."""
        first = np.zeros(len(batch.lengths), np.int64)
        draws = Draws(seed=self.masker.seed, epoch=epoch)
        return to_uniforms(draws.at("causal", batch.example_ids, first)) < self.share

    def loss_sums(self, prepared: PreparedText) -> Mapping[str, torch.Tensor]:
        """Return the cross-entropy of masked tokens and of next tokens, each summed."""
        sizes = [prepared.counts[name] for name in self.loss_weights]
        logits = self.model(prepared.inputs).split(sizes)
        sums = map(mlm_loss_sum, logits, prepared.targets.split(sizes))
        return dict(zip(self.loss_weights, sums, strict=True))


def causal(parts: TextParts) -> Causal:
    """Make the task with the share that $CAUSAL_SHARE names."""
    return Causal(parts, float(os.environ.get("CAUSAL_SHARE", "0.3")))


def share_of_run() -> bytes:
    """Return what must be the same, beside this file, where a run goes on."""
    return os.environ.get("CAUSAL_SHARE", "0.3").encode()


causal.run_identity = share_of_run  # type: ignore[attr-defined]
