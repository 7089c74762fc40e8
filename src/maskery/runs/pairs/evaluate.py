"""Held-out figures of image-text models: what the picture adds, chosen words, replaced words."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerBase

from maskery.core.batch import Vocabulary
from maskery.core.errors import CheckpointError, ConfigError, reason_of
from maskery.core.task import EXTRA_STATE
from maskery.data.pairs.batches import HeldOutPairs, JudgedPairs, ViewedPairs
from maskery.data.pairs.config import PairsConfig
from maskery.data.pairs.pairs import Pairs, group_ids
from maskery.data.pairs.pictures import Pictures
from maskery.evaluation.auc import judged_auc
from maskery.evaluation.image_text.image_ablation import (
    Condition,
    WordScores,
    score_pairs,
    score_words,
)
from maskery.evaluation.image_text.opening import OpenImageText, open_image_text
from maskery.evaluation.intervals import Interval
from maskery.evaluation.text.masked import (
    FROZEN_EPOCH,
    ExampleSums,
    MaskedScores,
    compare,
    summarise,
)
from maskery.evaluation.text.opening import require_same_tokenizer
from maskery.masking.config import MaskingConfig
from maskery.masking.masker import Masker
from maskery.models.image_text.model import ImageTextModel
from maskery.models.loading import resolve
from maskery.runs.image_text.prepare import read_captions
from maskery.runs.pairs.config import DRAWN_PEOPLE, PairsRunConfig
from maskery.tasks.image_text import ImageTextTask
from maskery.tasks.image_text_config import ImageTextMLMConfig

log = logging.getLogger(__name__)
# Pictures stay decoded, for each is seen with its own caption and with others'.
CACHE_BYTES = 2**30
# Evaluation masks as BERT does, whatever the run trains with.
EVALUATION_MASKING = MaskingConfig()


@dataclass(frozen=True, kw_only=True)
class PairsEvaluation:
    """Figures of one model on held-out pairs."""

    # Frozen masks: the same model with the right picture, a wrong one, and none.
    scores: dict[Condition, MaskedScores]
    difference: dict[str, dict[str, Interval]]  # `right` minus each of the others: loss, top1, top5
    words: WordScores | None  # The chosen words, masked one at a time; None where none were chosen
    mrtd_auc: float | None  # How well replaced words are told from original ones; None without MRTD

    def to_json(self) -> dict[str, Any]:
        """For `--json` and `evaluation.json`."""
        return asdict(self)


def summarise_pairs(
    scored: Mapping[Condition, ExampleSums],
    model: ImageTextModel,
    tokenizer: PreTrainedTokenizerBase,
    held_out: HeldOutPairs,
    *,
    words: tuple[str, ...],
    task: ImageTextTask | None,
) -> PairsEvaluation:
    """Compute every held-out figure of a model from its sums.

    The twin of `task` replaces words, for the model to detect.
    """
    found = None
    if words:
        accepted = accepted_ids(words, tokenizer)
        mask_token_id = Vocabulary.of(tokenizer).mask_token_id
        found = score_words(model.eval(), held_out, accepted, mask_token_id)
    return PairsEvaluation(
        scores={condition: summarise(sums) for condition, sums in scored.items()},
        difference={
            condition: compare(scored["right"], sums)
            for condition, sums in scored.items()
            if condition != "right"
        },
        words=found,
        mrtd_auc=None if task is None else mrtd_auc(task, held_out, model.device),
    )


def mrtd_auc(task: ImageTextTask, held_out: HeldOutPairs, device: torch.device) -> float | None:
    """Return the area under the ROC curve of replaced against original words.

    The momentum twin fills frozen masks by sampling, as in training, and the model judges every
    word that is not special. None without replaced token detection, and where all the twin's
    samples are the original words, or none are: a twin that knows every word replaces nothing.
    """
    if "mrtd" not in task.loss_weights:
        return None
    task.model.eval()
    return judged_auc(judgements(task, held_out, device))


def judgements(
    task: ImageTextTask, batches: Iterable[JudgedPairs], device: torch.device
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Of each batch, with the right pictures: what the model thinks of the words, and the truth."""
    for batch in batches:
        images = batch.images[batch.right]
        viewed = ViewedPairs(image1=images, image2=images, text1=batch.text)
        prepared = task.prepare(viewed, epoch=FROZEN_EPOCH, progress=1.0)
        yield task.judge(prepared.to(device))


def accepted_ids(
    words: tuple[str, ...], tokenizer: PreTrainedTokenizerBase
) -> dict[int, frozenset[int]]:
    """From the id of each word to score to the ids that are right in its place.

    Alternatives are joined by `|`; `drawn-people` stands for all of its words. Words that are
    several pieces of the tokenizer, or unknown to it, are left out and named; one must be left.
    """
    accepted: dict[int, frozenset[int]] = {}
    left_out: list[str] = []
    for word, synonyms in _synonyms(words).items():
        pieces = {other: _piece(other, tokenizer) for other in {word, *synonyms}}
        own = pieces[word]
        if own is None:
            left_out.append(word)
        else:
            accepted[own] = frozenset(piece for piece in pieces.values() if piece is not None)
    if not accepted:
        raise ConfigError(
            f"none of the words to score is one token of this tokenizer ({', '.join(left_out)}); "
            f"correct --score-words"
        )
    if left_out:
        log.warning("not scored, because not one token: %s", ", ".join(sorted(left_out)))
    return accepted


def _synonyms(words: tuple[str, ...]) -> Mapping[str, frozenset[str]]:
    chosen: dict[str, frozenset[str]] = {}
    for entry in words:
        if entry == DRAWN_PEOPLE:
            from maskery.people.grammar import COLOUR_WORDS, GARMENT_WORDS, SYNONYMS

            chosen |= {word: SYNONYMS[word] for word in COLOUR_WORDS | GARMENT_WORDS}
            continue
        group = frozenset(word.strip() for word in entry.split("|") if word.strip())
        if not group:
            raise ConfigError(f"--score-words has an entry without a word, {entry!r}; remove it")
        chosen |= dict.fromkeys(group, group)
    return chosen


def _piece(word: str, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The id of a word that is one known token within a sentence."""
    ids = tokenizer(f" {word}", add_special_tokens=False)["input_ids"]
    return int(ids[0]) if len(ids) == 1 and ids[0] != tokenizer.unk_token_id else None


@dataclass(frozen=True, kw_only=True)
class ImageTextEvaluation:
    """Held-out figures of one image-text model, or of two with their paired difference."""

    models: dict[str, PairsEvaluation]  # By name
    # The last minus the first, where there are two: by sight, then by figure.
    difference: dict[Condition, dict[str, Interval]] | None

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)


def evaluate_image_text(
    model: str,
    data: str,
    *,
    against: str | None = None,
    reading: PairsConfig,
    masking: MaskingConfig,
    seed: int = 0,
    words: tuple[str, ...] = (),
) -> ImageTextEvaluation:
    """Score one model, or two, on every caption of some pairs.

    Args:
        model: A folder of an image-text model, or of a run.
        reading: How the pairs are read.
        masking: How their captions are masked.
        seed: Of the masks.
        words: Words masked one at a time, as in `train pairs`.
        data: Pairs, as for `train pairs`; all count as held out.
        against: Another model with the same tokenizer.

    Raises:
        MaskeryError: A model cannot be opened, the pairs cannot be read, or the models cut text
            into different tokens.
    """
    opened = [open_image_text(name) for name in ([against] if against else []) + [model]]
    if len(opened) == 2:
        require_same_tokenizer(*opened)
    pairs = Pairs.open(data, reading)
    # Captions are cut alike for both, or they would not be asked the same.
    longest = min(int(one.model.config.text_config.max_position_embeddings) for one in opened)
    models: dict[str, PairsEvaluation] = {}
    scored: list[dict[Condition, ExampleSums]] = []
    for one in opened:
        held_out = held_out_pairs(one, pairs, reading, longest)
        masker = Masker.of(one.tokenizer, masking, seed=seed)
        scored.append(score_pairs(one.model, held_out, masker))
        heading = one.name if one.name not in models else f"{one.name} (again)"
        models[heading] = summarise_pairs(
            scored[-1], one.model, one.tokenizer, held_out, words=words, task=_task_beside(one)
        )
        if held_out.pictures.skipped.count:
            log.warning("%s", held_out.pictures.skipped)
    difference = None
    if len(scored) == 2:
        first, last = scored
        difference = {sight: compare(last[sight], first[sight]) for sight in last}
    return ImageTextEvaluation(models=models, difference=difference)


def held_out_pairs(
    opened: OpenImageText, pairs: Pairs, reading: PairsConfig, max_length: int
) -> HeldOutPairs:
    """All of some pairs as a model reads them."""
    captions = read_captions(pairs, opened.tokenizer, reading, max_length)
    pictures = Pictures(pairs, reading.on_bad_image, near=opened.view.size, cache_bytes=CACHE_BYTES)
    everything = np.arange(len(pairs))
    return HeldOutPairs(pairs, captions, pictures, opened.view, group_ids(pairs), everything)


def _task_beside(opened: OpenImageText) -> ImageTextTask | None:
    """Return a task with the momentum twin that lies beside a model; None without one.

    It replaces words as `train pairs` does by default.
    """
    path = Path(resolve(opened.name)) / EXTRA_STATE
    if not path.is_file():
        return None
    vocabulary, defaults = Vocabulary.of(opened.tokenizer), PairsRunConfig(pairs="any")
    masker = Masker.of(vocabulary, defaults.masking)
    task = ImageTextTask(
        opened.model,
        ImageTextMLMConfig(alpha=0.0),
        pad_token_id=int(opened.tokenizer.pad_token_id or 0),
        masker=masker,
        mrtd_masker=masker.for_generator(defaults.mrtd_mask_rate),
    )
    try:
        task.load_extra_state(load_file(path))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"the momentum twin in '{path}' cannot be read ({reason_of(error, most=120)}); "
            f"restore the file, or remove it to do without replaced words"
        ) from error
    return task
