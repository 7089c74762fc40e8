"""What an image-text run consists of, before its first step."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from maskery.core.registry import plugin_identity
from maskery.core.vocabulary import Vocabulary
from maskery.data.pairs.batches import HeldOutPairs, PairSource
from maskery.data.pairs.captions import CaptionTokens
from maskery.data.pairs.formats import Source
from maskery.data.pairs.pairs import Pairs, group_ids, split_pairs
from maskery.evaluation.image_text.image_ablation import Condition, score_pairs
from maskery.evaluation.text.masked import ExampleSums
from maskery.masking.config import MaskingConfig
from maskery.masking.masker import Masker
from maskery.runs.frame.run_frame import fingerprint_of, identity
from maskery.runs.image_text.parts import (
    described,
    extra_state_of,
    make_task,
    open_pictures,
    read_captions,
)
from maskery.runs.image_text.start import (
    StartModel,
    choose_max_length,
    start_at_frequencies,
    start_model,
)
from maskery.runs.pairs.config import PairsRunConfig
from maskery.tasks.image_text_mlm import ImageTextMLM

log = logging.getLogger(__name__)

# Evaluation masks as BERT does, whatever the run trains with.
EVALUATION_MASKING = MaskingConfig()


@dataclass(frozen=True, kw_only=True)
class PairsRun:
    """Everything an image-text run consists of, before its first step.

    Attributes:
        config: As given.
        start: The initial model.
        task: What is trained.
        vocabulary: Of the tokenizer.
        train: Training batches.
        held_out: Held-out captions with right and wrong pictures.
        identity: What a continuation must share.
    """

    config: PairsRunConfig
    start: StartModel
    task: ImageTextMLM
    vocabulary: Vocabulary
    train: PairSource
    held_out: HeldOutPairs
    identity: str

    def score(self) -> dict[Condition, ExampleSums]:
        """Held-out sums of the model as it is now, under each sight."""
        masker = Masker.of(self.vocabulary, EVALUATION_MASKING)
        model = self.start.model
        was_training = model.training
        scored = score_pairs(model.eval(), self.held_out, masker)
        model.train(was_training)
        return scored


def open_pairs(config: PairsRunConfig, source: Source | None = None) -> tuple[Pairs, Pairs | None]:
    """Return the pairs to train on, and held-out pairs of their own where there are any.

    Args:
        config: The run.
        source: Records in Python or a dataset, in place of the pairs that the config names.
    """
    pairs, judged = Pairs.open_splits(config.pairs if source is None else source, config.reading)
    if config.eval_pairs is not None:
        judged = Pairs.open(config.eval_pairs, config.reading)
    return pairs, judged


def prepare_pairs(
    config: PairsRunConfig,
    *,
    source: Source | None = None,
    start: StartModel | None = None,
    folder: Path | None = None,
    progress: bool = True,
    terms: Sequence[Any] = (),
) -> PairsRun:
    """Read, tokenise and split the pairs, and load or make the initial model.

    Args:
        config: The run.
        source: As in `open_pairs`.
        start: A model to use instead of the one the config names.
        folder: The run folder, as in `start_model`.
        progress: Whether to draw bars.
        terms: Loss terms of your own, as objects; see `maskery.objectives.terms`.
    """
    pairs, own = open_pairs(config, source)
    start = start or start_model(config, pairs, folder=folder, progress=progress)
    captions = _tokenise(config, pairs, start)
    groups = group_ids(pairs)
    if own is None:
        train, held = split_pairs(groups, config.held_out_share)
        judged, judged_captions, judged_groups = pairs, captions, groups
    else:
        judged = own
        judged_captions = _tokenise(config, judged, start)
        judged_groups = group_ids(judged)
        train, held = np.arange(len(pairs)), np.arange(len(judged))
    cache_bytes = config.image_cache_mb * 2**20
    share = len(held) / (len(train) + len(held))
    train_batches = PairSource(
        pairs,
        captions,
        open_pictures(config, config.reading, pairs, start, int(cache_bytes * (1 - share))),
        start.view,
        train,
        batch_pairs=config.training.batch_pairs,
        micro_pairs=config.training.micro_batch_pairs,
        seed=config.training.seed,
    )
    held_out = HeldOutPairs(
        judged,
        judged_captions,
        open_pictures(config, config.reading, judged, start, int(cache_bytes * share)),
        start.view,
        judged_groups,
        held,
    )
    if start.has_new_head:
        counts = captions.token_counts(start.model.config.text_config.vocab_size)
        start_at_frequencies(start.model, counts)
    task = make_task(ImageTextMLM, config, start, terms)
    extra = extra_state_of(config, start)
    if extra:
        task.load_extra_state(extra)
    log.info("%s training and %s held-out pairs", f"{len(train):,}", f"{len(held):,}")
    return PairsRun(
        config=config,
        start=start,
        task=task,
        vocabulary=Vocabulary.of(start.tokenizer),
        train=train_batches,
        held_out=held_out,
        identity=identity_of(config, pairs, own, start, task),
    )


def _tokenise(config: PairsRunConfig, pairs: Pairs, start: StartModel) -> CaptionTokens:
    longest = choose_max_length(config, start.model)
    captions = read_captions(pairs, start.tokenizer, config.reading, longest)
    if pairs.skipped_captions.count:
        log.warning("%s", pairs.skipped_captions)
    return captions


def skipped_lines(run: PairsRun) -> tuple[str, ...]:
    """What was left out, one line a kind; empty where nothing was."""
    told = (
        run.train.captions.skipped,
        run.train.pictures.skipped,
        run.held_out.pictures.skipped,
    )
    return tuple(str(skipped) for skipped in told if skipped.count)


def identity_of(
    config: PairsRunConfig,
    pairs: Pairs,
    judged: Pairs | None,
    start: StartModel,
    task: ImageTextMLM,
) -> str:
    """Everything that decides the course of a run, but not how it is computed.

    Args:
        config: Of the run.
        pairs: What is trained on.
        judged: Held-out pairs of their own, where there are any.
        start: The initial model.
        task: Of the run.
    """
    reader = config.reading.reader
    return identity(
        config.training,
        {
            **described(config, start, task),
            "pairs_fingerprint": _fingerprint(pairs),
            "eval_pairs_fingerprint": None if judged is None else _fingerprint(judged),
            "held_out_share": config.held_out_share if judged is None else None,
            "max_pixels": config.reading.max_pixels,
            **({"reader": plugin_identity(reader)} if reader is not None else {}),
        },
    )


def _fingerprint(pairs: Pairs) -> str:
    """Of image names and captions, and of who is shown, by which pairs are held out."""
    return fingerprint_of(np.concatenate([pairs.ids, group_ids(pairs)]))
