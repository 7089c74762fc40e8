"""SigLIP's sigmoid loss (Zhai et al., ICCV 2023) as a loss term of image-text training.

    maskery train pairs PAIRS --term examples/plugins/siglip_term.py:SigLIP=0.5 --itc-weight 0

or from Python: `train_pairs(config, terms=[SigLIP()])`, or `LossTerm.of(SigLIP(), weight=0.5)` in
place of `SigLIP()`. Each image is compared with each text of the batch, of all processes, and every
pair is a yes-or-no question of its own: there is no softmax over the batch, and no queue.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from maskery.tasks.loss_terms import TermInputs


class SigLIP(nn.Module):
    """The sigmoid loss with a learnt temperature and bias (algorithm 1 of the paper).

    Attributes:
        label: For the report.
        heads: What the term trains: the projections that contrastive features come from.
        log_scale: Logarithm of what similarities are multiplied by; starts at 10.
        bias: Starts at -10, since nearly all pairs of a batch do not belong together.
    """

    label = "Sigmoid loss (SigLIP)"
    heads = ("vision_proj", "text_proj")

    def __init__(self) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(math.log(10.0)))
        self.bias = nn.Parameter(torch.tensor(-10.0))

    def forward(self, step: TermInputs) -> tuple[torch.Tensor, int]:
        """Sum of the losses of B images and G texts, and B: the paper divides by the batch."""
        images = step.features.image
        texts = step.crowd.gather_with_gradients(step.features.text)
        logits = images @ texts.T * self.log_scale.exp() + self.bias
        same = step.ids[:, None] == step.crowd.gather(step.ids)[None]
        signs = 2.0 * same.float() - 1.0
        return -F.logsigmoid(signs * logits).sum(), len(images)
