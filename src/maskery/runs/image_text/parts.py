"""What runs on pairs and on persons prepare alike: captions, pictures, the task, its identity."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import torch
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerBase

from maskery.core.task import EXTRA_STATE
from maskery.data.images.loading import Skipped
from maskery.data.pairs.captions import CaptionTokens, tokenise_captions
from maskery.data.pairs.pairs import Pairs
from maskery.data.pairs.pictures import Pictures
from maskery.data.tokenise import tokenizer_fingerprint
from maskery.masking.masker import Masker
from maskery.models.loading import known_as, resolve
from maskery.objectives.terms import belongs
from maskery.runs.image_text.config import ImageTextRunConfig
from maskery.runs.image_text.start import StartModel, choose_max_length
from maskery.tasks.image_text_mlm import CaptionTask
from maskery.tasks.loss_terms import ATTRIBUTE

log = logging.getLogger(__name__)

TaskT = TypeVar("TaskT", bound=CaptionTask)


class ReadingConfig(Protocol):
    """What to do about captions and pictures that cannot be read."""

    @property
    def on_bad_caption(self) -> Literal["skip", "fail"]:
        """Captions."""

    @property
    def on_bad_image(self) -> Literal["skip", "fail"]:
        """Pictures."""


def read_captions(
    pairs: Pairs, tokenizer: PreTrainedTokenizerBase, reading: ReadingConfig, max_length: int
) -> CaptionTokens:
    """The tokens of the captions of pairs; what is cut or left out here is told."""
    skipped = Skipped("caption", reading.on_bad_caption)
    captions = tokenise_captions(pairs, tokenizer, skipped, max_length=max_length)
    if captions.num_cut:
        log.warning("%d captions are cut at %d tokens", captions.num_cut, max_length)
    if skipped.count:
        log.warning("%s", skipped)
    return captions


def open_pictures(
    config: ImageTextRunConfig,
    reading: ReadingConfig,
    pairs: Pairs,
    start: StartModel,
    cache_bytes: int,
) -> Pictures:
    """The pictures of pairs."""
    # A crop takes its part of the whole picture, so it is decoded whole.
    near = None if config.view.crop_scale else start.view.size
    return Pictures(pairs, reading.on_bad_image, near=near, cache_bytes=cache_bytes)


def make_task(
    kind: type[TaskT], config: ImageTextRunConfig, start: StartModel, terms: Sequence[Any] = ()
) -> TaskT:
    """Make the task of a run; its twin starts as a copy of the model.

    Args:
        kind: The class of the task.
        config: The run's configuration.
        start: The initial model.
        terms: Loss terms of the user's own, as objects.

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

    Args:
        start: The initial model, with the user's loss terms in it.
        heads: Names of modules that count as new although a checkpoint may have them.
    """
    heads = (ATTRIBUTE, *heads)
    names = (name for name, _ in start.model.named_parameters())
    return start.new_parameters | {name for name in names if belongs(name, heads)}


def extra_state_of(config: ImageTextRunConfig, start: StartModel) -> Mapping[str, torch.Tensor]:
    """The momentum twin and the queues of the model folder that a run starts from, if it has any.

    Names are those of `Task.extra_state`.
    """
    if start.from_scratch or config.text_model is not None:
        return {}
    path = Path(resolve(config.model)) / EXTRA_STATE
    return load_file(path) if path.is_file() else {}


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
