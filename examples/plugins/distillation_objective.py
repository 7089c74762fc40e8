r"""Distillation beside masked language modelling: a model learns what another one thinks.

Hinton et al., "Distilling the knowledge in a neural network" (2015), section 2: at each masked
token the model's probabilities are drawn to those of a teacher that reads the same masked text,
both softened by a temperature, whose square keeps the two losses' gradients in proportion. The
teacher has the same tokenizer; it is frozen, in no checkpoint, and a run goes on with the same one
alone.

    TEACHER=runs/large maskery train text CORPUS --model small-model \
        --objective examples/plugins/distillation_objective.py:distillation

In Python: `train_text(config, objective=lambda parts: Distillation(parts, open_model(NAME)))`.

Shapes: M masked tokens, V tokens of the tokenizer.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from maskery import ConfigError, TextMLM, TextParts, open_model
from maskery.core.batch import TokenBatch
from maskery.data.tokenise import tokenizer_fingerprint
from maskery.models.layout import EncoderInputs
from maskery.models.own_model import weights_fingerprint
from maskery.objectives.mlm import mlm_loss_sum
from maskery.tasks.text_mlm import PreparedText

TEMPERATURE = 2.0
WEIGHT = 0.5  # of the teacher's probabilities; the true words have the rest


@dataclass(frozen=True, kw_only=True)
class PreparedDistillation(PreparedText):
    """A masked batch, also laid out for the teacher, which may be of another family."""

    teacher: EncoderInputs


class Distillation(TextMLM):
    """Masked language modelling, and a frozen teacher's probabilities.

    Args:
        teacher: What `open_model` returns.
    """

    def __init__(self, parts: TextParts, teacher: Any) -> None:
        if tokenizer_fingerprint(teacher.tokenizer) != tokenizer_fingerprint(parts.tokenizer):
            raise ConfigError(
                f"the teacher '{teacher.name}' cuts text into other tokens than the model, so it "
                f"cannot teach it; use one with the model's own tokenizer"
            )
        if parts.compile_backend is not None:
            raise ConfigError("--compile and a teacher do not go together; leave out --compile")
        super().__init__(parts.model, parts.masker)
        # No part of `self.model`, so that it is neither trained nor in checkpoints.
        self.teacher = teacher.model.eval().requires_grad_(False)
        self.loss_weights = {"mlm": 1 - WEIGHT, "distillation": WEIGHT}

    def prepare(self, batch: TokenBatch, *, epoch: int, progress: float) -> PreparedDistillation:
        """Mask a batch, and lay it out for both models."""
        masked = self.masker.mask(batch, epoch=epoch, progress=progress)
        return PreparedDistillation(
            inputs=self.lay_out(masked),
            targets=torch.from_numpy(masked.targets),
            counts=dict.fromkeys(self.loss_weights, len(masked.targets)),
            num_tokens=batch.num_tokens,
            teacher=self.teacher.lay_out(masked),
        )

    def loss_sums(self, prepared: PreparedText) -> Mapping[str, torch.Tensor]:
        """Return the cross-entropy of the true words, and the divergence from the teacher."""
        assert isinstance(prepared, PreparedDistillation)
        with torch.no_grad():
            taught = self.teacher.to(prepared.targets.device)(prepared.teacher)
        logits = self.model(prepared.inputs)
        own, others = (self._softened(rows) for rows in (logits, taught))
        divergence = F.kl_div(own, others, reduction="sum", log_target=True) * TEMPERATURE**2
        return {"mlm": mlm_loss_sum(logits, prepared.targets), "distillation": divergence}

    def _softened(self, logits: torch.Tensor) -> torch.Tensor:
        # Either model may have rows beyond the tokenizer's ids.
        known = logits[:, : self.masker.vocabulary.size].float()
        return F.log_softmax(known / TEMPERATURE, dim=1)


def distillation(parts: TextParts) -> Distillation:
    """Make the task with the teacher that $TEACHER names: a run, a model folder, a hub name."""
    return Distillation(parts, open_model(os.environ["TEACHER"]))


def teachers_weights() -> bytes:
    """Return what must be the same, beside this file, where a run goes on."""
    return weights_fingerprint(open_model(os.environ["TEACHER"]).model).encode()


distillation.run_identity = teachers_weights  # type: ignore[attr-defined]
