"""Loss terms of a dual encoder: features of the batch of all processes are compared both ways.

They are loaded when `--term` names them, and are such terms as users write; see
`maskery.objectives.terms`. The formulas are in `maskery.objectives.batch`.

Shapes: B pairs of this process, G of all processes, E features.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from maskery.core.errors import ConfigError
from maskery.objectives.batch import infonce_rows, sdm_rows, sigmoid_rows, tal_rows
from maskery.objectives.itc import similarities
from maskery.objectives.terms import PROJECTIONS, TEMPERATURE
from maskery.tasks.loss_terms import TermInputs

Rows = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def compared(step: TermInputs, rows: Rows, *, both_ways: bool = True) -> tuple[torch.Tensor, int]:
    """Ask images for the texts of all processes and, `both_ways`, texts for the images.

    `rows` turns similarities (B, G) in [-1, 1] and (B, G) bool, True for the same person, into (B,)
    losses. Returns their sum over both directions, and B: the papers' mean over the batch.
    """
    sides = [step.features.image, step.features.text]
    same = step.ids[:, None] == step.crowd.gather(step.ids)[None]
    unscaled, total = step.temperature.new_ones(()), torch.zeros((), device=same.device)
    for asked, columns in (sides, sides[::-1]) if both_ways else (sides,):
        everyone = step.crowd.gather_with_gradients(columns)
        losses = rows(similarities(asked, everyone, unscaled), same)
        total = total + (losses * step.trust).sum()
    return total, len(same)


def sdm(step: TermInputs) -> tuple[torch.Tensor, int]:
    """Similarity distribution matching, at IRRA's fixed temperature of 0.02."""
    return compared(step, sdm_rows)


def tal(step: TermInputs) -> tuple[torch.Tensor, int]:
    """RDE's triplet alignment loss, at its temperature of 0.015 and margin of 0.1."""
    return compared(step, tal_rows)


class InfoNCE:
    """CLIP's contrastive loss, the mean of both ways; the model's temperature is learnt."""

    name, heads = "infonce", (*PROJECTIONS, TEMPERATURE)

    def __call__(self, step: TermInputs) -> tuple[torch.Tensor, int]:
        """Return half the sum of both ways, and B."""
        own = F.one_hot(step.crowd.mine, sum(step.crowd.sizes)).bool()
        total, count = compared(step, lambda s, _: infonce_rows(s / step.temperature, own))
        return total / 2, count


class Sigmoid(nn.Module):
    """SigLIP's loss with its learnt temperature and bias.

    Both start as those of a SigLIP model that training starts from, otherwise as in the paper: at
    10, and at -10, since nearly all pairs of a batch do not belong together.
    """

    name = "sigmoid"

    def __init__(self, model: Any) -> None:
        super().__init__()
        bias = getattr(model, "logit_bias", None)
        scale = math.log(10.0) if bias is None else -math.log(float(model.temp))
        self.log_scale = nn.Parameter(torch.tensor(scale))
        self.bias = nn.Parameter(torch.tensor(-10.0 if bias is None else float(bias)))

    def forward(self, step: TermInputs) -> tuple[torch.Tensor, int]:
        """Return the sum over all pairs of B images and G texts, and B."""
        scale, bias = self.log_scale.exp(), self.bias
        return compared(step, lambda s, same: sigmoid_rows(s * scale + bias, same), both_ways=False)


class Identity(nn.Module):
    """IRRA's instance loss: one classifier names the training person of either feature.

    Zheng et al. (2017), as in IRRA's release: of features before they are made unit length, the
    mean of both cross-entropies.
    """

    name, heads = "id", PROJECTIONS

    def __init__(self, model: Any, pairs: Any) -> None:
        super().__init__()
        if pairs is None or np.bincount(pairs.persons).max() < 2:
            raise ConfigError(
                "--term id learns to name persons, and no training person has a second picture to "
                "be known by; leave the term out, or bring pictures of the same persons"
            )
        self.classifier = nn.Linear(model.config.embed_dim, len(pairs.person_names))
        nn.init.normal_(self.classifier.weight, std=0.001)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, step: TermInputs) -> tuple[torch.Tensor, int]:
        """Return the sum over B pairs, and B."""
        both = torch.stack((step.projected.image, step.projected.text))
        with torch.autocast(both.device.type, enabled=False):
            logits = self.classifier(both.float())
        image, text = (F.cross_entropy(each, step.ids, reduction="none") for each in logits)
        # Whoever the caption is of, the picture is of its person.
        return (image + text * step.trust).sum() / 2, len(step.ids)
