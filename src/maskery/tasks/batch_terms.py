"""Loss terms of a dual encoder: features of the batch of all processes are compared both ways.

They are loaded when `--term` names them, and are such terms as users write; see
`maskery.objectives.terms`. All are float32.

Shapes: B pairs of this process, G of all processes, E features.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from maskery.core.errors import ConfigError
from maskery.objectives.itc import similarities
from maskery.objectives.terms import PROJECTIONS, TEMPERATURE
from maskery.tasks.loss_terms import TermInputs

# From similarities (B, G) in [-1, 1] and (B, G) bool, True for the same person, to (B,) losses.
Rows = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def compared(step: TermInputs, rows: Rows) -> tuple[torch.Tensor, int]:
    """Sum the losses both ways, to all processes; returns that, and B, as the papers divide."""
    sides = [step.features.image, step.features.text]
    same = step.ids[:, None] == step.crowd.gather(step.ids)[None]
    unscaled, total = step.temperature.new_ones(()), torch.zeros((), device=same.device)
    for asked, columns in (sides, sides[::-1]):
        everyone = step.crowd.gather_with_gradients(columns)
        losses = rows(similarities(asked, everyone, unscaled), same)
        total = total + (losses * step.trust).sum()
    return total, len(same)


def sdm_rows(scores: torch.Tensor, same: torch.Tensor) -> torch.Tensor:
    """Similarity distribution matching: IRRA (Jiang and Ye, CVPR 2023), section 3.3.

    The divergence KL(p || q) of the softmax p at a temperature of 0.02 from q, spread evenly over
    the same person's columns. The logarithm of q is kept finite as released.
    """
    logarithms = F.log_softmax(scores / 0.02, dim=1)
    targets = same.float() / same.sum(dim=1, keepdim=True)
    return (logarithms.exp() * (logarithms - torch.log(targets + 1e-8))).sum(dim=1)


def tal_rows(scores: torch.Tensor, same: torch.Tensor) -> torch.Tensor:
    """Triplet alignment loss: RDE (Qin et al., CVPR 2024).

    Positives stay a margin of 0.1 above the soft maximum of all negatives, at a temperature of
    0.015. They are weighted by their own softmax, through which, as released, no gradient flows.
    """
    logits = scores / 0.015
    weights = F.softmax(logits.masked_fill(~same, float("-inf")), dim=1).detach()
    # Finite where nobody else is in the batch, so that the gradient is 0 and no NaN.
    others = logits.masked_fill(same, torch.finfo(logits.dtype).min).logsumexp(dim=1)
    return (0.1 - (weights * scores).sum(dim=1) + 0.015 * others).clamp(min=0)


def sdm(step: TermInputs) -> tuple[torch.Tensor, int]:
    """Return the sum of `sdm_rows` both ways, and B."""
    return compared(step, sdm_rows)


def tal(step: TermInputs) -> tuple[torch.Tensor, int]:
    """Return the sum of `tal_rows` both ways, and B."""
    return compared(step, tal_rows)


SDM, TAL = sdm, tal  # as `maskery.objectives.terms` names all of them


class INFONCE:
    """CLIP's contrast (Radford et al., ICML 2021, figure 3), with the model's learnt temperature.

    Another picture of the same person counts as wrong.
    """

    name, heads = "infonce", (*PROJECTIONS, TEMPERATURE)

    def __call__(self, step: TermInputs) -> tuple[torch.Tensor, int]:
        """Return half the sum of both ways, and B."""

        def rows(scores: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
            return F.cross_entropy(scores / step.temperature, step.crowd.mine, reduction="none")

        total, count = compared(step, rows)
        return total / 2, count


class SIGMOID(nn.Module):
    """SigLIP's loss (Zhai et al., ICCV 2023, algorithm 1), with the model's learnt temperature.

    The learnt bias starts as that of a SigLIP model, otherwise as in the paper: at -10, since
    nearly all pairs of a batch do not belong together.
    """

    name, heads = "sigmoid", (*PROJECTIONS, TEMPERATURE)

    def __init__(self, model: Any) -> None:
        super().__init__()
        bias = getattr(model, "logit_bias", None)
        self.bias = nn.Parameter(torch.tensor(-10.0 if bias is None else float(bias)))

    def forward(self, step: TermInputs) -> tuple[torch.Tensor, int]:
        """Return half the sum of both ways, which hold every pair each, and B."""

        def rows(scores: torch.Tensor, same: torch.Tensor) -> torch.Tensor:
            logits = scores / step.temperature + self.bias
            return -F.logsigmoid(torch.where(same, logits, -logits)).sum(dim=1)

        total, count = compared(step, rows)
        return total / 2, count


class ID(nn.Module):
    """IRRA's instance loss: one classifier names the training person of either feature.

    As in its release, of features before they are made unit length, the mean of both.
    """

    name = "id"

    def __init__(self, model: Any, pairs: Any) -> None:
        super().__init__()
        if pairs is None or np.bincount(pairs.persons).max() < 2:
            missing = "no training person has a second picture to be known by"
            fix = "leave the term out, or bring pictures of the same persons"
            raise ConfigError(f"--term id learns to name persons, and {missing}; {fix}")
        self.classifier = nn.Linear(model.config.embed_dim, len(pairs.person_names))
        nn.init.normal_(self.classifier.weight, std=0.001)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, step: TermInputs) -> tuple[torch.Tensor, int]:
        """Return the sum over B pairs, and B."""
        image = step.model.image_feature(step.image_tokens, unit=False)
        text = step.model.text_feature(step.caption, step.caption_mask, unit=False)
        with torch.autocast(image.device.type, enabled=False):
            logits = self.classifier(image.float()), self.classifier(text.float())
        seen, read = (F.cross_entropy(each, step.ids, reduction="none") for each in logits)
        # Whoever the caption is of, the picture is of its person.
        return (seen + read * step.trust).sum() / 2, len(step.ids)
