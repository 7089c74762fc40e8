"""The model that an image-text run starts from, its parts, and what it saves."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from maskery.core.errors import ConfigError, ModelError
from maskery.core.system import replace_folder
from maskery.core.task import EXTRA_STATE, part_of
from maskery.data.images.config import HALF_MEAN, HALF_STD, ViewConfig
from maskery.data.images.loading import Skipped
from maskery.data.pairs.captions import CaptionCorpus, CaptionTokens, tokenise_captions
from maskery.data.pairs.config import PairsConfig
from maskery.data.pairs.pairs import Pairs
from maskery.data.pairs.pictures import Pictures
from maskery.data.person_search.config import PersonSearchDataConfig
from maskery.data.tokenise import tokenizer_fingerprint, train_wordpiece
from maskery.evaluation.image_text.opening import open_image_text, preprocessing_of
from maskery.masking.config import POLICIES
from maskery.masking.masker import Masker
from maskery.models.image_text.build import build_from_encoders, build_from_scratch
from maskery.models.image_text.config import check_image_size
from maskery.models.image_text.model import ImageTextModel
from maskery.models.loading import known_as, load_tokenizer, resolve
from maskery.objectives.terms import belongs
from maskery.runs.frame.run_folder import TOKENIZER, write_text
from maskery.runs.image_text.config import SCRATCH, SIZES, ImageTextRunConfig
from maskery.tasks.image_text import ImageTextTask
from maskery.tasks.loss_terms import ATTRIBUTE, without_terms

OUTPUT_BIAS = "text_encoder.cls.predictions.bias"


@dataclass(frozen=True, kw_only=True)
class StartModel:
    """The initial model of a run."""

    model: ImageTextModel
    tokenizer: PreTrainedTokenizerBase
    view: ViewConfig  # The run's settings with the encoder's size and normalisation filled in
    new_parameters: frozenset[str]  # Names of parameters that start from nothing
    from_scratch: bool = False  # True if all of them do

    @property
    def has_new_head(self) -> bool:
        """True if the vocabulary projection has learnt nothing yet."""
        return OUTPUT_BIAS in self.new_parameters


def start_model(
    config: ImageTextRunConfig, pairs: Pairs, *, folder: Path | None = None, progress: bool = True
) -> StartModel:
    """Make or load the model of a run; `folder` is the run folder."""
    if config.text_model is not None and config.vision_model is not None:
        start = _from_encoders(config, config.text_model, config.vision_model)
    elif config.model.startswith(SCRATCH):
        start = _from_scratch(config, _own_tokenizer(config, pairs, folder, progress))
    else:
        opened = open_image_text(config.model)
        start = StartModel(
            model=opened.model,
            tokenizer=opened.tokenizer,
            view=_fitted(config.view, opened.model, opened.name),
            new_parameters=frozenset(),
        )
    vocabulary, pieces = start.model.config.text_config.vocab_size, len(start.tokenizer)
    if pieces > vocabulary:
        raise ModelError(
            f"the tokenizer of '{config.start}' has {pieces} tokens and its model {vocabulary}: "
            f"they do not belong together; use the model's own tokenizer"
        )
    return start


def _image_size(view: ViewConfig) -> tuple[int, int] | None:
    return None if view.height is None or view.width is None else (view.height, view.width)


def _own_tokenizer(
    config: ImageTextRunConfig, pairs: Pairs, folder: Path | None, progress: bool
) -> PreTrainedTokenizerBase:
    """The tokenizer that the run folder keeps, or one trained on the captions now."""
    # Trained again, it might number its pieces differently, and the run could not be resumed.
    kept = None if folder is None else folder / TOKENIZER
    if kept is not None and kept.is_dir():
        try:
            return AutoTokenizer.from_pretrained(kept, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise ModelError(
                f"the tokenizer in '{kept}' is damaged; start afresh with another --output"
            ) from error
    tokenizer = train_wordpiece(CaptionCorpus(pairs), config.vocab_size, progress=progress)
    if kept is not None:
        partial = kept.with_name(f"{kept.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        tokenizer.save_pretrained(partial)
        replace_folder(partial, kept)
    return tokenizer


def _from_scratch(config: ImageTextRunConfig, tokenizer: PreTrainedTokenizerBase) -> StartModel:
    sizes = SIZES[config.model.removeprefix(SCRATCH)]
    asked = _image_size(config.view)
    if asked is not None:
        sizes = replace(sizes, image_size=asked)
    if config.max_length is not None:
        sizes = replace(sizes, max_length=config.max_length)
    # The run's seed, without moving the random numbers of whoever calls.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.training.seed)
        model = build_from_scratch(
            sizes, vocabulary_size=len(tokenizer), pad_token_id=int(tokenizer.pad_token_id)
        )
    height, width = sizes.image_size
    return StartModel(
        model=model,
        tokenizer=tokenizer,
        view=config.view.for_encoder(height=height, width=width, mean=HALF_MEAN, std=HALF_STD),
        new_parameters=frozenset(name for name, _ in model.named_parameters()),
        from_scratch=True,
    )


def _from_encoders(config: ImageTextRunConfig, text: str, vision: str) -> StartModel:
    tokenizer = load_tokenizer(text)
    # The run's seed, without moving the random numbers of whoever calls.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.training.seed)
        model, new = build_from_encoders(
            text, vision, fusion_layer=config.fusion_layer, image_size=_image_size(config.view)
        )
    return StartModel(
        model=model,
        tokenizer=tokenizer,
        view=_fitted(config.view, model, vision),
        new_parameters=new,
    )


def _fitted(view: ViewConfig, model: ImageTextModel, name: str) -> ViewConfig:
    """Return the view with what is not set taken from the model."""
    fitted = preprocessing_of(name, model, view)
    height, width = fitted.height, fitted.width
    assert height is not None
    assert width is not None
    check_image_size((height, width), model.config.vision_config)
    return fitted


@torch.no_grad()
def start_at_frequencies(model: ImageTextModel, counts: npt.NDArray[np.int64]) -> None:
    """Let a new head predict word frequencies, (V,) counts, before it has learnt anything."""
    bias = model.text_encoder.cls.predictions.bias
    known = counts[: len(bias)]
    # One added to each count: a word not seen yet stays possible.
    frequencies = (known + 1.0) / (known.sum() + len(known))
    bias[: len(known)] = torch.from_numpy(np.log(frequencies)).to(bias)


def choose_max_length(config: ImageTextRunConfig, model: ImageTextModel) -> int:
    """Return the most tokens of a caption; a ConfigError if the model has fewer positions."""
    limit = int(model.config.text_config.max_position_embeddings)
    if config.max_length is not None and config.max_length > limit:
        raise ConfigError(
            f"--max-length is {config.max_length}, and the model has {limit} positions; "
            f"lower it to {limit} or less"
        )
    return config.max_length or limit


def save_preprocessing(folder: Path, view: ViewConfig) -> None:
    """Write `preprocessor_config.json`, as Hugging Face image processors have it."""
    mean, std = view.normalisation
    described = {
        "do_resize": True,
        "size": {"height": view.height, "width": view.width},
        "resample": 3,  # bicubic
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(mean),
        "image_std": list(std),
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(described, indent=1), "utf-8")


log = logging.getLogger(__name__)

TaskT = TypeVar("TaskT", bound=ImageTextTask)


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
    """Make the task of a run; its twin starts as a copy of the model."""
    seed = config.training.seed
    masker = Masker.of(start.tokenizer, config.masking, seed=seed)
    return kind(
        start.model,
        replace(config.objectives, seed=seed),
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


def save_model(folder: Path, start: StartModel, task: ImageTextTask, card: str) -> None:
    """Write the model, tokenizer, preprocessing of pictures, momentum twin and model card."""
    start.model.save_pretrained(folder, state_dict=without_terms(start.model.state_dict()))
    start.tokenizer.save_pretrained(folder)
    save_preprocessing(folder, start.view)
    twin = {n: t for n, t in task.extra_state().items() if n.startswith("twin.")}
    save_file({n: t.contiguous().cpu() for n, t in twin.items()}, folder / EXTRA_STATE)
    write_text(folder / "README.md", card)


def described(config: ImageTextRunConfig, start: StartModel, task: ImageTextTask) -> dict[str, Any]:
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
