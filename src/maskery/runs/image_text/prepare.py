"""The model that an image-text run starts from, its captions as tokens, and its task."""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerBase

from maskery.core.errors import CheckpointError, ConfigError, counted, explained
from maskery.core.task import EXTRA_STATE, part_of
from maskery.data.corpus.reader import Corpus
from maskery.data.images.config import HALF_MEAN, HALF_STD, ViewConfig
from maskery.data.images.loading import Skipped
from maskery.data.pairs.batches import CaptionTokens, tokenise_captions
from maskery.data.pairs.config import PairsConfig
from maskery.data.pairs.pairs import Pairs
from maskery.data.person_search.config import PersonSearchDataConfig
from maskery.data.vocabulary import learnt_tokenizer
from maskery.evaluation.image_text.opening import OpenImageText, open_image_text, preprocessing_of
from maskery.masking.masker import Masker
from maskery.models import loading
from maskery.models.image_text import build
from maskery.models.image_text.model import ImageTextModel, check_image_size
from maskery.runs.frame.run_folder import TOKENIZER
from maskery.runs.image_text.config import SCRATCH, SIZES, ImageTextRunConfig
from maskery.tasks.image_text import ImageTextTask

log = logging.getLogger(__name__)

OUTPUT_BIAS = "text_encoder.cls.predictions.bias"
# In the languages that pairs most often come in.
SIDES = re.compile(
    r"\b(left|right|links|rechts|gauche|droite|izquierd[ao]|derech[ao]|слева|справа)\b|[左右]", re.I
)
ReadingConfig: TypeAlias = PairsConfig | PersonSearchDataConfig


@dataclass(frozen=True, kw_only=True)
class StartModel:
    """The initial model of a run."""

    model: ImageTextModel
    tokenizer: PreTrainedTokenizerBase
    view: ViewConfig  # The run's settings with the encoder's size and normalisation filled in
    new_parameters: frozenset[str] = frozenset()  # Names of parameters that start from nothing


Opened: TypeAlias = StartModel | OpenImageText


def start_model(
    config: ImageTextRunConfig, pairs: Pairs, *, folder: Path | None = None, progress: bool = True
) -> StartModel:
    """Make or load the model of a run; `folder` is the run folder."""
    text, vision, view = config.text_model, config.vision_model, config.view
    size = None if view.height is None or view.width is None else (view.height, view.width)
    name, new = config.model, frozenset[str]()
    # The run's seed, without moving the random numbers of whoever calls.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.training.seed)
        if text is not None and vision is not None:
            name, tokenizer = vision, loading.load_tokenizer(text)
            model, new = build.build_from_encoders(
                text, vision, fusion_layer=config.fusion_layer, image_size=size
            )
        elif name.startswith(SCRATCH):
            captions = [caption for pair in pairs for caption in pair.captions]
            kept = None if folder is None else folder / TOKENIZER
            corpus = Corpus.of(captions, name="the captions")
            tokenizer = learnt_tokenizer(corpus, config, kept, progress=progress)
            sizes = SIZES[name.removeprefix(SCRATCH)]
            height, width = size or sizes.image_size
            length = config.max_length or sizes.max_length
            sizes = replace(sizes, image_size=(height, width), max_length=length)
            words, pad = len(tokenizer), int(tokenizer.pad_token_id)
            model = build.build_from_scratch(sizes, vocabulary_size=words, pad_token_id=pad)
            view = view.for_encoder(height=height, width=width, mean=HALF_MEAN, std=HALF_STD)
            new = frozenset(parameter for parameter, _ in model.named_parameters())
        elif build.is_aligned(name):
            model, tokenizer, new = build.build_from_towers(
                name, fusion_layers=config.fusion_layers, image_size=size
            )
        else:
            opened = open_image_text(name)
            model, tokenizer = opened.model, opened.tokenizer
    if not name.startswith(SCRATCH):
        view = preprocessing_of(name, model, view)
        check_image_size(view.size, model.config.vision_config)
    if config.fusion_layers and config.fusion_layers != model.config.interaction_layers:
        problem = f"--fusion-layers {config.fusion_layers} goes on top of a CLIP or SigLIP"
        why = f"'{config.start}' is another start, with fusion of its own"
        raise ConfigError(f"{problem}, and {why}; leave it out")
    loading.require_rows(f"'{config.start}'", model, tokenizer)
    return StartModel(model=model, tokenizer=tokenizer, view=view, new_parameters=new)


def read_captions(
    pairs: Pairs, tokenizer: PreTrainedTokenizerBase, reading: ReadingConfig, max_length: int
) -> CaptionTokens:
    """Return the tokens of the captions of pairs; log what is cut or left out."""
    skipped = Skipped("caption", reading.on_bad_caption)
    captions = tokenise_captions(pairs, tokenizer, skipped, max_length=max_length)
    if captions.num_cut:
        log.warning("cut at %d tokens: %s", max_length, counted(captions.num_cut, "caption"))
    for told in (skipped, pairs.skipped_captions):
        if told.count:
            log.warning("%s", told)
    return captions


def warn_of_sides(pairs: Pairs, flip_probability: float) -> None:
    """Log how many captions say left or right, which a mirrored picture makes wrong."""
    if not flip_probability:
        return
    count = sum(SIDES.search(caption) is not None for pair in pairs for caption in pair.captions)
    if count:
        problem = f"a share of {flip_probability:g} of the pictures is mirrored"
        fix = "if they mean sides, add --flip-probability 0"
        log.warning("%s captions say left or right, and %s: %s", f"{count:,}", problem, fix)


def require_fusion(config: ImageTextRunConfig, model: ImageTextModel) -> None:
    """Refuse terms of words that look at a picture, where a dual encoder has none."""
    if not model.config.has_towers or model.text_encoder.fusion_layers:
        return
    # The figures of pairs are words that are filled in.
    names = {"mlm"} if config.kind == "pairs" else set()
    names |= {"mlm", "mrtd", "itm", "prd"} & config.objectives.weights.keys()
    if names:
        problem = f"'{config.start}' is a dual encoder, without fusion layers for"
        fix = "add --fusion-layers 4, or in train person-search leave them out"
        flags = " ".join(f"--{name}-weight 0" for name in sorted(names))
        raise ConfigError(f"{problem} {', '.join(sorted(names))}: {fix}: {flags}")


def make_task(
    config: ImageTextRunConfig,
    opened: Opened,
    terms: Sequence[Any] = (),
    pairs: Pairs | None = None,
) -> ImageTextTask:
    """Make the task of a run; its twin starts as a copy of the model."""
    seed = config.training.seed
    masker = Masker.of(opened.tokenizer, config.masking, seed=seed)
    return ImageTextTask(
        opened.model,
        replace(config.objectives, seed=seed),
        pad_token_id=int(opened.tokenizer.pad_token_id or 0),
        masker=masker,
        mrtd_masker=masker.for_generator(config.mrtd_mask_rate),
        terms=terms,
        pairs=pairs,
    )


def twin_beside(name: str) -> dict[str, torch.Tensor] | None:
    """Read the momentum twin in a model folder; None without one."""
    path = Path(loading.resolve(name)) / EXTRA_STATE
    if not path.is_file():
        return None
    problem = f"the momentum twin in '{path}' cannot be read"
    fix = "restore the file, or remove it to do without the twin"
    with explained(problem, fix, OSError, SafetensorError, kind=CheckpointError, most=120):
        return part_of(load_file(path), "twin.")
