"""Held-out figures of an image-text run: what the picture adds, chosen words, replaced words."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from maskery.core.errors import ConfigError
from maskery.data.pairs.batches import JudgedPairs, ViewedPairs
from maskery.evaluation.auc import judged_auc
from maskery.evaluation.image_text.image_ablation import (
    Condition,
    WordScores,
    sample_pictures,
    score_words,
)
from maskery.evaluation.intervals import Interval
from maskery.evaluation.text.masked import (
    FROZEN_EPOCH,
    ExampleSums,
    MaskedScores,
    compare,
    summarise,
)
from maskery.runs.frame.config_file import open_run
from maskery.runs.image_text.start import start_model
from maskery.runs.pairs.config import DRAWN_PEOPLE, PairsRunConfig
from maskery.runs.pairs.prepare import PairsRun, open_pairs, prepare_pairs
from maskery.tasks.image_text_mlm import ImageTextMLM

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PairsEvaluation:
    """Figures of one model on held-out pairs.

    Attributes:
        scores: Frozen masks: the same model with the right picture, a wrong one, and none.
        difference: `right` minus each of the others: loss, top1, top5.
        words: The chosen words, masked one at a time; None where none were chosen.
        mrtd_auc: How well replaced words are told from original ones; None without MRTD.
    """

    scores: dict[Condition, MaskedScores]
    difference: dict[str, dict[str, Interval]]
    words: WordScores | None
    mrtd_auc: float | None

    def to_json(self) -> dict[str, Any]:
        """For `--json` and `evaluation.json`."""
        return {
            "scores": {sight: asdict(score) for sight, score in self.scores.items()},
            "difference": self.difference,
            "words": None if self.words is None else asdict(self.words),
            "mrtd_auc": self.mrtd_auc,
        }


def evaluate_pairs(run: PairsRun) -> PairsEvaluation:
    """Every held-out figure of a run's model as it is now."""
    scored: dict[Condition, ExampleSums] = run.score()
    words = None
    if run.config.score_words:
        accepted = accepted_ids(run.config.score_words, run.start.tokenizer)
        words = score_words(
            run.start.model.eval(), run.held_out, accepted, run.vocabulary.mask_token_id
        )
    return summarise_sights(scored, words=words, mrtd_auc=mrtd_auc(run))


def summarise_sights(
    scored: Mapping[Condition, ExampleSums], *, words: WordScores | None, mrtd_auc: float | None
) -> PairsEvaluation:
    """Figures and intervals from a model's sums under each sight."""
    return PairsEvaluation(
        scores={sight: summarise(sums) for sight, sums in scored.items()},
        difference={
            sight: compare(scored["right"], sums)
            for sight, sums in scored.items()
            if sight != "right"
        },
        words=words,
        mrtd_auc=mrtd_auc,
    )


def mrtd_auc(run: PairsRun) -> float | None:
    """The area under the ROC curve of replaced against original words on held-out captions.

    The momentum twin fills frozen masks by sampling, as in training, and the model judges every
    word that is not special. None without replaced token detection, and where all the twin's
    samples are the original words, or none are: a twin that knows every word replaces nothing.
    """
    if "mrtd" not in run.task.loss_weights:
        return None
    run.task.model.eval()
    return judged_auc(judgements(run.task, run.held_out, run.start.model.device))


def judgements(
    task: ImageTextMLM, batches: Iterable[JudgedPairs], device: torch.device
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

    Args:
        words: Words, alternatives joined by `|`; `drawn-people` stands for all of its words.
        tokenizer: Words that are several of its pieces, or unknown to it, are left out and named.

    Raises:
        ConfigError: None is one piece.
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


def evaluate_pairs_run(
    folder: Path,
    *,
    score_words: tuple[str, ...] = (),
    eval_pairs: str | None = None,
    reader: str | None = None,
) -> PairsEvaluation:
    """A run's model on what the run held out, or on other pairs.

    Args:
        folder: The run folder.
        score_words: Other words than the run's.
        eval_pairs: Other pairs than the run's held-out ones.
        reader: Of the pairs; a run that was trained with a plug-in needs it named again.

    Raises:
        ConfigError: The run has no model yet.
    """
    config = trained_config(folder)
    config = replace(
        config,
        score_words=score_words or config.score_words,
        eval_pairs=eval_pairs or config.eval_pairs,
        reading=replace(config.reading, reader=reader or config.reading.reader),
    )
    with torch.no_grad():
        return evaluate_pairs(_trained_run(config))


def run_samples(folder: Path) -> dict[str, Any]:
    """Return a few pictures of a finished run with the words that its model fills in.

    Raises:
        MaskeryError: Its pairs or its model is no longer there.
    """
    run = _trained_run(trained_config(folder))
    model, tokenizer = run.start.model.eval(), run.start.tokenizer
    pictures = sample_pictures(model, run.held_out, tokenizer, run.start.view)
    return {"pictures": [asdict(one) for one in pictures]}


def _trained_run(config: PairsRunConfig) -> PairsRun:
    start = start_model(config, open_pairs(config)[0], progress=False)
    return prepare_pairs(config, start=start, progress=False)


def trained_config(folder: Path) -> PairsRunConfig:
    """Return a run's configuration with its trained model in place of the one it started from.

    Raises:
        ConfigError: The run has no model yet, or is of another kind.
    """
    config = open_run(folder).finished(PairsRunConfig)
    return replace(
        config,
        model=str(folder),
        text_model=None,
        vision_model=None,
        fusion_layer=None,
        objectives=replace(config.objectives, term=()),  # measuring needs no code of the user's
    )
