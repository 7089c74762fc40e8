"""Losses that compare the images and texts of a batch, both ways: SDM, TAL, InfoNCE, sigmoid.

Each gives one loss a row, of one direction: images asked for texts, or texts for images. All are
float32, of similarities in [-1, 1].

Shapes: B rows of this process, G columns of all processes.
"""

import torch
import torch.nn.functional as F

# Keeps the logarithm of a target of 0 finite, as released with IRRA and RDE.
EPSILON = 1e-8


def sdm_rows(scores: torch.Tensor, same: torch.Tensor, temperature: float = 0.02) -> torch.Tensor:
    """Match the distribution of similarities with that of identities: (B, G) to (B,), in nats.

    IRRA (Jiang and Ye, CVPR 2023), section 3.3, equations 6 to 8: the divergence KL(p || q) of the
    softmax p from q, spread evenly over the columns of the same person (`same`, (B, G) bool).
    """
    logarithms = F.log_softmax(scores / temperature, dim=1)
    targets = same.float() / same.sum(dim=1, keepdim=True)
    return (logarithms.exp() * (logarithms - torch.log(targets + EPSILON))).sum(dim=1)


def tal_rows(
    scores: torch.Tensor, same: torch.Tensor, temperature: float = 0.015, margin: float = 0.1
) -> torch.Tensor:
    """Keep positives a margin above the soft maximum of all negatives: (B, G) to (B,).

    RDE (Qin et al., CVPR 2024), its triplet alignment loss. Positives are weighted by their own
    softmax, through which, as released, no gradient flows.
    """
    logits = scores / temperature
    weights = F.softmax(logits.masked_fill(~same, float("-inf")), dim=1).detach()
    # Finite where nobody else is in the batch, so that the gradient is 0 and no NaN.
    others = logits.masked_fill(same, torch.finfo(logits.dtype).min).logsumexp(dim=1)
    return (margin - (weights * scores).sum(dim=1) + temperature * others).clamp(min=0)


def infonce_rows(logits: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    """Tell the own column (`own`, (B, G) bool) from all others: (B, G) to (B,), in nats.

    CLIP (Radford et al., ICML 2021), figure 3; another picture of the same person counts as wrong.
    """
    return -F.log_softmax(logits, dim=1)[own]


def sigmoid_rows(logits: torch.Tensor, same: torch.Tensor) -> torch.Tensor:
    """Ask of every column if it belongs to the row: (B, G) to (B,), in nats.

    SigLIP (Zhai et al., ICCV 2023), algorithm 1; one direction holds every pair.
    """
    return -F.logsigmoid(torch.where(same, logits, -logits)).sum(dim=1)
