"""Prepare and save the parts that pairs and person-search runs share."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerBase

from maskery.core.task import EXTRA_STATE, part_of
from maskery.data.images.loading import Skipped
from maskery.data.pairs.captions import CaptionTokens, tokenise_captions
from maskery.data.pairs.config import PairsConfig
from maskery.data.pairs.pairs import Pairs
from maskery.data.pairs.pictures import Pictures
from maskery.data.person_search.config import PersonSearchDataConfig
from maskery.data.tokenise import tokenizer_fingerprint
from maskery.masking.config import POLICIES
from maskery.masking.masker import Masker
from maskery.models.loading import known_as, resolve
from maskery.objectives.terms import belongs
from maskery.runs.frame.run_folder import write_text
from maskery.runs.image_text.config import ImageTextRunConfig
from maskery.runs.image_text.start import (
    StartModel,
    choose_max_length,
    save_preprocessing,
    start_at_frequencies,
    start_model,
)
from maskery.tasks.image_text_mlm import CaptionTask
from maskery.tasks.loss_terms import ATTRIBUTE, without_terms

log = logging.getLogger(__name__)

TaskT = TypeVar("TaskT", bound=CaptionTask)


ReadingConfig: TypeAlias = PairsConfig | PersonSearchDataConfig


def read_captions(
    pairs: Pairs, tokenizer: PreTrainedTokenizerBase, reading: ReadingConfig, max_length: int
) -> CaptionTokens:
    """Return the tokens of the captions of pairs; log what is cut or left out."""
    skipped = Skipped("caption", reading.on_bad_caption)
    captions = tokenise_captions(pairs, tokenizer, skipped, max_length=max_length)
    if captions.num_cut:
        log.warning("%d captions are cut at %d tokens", captions.num_cut, max_length)
    for told in (skipped, pairs.skipped_captions):
        if told.count:
            log.warning("%s", told)
    return captions


def open_pictures(
    config: ImageTextRunConfig,
    reading: ReadingConfig,
    pairs: Pairs,
    start: StartModel,
    cache_bytes: int,
) -> Pictures:
    """Open the pictures of pairs, to be decoded when they are read."""
    # A crop takes its part of the whole picture, so it is decoded whole.
    near = None if config.view.crop_scale else start.view.size
    return Pictures(pairs, reading.on_bad_image, near=near, cache_bytes=cache_bytes)


def require_policy(config: ImageTextRunConfig) -> None:
    """Load the policy before anything is read: a plug-in that cannot be is told at once."""
    POLICIES.find(config.masking.policy)


def make_task(
    kind: type[TaskT], config: ImageTextRunConfig, start: StartModel, terms: Sequence[Any] = ()
) -> TaskT:
    """Make the task of a run; its twin starts as a copy of the model.

    Raises:
        PluginError: A loss term of the user's own cannot be used.
    """
    seed = config.training.seed
    masker = Masker.of(start.tokenizer, config.masking, seed=seed)
    return kind(
        start.model,
        replace(config.objectives, seed=seed),
        vocabulary=masker.vocabulary,
        pad_token_id=int(start.tokenizer.pad_token_id or 0),
        masker=masker,
        mrtd_masker=masker.for_generator(config.mrtd_mask_rate),
        terms=terms,
    )


def learnt_anew(start: StartModel, heads: Sequence[str] = ()) -> frozenset[str]:
    """Return the parameters that learn at `head_learning_rate`: new ones, and these heads.

    Heads count as new although a checkpoint may have them; so do the user's loss terms.
    """
    heads = (ATTRIBUTE, *heads)
    names = (name for name, _ in start.model.named_parameters())
    return start.new_parameters | {name for name in names if belongs(name, heads)}


def twin_of(config: ImageTextRunConfig, start: StartModel) -> dict[str, torch.Tensor]:
    """Return the momentum twin in the model folder that a run starts from; empty without one."""
    if start.from_scratch or config.text_model is not None:
        return {}
    path = Path(resolve(config.model)) / EXTRA_STATE
    return part_of(load_file(path), "twin.") if path.is_file() else {}


def prepare_model(
    kind: type[TaskT],
    config: ImageTextRunConfig,
    pairs: Pairs,
    reading: ReadingConfig,
    *,
    start: StartModel | None,
    folder: Path | None,
    progress: bool,
    terms: Sequence[Any],
) -> tuple[StartModel, CaptionTokens, TaskT]:
    """Load or make the initial model, tokenise the captions, and make the task."""
    start = start or start_model(config, pairs, folder=folder, progress=progress)
    longest = choose_max_length(config, start.model)
    captions = read_captions(pairs, start.tokenizer, reading, longest)
    # Before the task is made, whose twin starts as a copy.
    if start.has_new_head:
        counts = captions.token_counts(start.model.config.text_config.vocab_size)
        start_at_frequencies(start.model, counts)
    task = make_task(kind, config, start, terms)
    # Queues, which may lie beside the twin, hold another dataset's persons: they start anew.
    twin = twin_of(config, start)
    if twin:
        task.load_twin(twin)
    return start, captions, task


def save_model(folder: Path, start: StartModel, task: CaptionTask, card: str) -> None:
    """Write the model, tokenizer, preprocessing of pictures, momentum twin and model card."""
    start.model.save_pretrained(folder, state_dict=without_terms(start.model.state_dict()))
    start.tokenizer.save_pretrained(folder)
    save_preprocessing(folder, start.view)
    twin = {n: t for n, t in task.extra_state().items() if n.startswith("twin.")}
    save_file({n: t.contiguous().cpu() for n, t in twin.items()}, folder / EXTRA_STATE)
    write_text(folder / "README.md", card)


def described(config: ImageTextRunConfig, start: StartModel, task: CaptionTask) -> dict[str, Any]:
    """Return what decides the course of either kind of run; for `identity`."""
    parts = {"text_model": config.text_model, "vision_model": config.vision_model}
    if config.text_model is None:  # otherwise nothing is read of it
        parts["model"] = config.model
    return {
        **{part: None if name is None else known_as(name) for part, name in parts.items()},
        "fusion_layer": config.fusion_layer,
        "tokenizer_fingerprint": tokenizer_fingerprint(start.tokenizer),
        "max_length": choose_max_length(config, start.model),
        "view": asdict(start.view),
        "masking": config.masking.described(),
        "mrtd_mask_rate": config.mrtd_mask_rate,
        "objectives": config.objectives.described(),
        **({"terms": objects} if (objects := task.described_objects()) else {}),
    }
