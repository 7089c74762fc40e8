"""What an image-text run consists of, before its first step."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from safetensors.torch import load_file

from maskery.core.task import EXTRA_STATE
from maskery.core.vocabulary import Vocabulary
from maskery.data.images.skipped import Skipped
from maskery.data.pairs.captions import CaptionTokens, fingerprint, tokenise_captions
from maskery.data.pairs.pairs import Pairs
from maskery.data.pairs.pictures import Pictures
from maskery.data.pairs.source import HeldOutPairs, PairSource
from maskery.data.pairs.split import group_ids, split_pairs
from maskery.data.tokenise import tokenizer_fingerprint
from maskery.evaluation.masked import ExampleSums
from maskery.evaluation.sight import Sight, score_pairs
from maskery.masking.config import MaskingConfig
from maskery.masking.masker import Masker
from maskery.models.loading import resolve
from maskery.recipes.pairs_config import PairsRunConfig
from maskery.recipes.pairs_model import (
    StartModel,
    choose_max_length,
    start_at_frequencies,
    start_model,
)
from maskery.recipes.run_frame import identity
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
        identity: A hash of what a continuation must share.
    """

    config: PairsRunConfig
    start: StartModel
    task: ImageTextMLM
    vocabulary: Vocabulary
    train: PairSource
    held_out: HeldOutPairs
    identity: str

    def score(self) -> dict[Sight, ExampleSums]:
        """Held-out sums of the model as it is now, under each sight."""
        masker = Masker(vocabulary=self.vocabulary, config=EVALUATION_MASKING)
        model = self.start.model
        was_training = model.training
        scored = score_pairs(model.eval(), self.held_out, masker)
        model.train(was_training)
        return scored


def prepare_pairs(
    config: PairsRunConfig,
    *,
    start: StartModel | None = None,
    folder: Path | None = None,
    progress: bool = True,
) -> PairsRun:
    """Read, tokenise and split the pairs, and load or make the initial model.

    Args:
        config: The run.
        start: A model to use instead of the one the config names.
        folder: The run folder, as in `start_model`.
        progress: Whether to draw bars.
    """
    pairs = Pairs.open(config.pairs, config.reading)
    start = start or start_model(config, pairs, folder=folder, progress=progress)
    captions = _tokenise(config, pairs, start)
    groups = group_ids(pairs)
    if config.eval_pairs is None:
        train, held = split_pairs(groups, config.held_out_share)
        judged, judged_captions, judged_groups = pairs, captions, groups
    else:
        judged = Pairs.open(config.eval_pairs, config.reading)
        judged_captions = _tokenise(config, judged, start)
        judged_groups = group_ids(judged)
        train, held = np.arange(len(pairs)), np.arange(len(judged))
    cache_bytes = config.image_cache_mb * 2**20
    share = len(held) / (len(train) + len(held))
    source = PairSource(
        pairs,
        captions,
        _pictures(config, start, pairs, int(cache_bytes * (1 - share))),
        start.view,
        train,
        batch_pairs=config.training.batch_pairs,
        micro_pairs=config.training.micro_batch_pairs,
        seed=config.training.seed,
    )
    held_out = HeldOutPairs(
        judged,
        judged_captions,
        _pictures(config, start, judged, int(cache_bytes * share)),
        start.view,
        judged_groups,
        held,
    )
    if start.has_new_head:
        counts = captions.token_counts(start.model.config.text_config.vocab_size)
        start_at_frequencies(start.model, counts)
    log.info("%s training and %s held-out pairs", f"{len(train):,}", f"{len(held):,}")
    return PairsRun(
        config=config,
        start=start,
        task=make_task(config, start),
        vocabulary=Vocabulary.of(start.tokenizer),
        train=source,
        held_out=held_out,
        identity=identity_of(config, pairs, start),
    )


def make_task(config: PairsRunConfig, start: StartModel) -> ImageTextMLM:
    """The task of a run; a model folder that holds a momentum twin goes on with it."""
    vocabulary, seed = Vocabulary.of(start.tokenizer), config.training.seed
    masker = Masker(vocabulary=vocabulary, config=config.masking, seed=seed)
    task = ImageTextMLM(
        start.model,
        replace(config.objectives, seed=seed),
        vocabulary=vocabulary,
        pad_token_id=int(start.tokenizer.pad_token_id or 0),
        masker=masker,
        mrtd_masker=masker.for_generator(config.mrtd_mask_rate),
    )
    if not start.from_scratch and config.text_model is None:
        extra = Path(resolve(config.model)) / EXTRA_STATE
        if extra.is_file():
            task.load_extra_state(load_file(extra))
    return task


def _tokenise(config: PairsRunConfig, pairs: Pairs, start: StartModel) -> CaptionTokens:
    skipped = Skipped("caption", config.reading.on_bad_caption)
    longest = choose_max_length(config, start.model)
    captions = tokenise_captions(pairs, start.tokenizer, skipped, max_length=longest)
    if captions.num_cut:
        log.warning("%d captions are cut at %d tokens", captions.num_cut, longest)
    for told in (pairs.skipped_captions, skipped):
        if told.count:
            log.warning("%s", told)
    return captions


def _pictures(
    config: PairsRunConfig, start: StartModel, pairs: Pairs, cache_bytes: int
) -> Pictures:
    # A crop takes its part of the whole picture, so it is decoded whole.
    near = None if config.view.crop_scale else start.view.size
    return Pictures(pairs, config.reading.on_bad_image, near=near, cache_bytes=cache_bytes)


def skipped_lines(run: PairsRun) -> tuple[str, ...]:
    """What was left out, one line a kind; empty where nothing was."""
    told = (
        run.train.captions.skipped,
        run.train.pictures.skipped,
        run.held_out.pictures.skipped,
    )
    return tuple(str(skipped) for skipped in told if skipped.count)


def identity_of(config: PairsRunConfig, pairs: Pairs, start: StartModel) -> str:
    """A hash of everything that decides the course of a run, but not how it is computed."""
    return identity(
        config.training,
        {
            "model": [config.model, config.text_model, config.vision_model, config.fusion_layer],
            "pairs": fingerprint(pairs),
            "tokenizer": tokenizer_fingerprint(start.tokenizer),
            "held_out": [config.held_out_share, config.eval_pairs],
            "max_length": config.max_length,
            "view": asdict(start.view),
            "masking": asdict(config.masking),
            "mrtd_mask_rate": config.mrtd_mask_rate,
            "objectives": asdict(config.objectives),
        },
    )
