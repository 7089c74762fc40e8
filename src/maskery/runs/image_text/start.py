"""The model that an image-text run starts from, and how its pictures are prepared."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from maskery.core.errors import ConfigError, ModelError
from maskery.core.files import replace_folder
from maskery.data.images.config import HALF_MEAN, HALF_STD, ViewConfig
from maskery.data.pairs.captions import CaptionCorpus
from maskery.data.pairs.pairs import Pairs
from maskery.data.vocabulary import train_wordpiece
from maskery.evaluation.image_text.opening import open_image_text, preprocessing_of
from maskery.models.image_text.build import assemble_encoders, build_from_scratch
from maskery.models.image_text.config import check_image_size
from maskery.models.image_text.model import ImageTextModel
from maskery.models.loading import load_tokenizer
from maskery.runs.frame.run_folder import TOKENIZER
from maskery.runs.image_text.config import SCRATCH, SIZES, ImageTextRunConfig

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
    """Make or load the model of a run; `folder` is the run folder.

    Raises:
        ModelError: It cannot be loaded, or does not fit its tokenizer.
    """
    if config.text_model is not None and config.vision_model is not None:
        start = _from_encoders(config, config.text_model, config.vision_model)
    elif config.model.startswith(SCRATCH):
        start = _from_scratch(config, _own_tokenizer(config, pairs, folder, progress))
    else:
        start = _from_folder(config)
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
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.training.seed)
        model, new = assemble_encoders(
            text, vision, fusion_layer=config.fusion_layer, image_size=_image_size(config.view)
        )
    return StartModel(
        model=model,
        tokenizer=tokenizer,
        view=_fitted(config.view, model, vision),
        new_parameters=new,
    )


def _from_folder(config: ImageTextRunConfig) -> StartModel:
    opened = open_image_text(config.model)
    return StartModel(
        model=opened.model,
        tokenizer=opened.tokenizer,
        view=_fitted(config.view, opened.model, opened.name),
        new_parameters=frozenset(),
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
