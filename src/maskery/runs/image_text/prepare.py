"""The model that an image-text run starts from, its task, and what it saves."""

import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerBase

from maskery.core.errors import CheckpointError, ConfigError, counted, reason_of
from maskery.core.task import EXTRA_STATE, part_of
from maskery.data.corpus.reader import Corpus
from maskery.data.images.config import HALF_MEAN, HALF_STD, ViewConfig
from maskery.data.images.loading import Skipped
from maskery.data.pairs.batches import CaptionTokens, Pictures, ReadPairs, tokenise_captions
from maskery.data.pairs.config import PairsConfig
from maskery.data.pairs.pairs import Pairs
from maskery.data.person_search.config import PersonSearchDataConfig
from maskery.data.tokenise import tokenizer_fingerprint
from maskery.data.vocabulary import learnt_tokenizer
from maskery.evaluation.image_text.opening import OpenImageText, open_image_text, preprocessing_of
from maskery.masking.masker import Masker
from maskery.models import loading
from maskery.models.image_text.build import (
    build_from_encoders,
    build_from_scratch,
    build_from_towers,
    is_aligned,
)
from maskery.models.image_text.model import ImageTextModel, check_image_size
from maskery.objectives.terms import belongs
from maskery.runs.frame.run_folder import TOKENIZER, write_text
from maskery.runs.frame.run_frame import identity, model_card
from maskery.runs.image_text.config import SCRATCH, SIZES, ImageTextRunConfig
from maskery.tasks.image_text import ImageTextTask
from maskery.tasks.loss_terms import ATTRIBUTE, without_terms

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
            model, new = build_from_encoders(
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
            pad = int(tokenizer.pad_token_id)
            model = build_from_scratch(sizes, vocabulary_size=len(tokenizer), pad_token_id=pad)
            view = view.for_encoder(height=height, width=width, mean=HALF_MEAN, std=HALF_STD)
            new = frozenset(parameter for parameter, _ in model.named_parameters())
        elif is_aligned(name):
            layers = config.fusion_layers
            model, tokenizer, new = build_from_towers(name, fusion_layers=layers, image_size=size)
        else:
            opened = open_image_text(name)
            model, tokenizer = opened.model, opened.tokenizer
    if not name.startswith(SCRATCH):
        view = preprocessing_of(name, model, view)
        check_image_size(view.size, model.config.vision_config)
    if config.fusion_layers and config.fusion_layers != model.config.interaction_layers:
        raise ConfigError(
            f"--fusion-layers {config.fusion_layers} goes on top of a CLIP or SigLIP, and "
            f"'{config.start}' is another start, with fusion of its own; leave it out"
        )
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
        log.warning(
            "%s captions say left or right, and a share of %g of the pictures is mirrored: if they "
            "mean sides, add --flip-probability 0",
            *(f"{count:,}", flip_probability),
        )


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """The model of a run with its task, and how it reads pairs."""

    config: ImageTextRunConfig
    reading: ReadingConfig
    start: StartModel
    max_length: int  # Most tokens of a caption
    pairs: Pairs  # To train on
    captions: CaptionTokens  # Of these pairs
    task: ImageTextTask

    def read(self, pairs: Pairs, share: float) -> ReadPairs:
        """Return pairs as the model reads them, with a share of the memory for decoded pictures."""
        captions = self.captions
        if pairs is not self.pairs:
            captions = read_captions(pairs, self.start.tokenizer, self.reading, self.max_length)
        # A crop takes its part of the whole picture, so it is decoded whole.
        near = None if self.config.view.crop_scale else self.start.view.size
        cache_bytes = int(self.config.image_cache_mb * 2**20 * share)
        pictures = Pictures(pairs, self.reading.on_bad_image, near=near, cache_bytes=cache_bytes)
        return ReadPairs(pairs, captions, pictures, self.start.view)

    @property
    def batching(self) -> dict[str, Any]:
        """The sizes of training batches and the seed of their order."""
        training = self.config.training
        sizes = {"batch_pairs": training.batch_pairs, "micro_pairs": training.micro_batch_pairs}
        return {**sizes, "seed": training.seed}

    def learnt_anew(self) -> frozenset[str]:
        """Return the parameters that learn at `head_learning_rate`."""
        # The user's loss terms are new, and some heads although a checkpoint may have them.
        heads, names = self.config.NEW_HEADS, (n for n, _ in self.start.model.named_parameters())
        return self.start.new_parameters.union(n for n in names if belongs(n, (ATTRIBUTE, *heads)))

    def identity(self, **data: Any) -> str:
        """Return all that decides the course of a run, with what tells its data apart."""
        config, objects = self.config, self.task.described_objects()
        parts = {"text_model": config.text_model, "vision_model": config.vision_model}
        if config.text_model is None:  # otherwise nothing is read of it
            parts["model"] = config.model
        described = {
            **{part: name and loading.known_as(name) for part, name in parts.items()},
            "fusion_layer": config.fusion_layer,
            **({"fusion_layers": config.fusion_layers} if config.fusion_layers else {}),
            "tokenizer_fingerprint": tokenizer_fingerprint(self.start.tokenizer),
            **(config.learns() if config.start.startswith(SCRATCH) else {}),
            "max_length": self.max_length,
            "view": asdict(self.start.view),
            "masking": config.masking.described(),
            "mrtd_mask_rate": config.mrtd_mask_rate,
            "objectives": config.objectives.described(),
            **({"terms": objects} if objects else {}),
        }
        return identity(config.training, described | data)

    def save_model(self, folder: Path, document: Mapping[str, Any], **card: Any) -> None:
        """Write the model, tokenizer, preprocessing, momentum twin, and card; see `model_card`."""
        model, view = self.start.model, self.start.view
        model.save_pretrained(folder, state_dict=without_terms(model.state_dict()))
        self.start.tokenizer.save_pretrained(folder)
        mean, std = view.normalisation
        processing = {  # as Hugging Face image processors have it
            "do_resize": True,
            "size": {"height": view.height, "width": view.width},
            "resample": 3,  # bicubic
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(mean),
            "image_std": list(std),
        }
        (folder / "preprocessor_config.json").write_text(json.dumps(processing, indent=1), "utf-8")
        # Queues hold this dataset's persons and are of no use to another run.
        twin = {n: t for n, t in self.task.extra_state().items() if n.startswith("twin.")}
        save_file({n: t.contiguous().cpu() for n, t in twin.items()}, folder / EXTRA_STATE)
        text = model_card(self.config, self.config.start, document, **card)
        write_text(folder / "README.md", text)


def prepare_model(
    config: ImageTextRunConfig,
    pairs: Pairs,
    reading: ReadingConfig,
    *,
    folder: Path | None,
    progress: bool,
    terms: Sequence[Any],
) -> Prepared:
    """Load or make the initial model, tokenise the captions, and make the task."""
    start = start_model(config, pairs, folder=folder, progress=progress)
    _require_fusion(config, start.model)
    limit = int(start.model.config.text_config.max_position_embeddings)
    if config.max_length is not None and config.max_length > limit:
        raise ConfigError(
            f"--max-length is {config.max_length}, and the model has {limit} positions; "
            f"lower it to {limit} or less"
        )
    max_length = config.max_length or limit
    captions = read_captions(pairs, start.tokenizer, reading, max_length)
    warn_of_sides(pairs, config.view.flip_probability)
    if OUTPUT_BIAS in start.new_parameters:  # before the task is made, whose twin starts as a copy
        counts = captions.token_counts(start.model.config.text_config.vocab_size)
        loading.start_at_frequencies(start.model.text_encoder.cls.predictions.bias, counts)
    task = make_task(config, start, terms, pairs)
    if config.text_model is None and not config.model.startswith(SCRATCH):
        twin = twin_beside(config.model)
        if twin is not None:
            task.twin.load_state_dict(twin)
    return Prepared(
        config=config,
        reading=reading,
        start=start,
        max_length=max_length,
        pairs=pairs,
        captions=captions,
        task=task,
    )


def _require_fusion(config: ImageTextRunConfig, model: ImageTextModel) -> None:
    """Refuse terms of words that look at a picture, where a dual encoder has none."""
    if not model.config.has_towers or model.text_encoder.fusion_layers:
        return
    # The figures of pairs are words that are filled in.
    names = {"mlm"} if config.kind == "pairs" else set()
    names |= {"mlm", "mrtd", "itm", "prd"} & config.objectives.weights.keys()
    if names:
        raise ConfigError(
            f"'{config.start}' is a dual encoder, without fusion layers for "
            f"{', '.join(sorted(names))}: add --fusion-layers 4, or in train person-search leave "
            f"them out: {' '.join(f'--{name}-weight 0' for name in sorted(names))}"
        )


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
    try:
        return part_of(load_file(path), "twin.")
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"the momentum twin in '{path}' cannot be read ({reason_of(error, most=120)}); "
            f"restore the file, or remove it to do without the twin"
        ) from error
