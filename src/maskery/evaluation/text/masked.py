"""Held-out loss, perplexity and accuracy on frozen masks.

The masks are a pure function of the examples, so the figures are the same at any batch size and
for any model with the same tokenizer, and two models can be compared example by example.

Shapes: M masked tokens, N examples, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from maskery.core.batch import MaskedTokens, TokenBatch
from maskery.core.errors import DataError
from maskery.core.processes import Processes
from maskery.evaluation.intervals import Interval, ratio_interval
from maskery.masking.masker import Masker
from maskery.models.masked_lm import MaskedLanguageModel

# Evaluations share an epoch that no run reaches.
FROZEN_EPOCH = (1 << 24) - 1
COLUMNS = ("count", "loss", "top1", "top5")


@dataclass(frozen=True, kw_only=True)
class ExampleSums:
    """What a model scored on each example.

    Attributes:
        ids: (N,) uint64, ascending.
        sums: (N, 4) float64: masked tokens, their loss in nats, how many were right, and how many
            were among the first five.
    """

    ids: npt.NDArray[np.uint64]
    sums: npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class MaskedScores:
    """Token-weighted figures with 95% intervals over examples (`evaluation/intervals.py`).

    Attributes:
        loss: Cross-entropy of a masked token, in nats.
        perplexity: exp(loss).
        top1: Share of masked tokens whose likeliest prediction is right.
        top5: Share whose right token is among the five likeliest.
        masked_tokens: How many were predicted.
        examples: How many examples they come from.
    """

    loss: Interval
    perplexity: Interval
    top1: Interval
    top5: Interval
    masked_tokens: int
    examples: int


@torch.no_grad()
def score_examples(
    model: MaskedLanguageModel,
    batches: Iterable[TokenBatch],
    masker: Masker,
    *,
    processes: Processes | None = None,
) -> ExampleSums:
    """Predict the frozen masks of every example.

    Args:
        model: Put into evaluation mode while it runs.
        batches: Held-out examples; logits exist for one batch's masked tokens at a time.
        masker: Its seed and config decide the masks.
        processes: Who share the batches out and all get the whole result; all of them must ask.
            Default: this one alone.

    Raises:
        DataError: Nothing could be masked.
    """
    processes = processes or Processes()
    was_training, device = model.training, model.hf.device
    model.eval()
    ids, rows = [np.zeros(0, np.uint64)], [np.zeros((0, len(COLUMNS)))]
    for masked, counts in _shares(batches, masker, processes):
        batch, targets = masked.batch, torch.from_numpy(masked.targets).to(device)
        logits = model(model.lay_out(masked).to(device)).float()
        loss = F.cross_entropy(logits, targets, reduction="none")
        better = (logits > logits.gather(1, targets[:, None])).sum(dim=1)
        token_rows = torch.stack((torch.ones_like(loss), loss, better == 0, better < 5), dim=1)
        sequence = np.searchsorted(batch.boundaries, masked.positions, side="right") - 1
        if counts:
            ids.append(batch.example_ids[sequence])
            rows.append(token_rows.double().cpu().numpy())
    model.train(was_training)
    # Float32 losses added in float64: the order in which they come changes nothing.
    all_ids = processes.join(torch.from_numpy(np.concatenate(ids).view(np.int64)))
    all_rows = processes.join(torch.from_numpy(np.concatenate(rows)))
    if not len(all_ids):
        raise DataError("no held-out example has a token that can be masked; bring more text")
    unique, inverse = np.unique(all_ids.numpy().view(np.uint64), return_inverse=True)
    sums = np.zeros((len(unique), len(COLUMNS)))
    np.add.at(sums, inverse, all_rows.numpy())
    return ExampleSums(ids=unique, sums=sums)


def _shares(
    batches: Iterable[TokenBatch], masker: Masker, processes: Processes
) -> Iterator[tuple[MaskedTokens, bool]]:
    """This process's masked batches, and whether each counts.

    A sharded model is put together by all processes at once, so all compute equally often: where a
    round has no batch left for one, it computes another's for nothing.
    """
    masked = (masker.mask(batch, epoch=FROZEN_EPOCH) for batch in batches)
    some = (one for one in masked if len(one.positions))
    while turn := list(islice(some, processes.world_size)):
        counts = processes.rank < len(turn)
        yield turn[processes.rank if counts else 0], counts


def summarise(scored: ExampleSums) -> MaskedScores:
    """Figures and intervals of one model."""
    count, *columns = scored.sums.T
    loss = ratio_interval(columns[0], count)
    top1, top5 = (ratio_interval(column, count, "share") for column in columns[1:])
    return MaskedScores(
        loss=loss,
        perplexity=Interval(*(safe_exp(v) for v in (loss.value, loss.low, loss.high))),
        top1=top1,
        top5=top5,
        masked_tokens=int(scored.sums[:, 0].sum()),
        examples=len(scored.ids),
    )


def compare(after: ExampleSums, before: ExampleSums) -> dict[str, Interval]:
    """Paired differences, `after` minus `before`, of loss, top1 and top5.

    Both models predict the same masked tokens, so the intervals are those of the difference
    within each example and much narrower than two separate ones.

    Raises:
        DataError: They were not scored on the same masked tokens.
    """
    same = np.array_equal(after.ids, before.ids)
    if not same or not np.array_equal(after.sums[:, 0], before.sums[:, 0]):
        raise DataError(
            "the two models were scored on different masked tokens, so they cannot be compared; "
            "use the same data and the same tokenizer"
        )
    if np.array_equal(after.sums, before.sums):  # one model twice: no doubt is left
        return dict.fromkeys(COLUMNS[1:], Interval(0.0, 0.0, 0.0))
    count, loss, top1, top5 = (after.sums - before.sums).T
    count = after.sums[:, 0]
    return {
        "loss": ratio_interval(loss, count),
        "top1": ratio_interval(top1, count, "difference of shares"),
        "top5": ratio_interval(top5, count, "difference of shares"),
    }


def safe_exp(value: float) -> float:
    """exp, infinite where it would overflow."""
    return math.exp(value) if value < 700.0 else math.inf
