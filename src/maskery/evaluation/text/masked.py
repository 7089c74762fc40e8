"""Held-out loss, perplexity and accuracy on frozen masks, and the AUC of replaced words.

The masks are a pure function of the examples: figures are the same at any batch size, and models
with the same tokenizer can be compared example by example.

A word that ties with others counts as right with the chance that a random order of equals puts it
there: a model that gives every word the same probability has a top-1 of one in V, not of 100%.

Shapes: M masked tokens, N examples, V vocabulary.
"""

import logging
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from maskery.core.bars import Bar
from maskery.core.batch import Floats, Ids, Ints, MaskedTokens, TokenBatch
from maskery.core.errors import CheckpointError, DataError, ModelError, explained
from maskery.core.processes import Processes, evaluating, inference
from maskery.data.batching import TextSource
from maskery.evaluation.intervals import Interval, ratio_interval
from maskery.masking.masker import Masker
from maskery.models.masked_lm import MaskedLanguageModel

FROZEN_EPOCH = (1 << 24) - 1  # no run reaches it, so frozen masks are never those of training
COLUMNS = ("count", "loss", "top1", "top5")  # sums of an example; the first divides the others
BAR_AFTER = 3.0  # seconds; a small run would have a bar come and go at each of its evaluations
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ExampleSums:
    """Sums over the masked tokens of each example."""

    ids: Ids  # (N,) uint64, ascending
    sums: Floats  # (N, 4): masked tokens, their loss in nats, right ones, right in the first five

    @classmethod
    def of(cls, ids: Ids, rows: Floats) -> Self:
        """Add up (M, 4) rows by the example (M,) that each is of."""
        unique, inverse = np.unique(ids, return_inverse=True)
        sums = np.zeros((len(unique), rows.shape[1]))
        np.add.at(sums, inverse, rows)
        return cls(ids=unique, sums=sums)

    def to_bytes(self, identity: str) -> bytes:
        """Return the content of a safetensors file, with the identity of the run that made it."""
        return save({"ids": self.ids, "sums": self.sums}, metadata={"identity": identity})

    @classmethod
    def read(cls, path: Path) -> tuple[Self, str]:
        """Return the sums in a file that holds `to_bytes`, and the identity of their run."""
        problem = f"the held-out sums in '{path}' cannot be read"
        fix = "remove the file, and they are computed again"
        unsound = (OSError, KeyError, TypeError, ValueError, SafetensorError)
        with explained(problem, fix, *unsound, kind=CheckpointError, most=120):
            with safe_open(path, framework="numpy") as stored:
                identity = (stored.metadata() or {})["identity"]
                ids, sums = stored.get_tensor("ids"), stored.get_tensor("sums")
            if ids.dtype != "uint64" or ids.ndim != 1 or sums.dtype != "float64":
                raise ValueError(f"ids are {ids.dtype} {ids.shape} and sums {sums.dtype}")
            if not len(ids) or sums.shape != (len(ids), len(COLUMNS)):
                raise ValueError(f"it has {len(ids)} ids and sums of the shape {sums.shape}")
            if (ids[1:] <= ids[:-1]).any() or not np.isfinite(sums).all() or sums[:, 0].min() <= 0:
                raise ValueError("ids are not ascending, or sums are no numbers of masked tokens")
        return cls(ids=ids, sums=sums), identity


@dataclass(frozen=True, kw_only=True)
class MaskedScores:
    """Token-weighted figures with 95% intervals over examples (`evaluation/intervals.py`)."""

    loss: Interval  # Cross-entropy of a masked token, in nats
    perplexity: Interval  # exp(loss)
    top1: Interval  # Share of masked tokens whose likeliest prediction is right
    top5: Interval  # Share whose right token is among the five likeliest
    masked_tokens: int  # Tokens that were predicted
    examples: int  # Examples that they come from


def scoring(source: TextSource, *, progress: bool) -> Iterator[TokenBatch]:
    """Yield the batches of a source in order, with a bar if it takes more than some seconds."""
    total = int(source.lengths.sum())
    more = {"unit": "tok", "unit_scale": True, "delay": BAR_AFTER}
    with Bar(total, "scoring", shown=progress, **more) as bar:
        for batch in source.in_order():
            yield batch
            bar.update(batch.num_tokens)


@inference()
def score_examples(
    model: MaskedLanguageModel,
    batches: Iterable[TokenBatch],
    masker: Masker,
    *,
    processes: Processes | None = None,  # each computes a share; all must call this, and get all
) -> ExampleSums:
    """Predict the frozen masks of every example, which the masker's seed and config decide.

    The model is in evaluation mode while it runs.
    """
    processes = processes or Processes()
    ids, rows = [np.zeros(0, np.uint64)], [np.zeros((0, len(COLUMNS)))]
    with evaluating(model):
        for masked, counts in _shares(batches, masker, processes):
            logits = predict(model, masked)
            if counts:
                batch, each = masked.batch, token_rows(logits, masked.targets)
                if masked.weights is not None:
                    # As float32, so that the order of adding changes nothing here, either.
                    each = (each * masked.weights[:, None]).astype(np.float32).astype(np.float64)
                ids.append(batch.example_ids[batch.sequences_of(masked.positions)])
                rows.append(each)
    # Float32 losses added in float64: the order in which they come changes nothing.
    all_ids = processes.join(torch.from_numpy(np.concatenate(ids).view(np.int64)))
    all_rows = processes.join(torch.from_numpy(np.concatenate(rows)))
    if not len(all_ids):
        raise DataError("no held-out example has a token that can be masked; bring more text")
    require_numbers(all_rows)  # after joining, so that every process fails and none waits
    return ExampleSums.of(all_ids.numpy().view(np.uint64), all_rows.numpy())


def predict(model: MaskedLanguageModel, masked: MaskedTokens) -> torch.Tensor:
    """Return the logits (M, V) of a batch's masked tokens, float32."""
    logits: torch.Tensor = model(model.lay_out(masked).to(model.hf.device))
    return logits.float()


def true_log_probabilities(logits: torch.Tensor, targets: Ints) -> Floats:
    """Return the log-probabilities (M,) of the true tokens (M,), from logits (M, V)."""
    losses = F.cross_entropy(logits, torch.from_numpy(targets).to(logits.device), reduction="none")
    return (-losses).double().cpu().numpy()


def token_rows(logits: torch.Tensor, targets: Ints) -> Floats:
    """Return (M, 4), as `COLUMNS` names them, from logits (M, V) and true tokens (M,)."""
    right = torch.from_numpy(targets).to(logits.device)
    loss = F.cross_entropy(logits, right, reduction="none").double()
    true = logits.gather(1, right[:, None])
    better = (logits > true).sum(dim=1)
    equal = (logits == true).sum(dim=1)  # the true token among them
    # NaN equals nothing, itself included.
    hits = [((k - better).double() / equal.clamp(min=1)).clamp(0.0, 1.0) for k in (1, 5)]
    return torch.stack((torch.ones_like(loss), loss, *hits), dim=1).cpu().numpy()


def require_numbers(values: torch.Tensor) -> None:
    """Refuse losses or log-probabilities of which one is NaN or infinite."""
    if not torch.isfinite(values).all():
        problem = "the model predicts values that are not numbers (NaN or infinite)"
        cause = "its weights are damaged, or its training diverged"
        raise ModelError(f"{problem}: {cause}; use an earlier checkpoint or another model")


def _shares(
    batches: Iterable[TokenBatch], masker: Masker, processes: Processes
) -> Iterator[tuple[MaskedTokens, bool]]:
    """Yield this process's masked batches, each with True if it counts."""
    # A sharded model is put together by all processes at once, so all compute equally often: where
    # a round has no batch left for one, it computes another's for nothing.
    epochs = range(FROZEN_EPOCH, FROZEN_EPOCH - masker.draws, -1)
    masked = (masker.mask(batch, epoch=epoch) for batch in batches for epoch in epochs)
    some = (one for one in masked if len(one.positions))
    while turn := list(islice(some, processes.world_size)):
        counts = processes.rank < len(turn)
        yield turn[processes.rank if counts else 0], counts


def summarise(scored: ExampleSums) -> MaskedScores:
    """Return the figures of one model with their intervals."""
    count, losses, top1, top5 = scored.sums.T
    loss = ratio_interval(losses, count)
    with np.errstate(over="ignore"):  # a loss beyond 709.8 nats is a perplexity of infinity
        # One NaN for all, so that figures without an interval still equal one another.
        ends = [math.nan if math.isnan(end) else end for end in np.exp(loss).tolist()]
    return MaskedScores(
        loss=loss,
        perplexity=Interval(*ends),
        top1=ratio_interval(top1, count, "share"),
        top5=ratio_interval(top5, count, "share"),
        masked_tokens=round(count.sum()),
        examples=len(scored.ids),
    )


def compare(after: ExampleSums, before: ExampleSums) -> dict[str, Interval]:
    """Return differences, `after` minus `before`, of loss, top1 and top5, paired by example."""
    # So their intervals are much narrower than two separate ones.
    same = np.array_equal(after.ids, before.ids)
    if not same or not np.array_equal(after.sums[:, 0], before.sums[:, 0]):
        told = "the two models were scored on different masked tokens, so they cannot be compared"
        raise DataError(f"{told}; use the same data and the same tokenizer")
    if np.array_equal(after.sums, before.sums):  # one model twice: no doubt is left
        return dict.fromkeys(COLUMNS[1:], Interval(0.0, 0.0, 0.0))
    count, (_, loss, *hits) = after.sums[:, 0], (after.sums - before.sums).T
    shares = (ratio_interval(hit, count, "difference of shares") for hit in hits)
    return dict(zip(COLUMNS[1:], (ratio_interval(loss, count), *shares), strict=True))


def auc(scores: Floats, labels: Ints) -> float:
    """Return the area under the ROC curve: the chance that a positive scores above a negative.

    From (N,) scores, higher for positives, and (N,) labels, 1 or 0. Ties count half (Mann and
    Whitney's U over its largest value; Hanley and McNeil, 1982).
    """
    negatives, positives = ((labels == label).sum() for label in (0, 1))
    if not positives or not negatives:
        told = f"there are {positives} replaced and {negatives} original words"
        raise DataError(f"{told}, and both kinds are needed to tell them apart; hold out more")
    from scipy.stats import rankdata  # half a second, for few runs

    above = rankdata(scores)[labels == 1].sum() - positives * (positives + 1) / 2
    return float(above / (positives * negatives))


def replaced_words_auc(task: Any, batches: Iterable[Any], *, progress: float) -> float | None:
    """Return `auc` of replaced against original words on held-out text.

    The twin fills frozen masks by sampling, as in training, and the model judges every token that
    is not special. None without replaced token detection, and where all words are replaced, or none
    are: a twin that knows every word replaces nothing.
    """
    if "mrtd" not in task.loss_weights or not hasattr(task, "judge"):  # or with that of a plug-in
        return None
    task.model.eval()
    task.twin.follow_device()
    device = next(task.model.parameters()).device
    scores, labels = [], []
    for batch in batches:
        prepared = task.prepare(batch, epoch=FROZEN_EPOCH, progress=progress)
        log_odds, replaced = task.judge(prepared.to(device))
        scores.append(log_odds.double().cpu().numpy())
        labels.append(replaced.cpu().numpy())
    judged = np.concatenate(labels) if labels else np.empty(0, np.int64)
    if len(np.unique(judged)) < 2:
        log.warning("replaced words are not judged: %d of %d are", judged.sum(), len(judged))
        return None
    return auc(np.concatenate(scores), judged)
