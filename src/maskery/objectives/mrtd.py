"""Momentum-based replaced token detection (MRTD).

Bai et al., "RaSa" (IJCAI 2023), section 3.3: a momentum model fills masked words by sampling from
its own prediction, and the trained model says of every word whether it was replaced. The idea is
ELECTRA's (Clark et al., ICLR 2020, section 2); the generator is the momentum twin.

Shapes: B sequences, L tokens each, V vocabulary; M masked, N sampled, P judged tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE = -100
ROWS = 256  # that are sampled at once: 60 MB of sums for a vocabulary of 30,000


@dataclass(frozen=True, kw_only=True)
class ReplacementPlan:
    """Places and randomness of replaced tokens; the places are indices into the text's B * L."""

    sampled_at: Tensor  # (N,) int64, where the twin's samples go
    uniforms: Tensor  # (N,) float32, the randomness of the draws
    judged_at: Tensor  # (P,) int64, where the model says whether a token was replaced
    sampled: Tensor | None = None  # (N,) int64, the draws, where a step is replayed


@dataclass(frozen=True, kw_only=True)
class Replacements:
    """A text in which the momentum twin replaced words."""

    weights: Tensor  # (N, V), the twin's probabilities where it was asked
    sampled: Tensor  # (N,) int64, the samples
    input_ids: Tensor  # (B, L) int64, the text with them
    labels: Tensor  # (B, L) int64: 1 replaced, 0 original, -100 not judged


@dataclass(frozen=True, kw_only=True)
class TwinTargets:
    """Targets that the momentum twin makes for the trained model."""

    soft_labels: Tensor | None = None  # (M, V), its probabilities; None where alpha is 0
    replacements: Replacements | None = None  # None where MRTD is off


def sample_tokens(weights: Tensor, uniforms: Tensor) -> Tensor:
    """Draw one token, (N,) int64, from each row by inverting its cumulative distribution.

    Weights, (N, V), are not negative and need not sum to one; a token of weight 0 is never drawn.
    There is one uniform number in [0, 1) for each row.
    """
    # 30,000 small terms lose the tail in float32; Apple's GPUs have no float64.
    precision = torch.float32 if weights.device.type == "mps" else torch.float64
    drawn = []
    # A few rows at a time: sums of all would be twice as large as the weights.
    for rows, each in zip(weights.split(ROWS), uniforms.split(ROWS), strict=True):
        cumulative = rows.cumsum(dim=-1, dtype=precision)
        thresholds = each.to(precision).unsqueeze(-1) * cumulative[:, -1:]
        drawn.append(torch.searchsorted(cumulative, thresholds, right=True).squeeze(-1))
    return torch.cat(drawn).clamp_(max=weights.shape[-1] - 1)


def mrtd_mask_modeling(
    mrtd_input_ids: Tensor,  # (B, L) int64, the masked text that the teacher read
    input_ids: Tensor,  # (B, L) int64, the original text
    attention_mask: Tensor,  # (B, L) bool or integer, 0 at padding
    # (N, V), the teacher's probabilities at `positions`, or (B, L, V) or (B * L, V) at every one
    weights: Tensor | None = None,
    *,
    # (N,) int64, the masked tokens in B * L; by default where masked text and original differ
    positions: Tensor | None = None,
    uniforms: Tensor | None = None,  # (N,) in [0, 1), the randomness of the draws
    sampled: Tensor | None = None,  # (N,) int64, the draws themselves, to replay a step
    special_ids: Sequence[int] = (),  # neither sampled nor labelled
) -> tuple[Tensor, Tensor]:
    """Replace masked tokens by tokens sampled from the teacher, and label what was replaced.

    Returns (B, L) int64, the replaced text, and its labels (B, L) int64: 1 where the token is not
    the original, 0 where it is, -100 at padding and special tokens, where there is nothing to
    detect. A sample that happens to be the original token counts as original, as in ELECTRA.
    """
    if positions is None:
        positions = (mrtd_input_ids != input_ids).flatten().nonzero().squeeze(-1)
    # Copied without waiting for the device, as `torch.tensor` there would.
    special = torch.tensor(special_ids, dtype=torch.int64).to(input_ids.device, non_blocking=True)
    if sampled is None:
        if weights is None or uniforms is None:
            raise ValueError("mrtd_mask_modeling needs weights and uniforms, or sampled")
        rows = weights.reshape(-1, weights.shape[-1])
        if len(rows) != len(positions):
            rows = rows[positions]
        sampled = sample_tokens(rows.index_fill(1, special, 0.0), uniforms)
    # Tokens that were masked but not chosen to change are the original's again.
    replaced = input_ids.flatten().index_copy(0, positions, sampled).view_as(input_ids)
    labels = (replaced != input_ids).long()
    ignored = ~attention_mask.bool() | torch.isin(input_ids, special)
    return replaced, labels.masked_fill(ignored, IGNORE)


def replace_words(
    input_ids: Tensor,  # (B, L) int64, the original text
    attention_mask: Tensor,  # (B, L), 0 at padding
    weights: Tensor,  # (N, V), the twin's probabilities
    plan: ReplacementPlan,
    special_ids: Sequence[int],  # neither sampled nor labelled
) -> Replacements:
    """Replace words as planned, by `mrtd_mask_modeling`."""
    ids, labels = mrtd_mask_modeling(
        input_ids,  # the plan's places tell what was masked
        input_ids,
        attention_mask,
        weights,
        positions=plan.sampled_at,
        uniforms=plan.uniforms,
        sampled=plan.sampled,
        special_ids=special_ids,
    )
    sampled = ids.flatten()[plan.sampled_at]
    return Replacements(weights=weights, sampled=sampled, input_ids=ids, labels=labels)


def mrtd_mask_modeling_everywhere(
    input_ids: Tensor, attention_mask: Tensor, sampled: Tensor, *, pad_token_id: int
) -> tuple[Tensor, Tensor]:
    """Replace words as RaSa released it: by a sampled token at every position.

    The release draws at masked and unmasked positions alike, restores the first token (the class
    token) and the padding, and ignores positions where the draw is one of these two. `sampled`, (B,
    L) int64, is one draw at every position; the rest is as for `mrtd_mask_modeling`.
    """
    real, first = attention_mask.bool(), input_ids[:, :1]
    replaced = torch.cat((first, sampled[:, 1:]), dim=1).masked_fill(~real, pad_token_id)
    labels = (replaced != input_ids).long()
    ignored = ~real | (replaced == pad_token_id) | (replaced == first)
    return replaced, labels.masked_fill(ignored, IGNORE)


def mrtd_loss_sum(logits: Tensor, labels: Tensor) -> Tensor:
    """Sum of two-class cross-entropies over the labelled tokens, in nats (RaSa, section 3.3).

    From logits (P, 2), original against replaced, and labels (P,) int64: 0, 1, or -100 for none.
    """
    return F.cross_entropy(logits.float(), labels, ignore_index=IGNORE, reduction="sum")
