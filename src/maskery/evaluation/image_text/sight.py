"""What a picture adds: masked words filled with the right picture, a wrong one, and none.

Masks are frozen and wrong pictures fixed, so the three answers are to the same questions and can be
compared word by word.

Shapes: B captions, L tokens of the longest, I pictures, M masked tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal, Protocol, get_args

import numpy as np
import numpy.typing as npt
import torch

from maskery.core.batch import TokenBatch
from maskery.core.errors import DataError
from maskery.evaluation.intervals import Interval, ratio_interval
from maskery.evaluation.text.masked import (
    COLUMNS,
    FROZEN_EPOCH,
    ExampleSums,
    require_numbers,
    token_rows,
)
from maskery.masking.masker import Masker
from maskery.models.image_text.model import ImageTextModel

Sight = Literal["right", "wrong", "none"]
SIGHTS: tuple[Sight, ...] = get_args(Sight)


class JudgedBatch(Protocol):
    """Held-out captions with pictures, as `maskery.data.pairs.batches.JudgedPairs`."""

    @property
    def images(self) -> torch.Tensor:
        """(I, 3, H, W) float32."""

    @property
    def right(self) -> torch.Tensor:
        """(B,) int64, each caption's picture."""

    @property
    def wrong(self) -> torch.Tensor:
        """(B,) int64, a picture of something else."""

    @property
    def text(self) -> TokenBatch:
        """B captions."""

    @property
    def groups(self) -> npt.NDArray[np.uint64]:
        """(B,) uint64, what intervals resample."""


@dataclass(frozen=True, kw_only=True)
class WordScores:
    """Chosen words, masked one at a time.

    Attributes:
        accuracy: By sight, the share filled with the word or a synonym of it.
        difference: `right` minus `wrong`, and `right` minus `none`, paired.
        words: How many were masked.
        examples: Pictures or persons they come from.
    """

    accuracy: dict[Sight, Interval]
    difference: dict[Sight, Interval]
    words: int
    examples: int


@torch.no_grad()
def score_pairs(
    model: ImageTextModel, batches: Iterable[JudgedBatch], masker: Masker
) -> dict[Sight, ExampleSums]:
    """Predict the frozen masks of every caption under each sight.

    Args:
        model: In evaluation mode.
        batches: Held-out captions.
        masker: Its seed and config decide the masks.

    Raises:
        DataError: Nothing could be masked.
        ModelError: The model predicts values that are not numbers.
    """
    groups: list[npt.NDArray[np.uint64]] = []
    rows: dict[Sight, list[npt.NDArray[np.float64]]] = {sight: [] for sight in SIGHTS}
    for batch in batches:
        masked = masker.mask(batch.text, epoch=FROZEN_EPOCH)
        if not len(masked.positions):
            continue
        groups.append(batch.groups[sequences(batch.text, masked.positions)])
        targets = torch.from_numpy(masked.targets).to(model.device)
        answers = answers_by_sight(model, batch, masked.input_ids, masked.positions)
        for sight, logits in answers.items():
            rows[sight].append(token_rows(logits, targets).cpu().numpy())
    if not groups:
        raise DataError("no held-out caption has a token that can be masked; bring more pairs")
    scored = {sight: _by_example(groups, parts) for sight, parts in rows.items()}
    for sums in scored.values():
        require_numbers(torch.from_numpy(sums.sums))
    return scored


@torch.no_grad()
def score_words(
    model: ImageTextModel,
    batches: Iterable[JudgedBatch],
    accepted: Mapping[int, frozenset[int]],
    mask_token_id: int,
) -> WordScores:
    """Mask each chosen word of each caption, one at a time, and fill it under each sight.

    Args:
        model: In evaluation mode.
        batches: Held-out captions.
        accepted: From the id of a chosen word to the ids that are right in its place.
        mask_token_id: The tokenizer's.

    Raises:
        DataError: None of the words stands in a caption.
    """
    chosen = np.array(sorted(accepted), np.int64)
    groups: list[npt.NDArray[np.uint64]] = []
    rows: dict[Sight, list[npt.NDArray[np.float64]]] = {sight: [] for sight in SIGHTS}
    for batch in batches:
        for positions in _one_each(batch.text, np.isin(batch.text.input_ids, chosen)):
            ids = batch.text.input_ids.copy()
            ids[positions] = mask_token_id
            groups.append(batch.groups[sequences(batch.text, positions)])
            originals = batch.text.input_ids[positions].tolist()
            for sight, logits in answers_by_sight(model, batch, ids, positions).items():
                filled = logits.argmax(dim=-1).tolist()
                hits = [f in accepted[o] for f, o in zip(filled, originals, strict=True)]
                rows[sight].append(np.column_stack((np.ones(len(hits)), np.array(hits, float))))
    if not groups:
        raise DataError("none of the words to score stands in a held-out caption; name others")
    return _word_scores({sight: _by_example(groups, parts) for sight, parts in rows.items()})


def _word_scores(scored: Mapping[Sight, ExampleSums]) -> WordScores:
    count, right = scored["right"].sums[:, 0], scored["right"].sums[:, 1]
    hits = [scored[sight].sums[:, 1] for sight in SIGHTS]
    shares = [ratio_interval(hit, count, "share") for hit in hits]
    over_wrong, over_none = (
        ratio_interval(right - hit, count, "difference of shares") for hit in hits[1:]
    )
    return WordScores(
        accuracy=dict(zip(SIGHTS, shares, strict=True)),
        difference={"wrong": over_wrong, "none": over_none},
        words=int(count.sum()),
        examples=len(count),
    )


def sequences(batch: TokenBatch, positions: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The sequence that each token position lies in."""
    return np.searchsorted(batch.boundaries, positions, side="right") - 1


def _one_each(batch: TokenBatch, wanted: npt.NDArray[np.bool_]) -> Iterable[npt.NDArray[np.int64]]:
    """The wanted tokens in rounds, each with at most one of a sequence."""
    positions = np.flatnonzero(wanted)
    rows = sequences(batch, positions)
    turn = np.arange(len(rows)) - np.searchsorted(rows, rows, side="left")
    return (positions[turn == number] for number in range(int(turn.max(initial=-1)) + 1))


def answers_by_sight(
    model: ImageTextModel,
    batch: JudgedBatch,
    input_ids: npt.NDArray[np.int64],
    positions: npt.NDArray[np.int64],
) -> dict[Sight, torch.Tensor]:
    """The logits (M, V) at some tokens under each sight; text and pictures are encoded once."""
    # Through `forward`, where a sharded model is put together.
    answers: dict[Sight, torch.Tensor] = model(
        compute=partial(_compute_answers, batch=batch, input_ids=input_ids, positions=positions)
    )
    return answers


def _compute_answers(
    model: ImageTextModel,
    *,
    batch: JudgedBatch,
    input_ids: npt.NDArray[np.int64],
    positions: npt.NDArray[np.int64],
) -> dict[Sight, torch.Tensor]:
    ids, real, places = side_by_side(batch.text, input_ids)
    rows = torch.from_numpy(places[positions]).to(model.device)
    mask = torch.from_numpy(real).to(model.device)
    hidden = model.text_encoder.encode_text(torch.from_numpy(ids).to(model.device), mask)
    keys = model.project_images(model.encode_image(batch.images.to(model.device)))
    pictures = {"right": batch.right, "wrong": batch.wrong}
    answers: dict[Sight, torch.Tensor] = {}
    for sight in SIGHTS:
        seen = None
        if sight in pictures:
            index = pictures[sight].to(model.device)
            seen = [key.select(index) for key in keys]
        fused = model.text_encoder.fuse(hidden, mask, seen)
        answers[sight] = model.text_encoder.mlm_logits(fused.flatten(0, 1)[rows]).float()
    return answers


def side_by_side(
    batch: TokenBatch, input_ids: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_], npt.NDArray[np.int64]]:
    """Padded ids (B, L), where they are real (B, L), and each token's place in B * L."""
    length = int(batch.lengths.max())
    real = np.arange(length) < batch.lengths[:, None]
    ids = np.zeros(real.shape, np.int64)
    ids[real] = input_ids
    return ids, real, np.flatnonzero(real)


def _by_example(
    groups: list[npt.NDArray[np.uint64]], rows: list[npt.NDArray[np.float64]]
) -> ExampleSums:
    assert rows[0].shape[1] in (2, len(COLUMNS))
    unique, inverse = np.unique(np.concatenate(groups), return_inverse=True)
    sums = np.zeros((len(unique), rows[0].shape[1]))
    np.add.at(sums, inverse, np.concatenate(rows))
    return ExampleSums(ids=unique, sums=sums)
