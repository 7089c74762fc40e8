"""Short fine-tunings of an encoder and a linear head on labelled texts, over several seeds.

A probe of frozen vectors asks what they say; people who have labels will train the encoder on them,
too, and one that probes worse may be the better start. A quarter of the texts, by a hash, is never
trained on and judged. Plain AdamW, its rate falling linearly, as in BERT's fine-tuning (Devlin et
al., 2019, appendix A.3).

Shapes: N texts, H held-out texts, B texts of a batch, D width, C classes.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from maskery.core.errors import DataError
from maskery.evaluation.probe.classify import MOST_PROBE_CLASSES, NUM_FOLDS, folds_of
from maskery.evaluation.probe.encode import Encoder
from maskery.evaluation.probe.probe import ClassTask, Judged, ProbeFigure

EPOCHS, BATCH_TEXTS = 4, 16
# The head starts from nothing and learns faster; both are usual values.
ENCODER_RATE, HEAD_RATE = 5e-5, 1e-3
WARMUP_SHARE = 0.1
CLIP_NORM = 1.0
SEEDS = (0, 1, 2)


def tuned_figure(
    task: ClassTask,
    encoders: Mapping[str, Encoder],
    lexical: Mapping[str, Judged],
    seeds: Sequence[int],
    *,
    same: bool = False,
    progress: bool = False,
) -> ProbeFigure:
    """Fine-tune every encoder, and judge the quarter that was held out."""
    if "linear probe" not in lexical:
        raise DataError(f"--tune is for at most {MOST_PROBE_CLASSES:,} classes; leave it out")
    texts, classes = task.labelled.texts, task.classes
    held_out = folds_of(texts, NUM_FOLDS) == 0
    if not held_out.any() or len(np.unique(classes[~held_out])) < 2:
        raise DataError(f"{len(texts):,} texts are too few for --tune; leave it out")
    hits: dict[str, npt.NDArray[np.float64]] = {}
    for name, one in encoders.items():
        if hits and same:  # equal vectors: nothing would come out otherwise
            hits[name] = next(iter(hits.values()))
        else:
            hits[name] = tuned_hits(one, texts, classes, held_out, seeds, progress=progress)
    number = int(held_out.sum())
    task.notes.append(
        f"fine-tuned: {number:,} texts, a quarter by hash, are judged and the others trained on; "
        f"the mean of {len(seeds)} {'seed' if len(seeds) == 1 else 'seeds'}"
    )
    commonest = np.bincount(classes[held_out]).max()
    task.chances = {**task.chances, "fine-tuned": float(commonest / number)}
    task.apart = np.arange(number)
    figure = task.figure(
        "fine-tuned",
        {name: Judged(scores=found.mean(axis=0)) for name, found in hits.items()},
        Judged(scores=lexical["linear probe"].scores[held_out]),
        same=same,
    )
    if len(seeds) < 2:
        return figure
    spread = {name: float(found.mean(axis=1).std(ddof=1)) for name, found in hits.items()}
    shown = ", ".join(f"{100 * value:.1f} points ({name})" for name, value in spread.items())
    task.notes.append(f"fine-tuned: standard deviation over the seeds {shown}")
    return replace(figure, spread=spread)


def tuned_hits(
    encoder: Encoder,  # left as it is; copies are trained
    texts: Sequence[str],
    classes: npt.NDArray[np.int64],  # (N,) from 0
    held_out: npt.NDArray[np.bool_],  # (N,) True for those that are judged and not trained on
    seeds: Sequence[int],  # each decides the head, the order and the dropout of one fine-tuning
    *,
    progress: bool = False,
) -> npt.NDArray[np.float64]:
    """Return which held-out texts are right after each fine-tuning, (seeds, H), 0 or 1."""
    tokens = encoder.tokenizer(list(texts), truncation=True, max_length=encoder.max_length)
    rows: list[list[int]] = tokens["input_ids"]
    train, test = np.flatnonzero(~held_out), np.flatnonzero(held_out)
    steps = len(seeds) * EPOCHS * -(-len(train) // BATCH_TEXTS)
    found = []
    with tqdm(
        total=steps, desc=f"fine-tuning {encoder.name}", leave=False, disable=not progress
    ) as bar:
        for seed in seeds:
            # What the caller draws afterwards does not depend on it.
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                predict = _tuned(encoder, rows, classes, train, seed, bar)
            found.append(predict(test) == classes[test])
    return np.array(found, np.float64)


def _tuned(
    encoder: Encoder,
    rows: Sequence[list[int]],
    classes: npt.NDArray[np.int64],
    train: npt.NDArray[np.int64],
    seed: int,
    bar: tqdm[Any],
) -> Any:
    """Train a copy of the encoder, and return a function from places of texts to classes."""
    own = copy.copy(encoder)
    own.hf = copy.deepcopy(encoder.hf).train().requires_grad_(True)
    # A linear head on vectors of length 1 would need many steps to become certain.
    own.pooling = replace(encoder.pooling, normalise=False)
    with torch.no_grad():
        width = own.pooled([rows[0]]).shape[1]
    head = nn.Linear(width, int(classes.max()) + 1, device=own.hf.device)
    groups = [(own.hf.base_model, ENCODER_RATE), (head, HEAD_RATE)]
    optimiser = torch.optim.AdamW(
        [{"params": list(part.parameters()), "lr": rate} for part, rate in groups],
        weight_decay=0.01,
    )
    total = EPOCHS * -(-len(train) // BATCH_TEXTS)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser,
        lambda step: min((step + 1) / max(1.0, WARMUP_SHARE * total), (total - step) / total),
    )
    generator = np.random.default_rng(seed)
    for _ in range(EPOCHS):
        order = generator.permutation(train)
        for start in range(0, len(order), BATCH_TEXTS):
            chosen = order[start : start + BATCH_TEXTS]
            logits = head(own.pooled([rows[place] for place in chosen]))
            right = torch.from_numpy(classes[chosen]).to(logits.device)
            F.cross_entropy(logits, right).backward()
            for group in optimiser.param_groups:
                nn.utils.clip_grad_norm_(group["params"], CLIP_NORM)
            optimiser.step()
            optimiser.zero_grad()
            schedule.step()
            bar.update()
    own.hf.eval()

    @torch.no_grad()
    def predict(places: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        parts = [
            places[start : start + BATCH_TEXTS] for start in range(0, len(places), BATCH_TEXTS)
        ]
        logits = (head(own.pooled([rows[place] for place in part])) for part in parts)
        return np.concatenate([one.argmax(dim=1).cpu().numpy() for one in logits])

    return predict
