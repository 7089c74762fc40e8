"""Open an image-text model, tell which heads of it are trained, and read what people type."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import BatchEncoding, PreTrainedTokenizerBase

from maskery.core.batch import TokenBatch
from maskery.core.errors import DataError, ModelError
from maskery.core.processes import to_gpu
from maskery.data.images import config
from maskery.data.images.config import Channels, ViewConfig
from maskery.data.images.loading import ImageRef
from maskery.data.person_search.config import clean_caption
from maskery.evaluation.retrieval.config import ModelRetrieval, read_model_retrieval
from maskery.evaluation.text.fill import end_to_end
from maskery.evaluation.text.words_of_text import Word
from maskery.models.image_text.build import ALIGNED, build_from_towers, is_aligned, refuse_missing
from maskery.models.image_text.model import ImageTextConfig, ImageTextModel
from maskery.models.loading import load_tokenizer, load_weights, resolve

if TYPE_CHECKING:
    from PIL.Image import Image

PREPROCESSOR = "preprocessor_config.json"
# Mean and deviation that each family was trained with, for checkpoints that do not say. ALBEF and
# RaSa used CLIP's; ViT and SigLIP were trained with what is the default.
CLIP = (ImageTextConfig.model_type, "clip", "clip_vision_model")
IMAGENET = ("deit", "dinov2", "dinov2_with_registers")
NORMALISATION: dict[str, tuple[Channels, Channels]] = {
    **dict.fromkeys(CLIP, (config.CLIP_MEAN, config.CLIP_STD)),
    **dict.fromkeys(IMAGENET, (config.IMAGENET_MEAN, config.IMAGENET_STD)),
}


@dataclass(frozen=True, kw_only=True)
class OpenImageText:
    """An image-text model ready for use."""

    name: str  # as given
    model: ImageTextModel  # in evaluation mode
    tokenizer: PreTrainedTokenizerBase  # its tokenizer
    view: ViewConfig  # preparation of its pictures, without anything random
    retrieval: ModelRetrieval  # its way to read captions and rank pictures

    @property
    def max_tokens(self) -> int:
        """The most tokens of a caption."""
        positions = int(self.model.config.text_config.max_position_embeddings)
        return min(positions, self.retrieval.max_length or positions)

    def trained(self, term: str) -> bool:
        """Return True if a loss term's heads are trained: `itm` to match, `mlm` to fill words."""
        blind = term == "itm" and not self.model.text_encoder.fusion_layers
        return term in self.retrieval.trained and not blind

    def require_contrast(self) -> None:
        """Refuse a model whose features say nothing."""
        if not self.trained("itc"):
            problem = f"the contrastive projections of '{self.name}' were never trained"
            fix = "train with --itc-weight above 0"
            raise ModelError(f"{problem}, so its features cannot be compared; {fix}")

    def encode_query(self, text: str) -> TokenBatch:
        """Return a description as tokens; DataError if empty, unknown, too long or no Unicode."""
        ids: list[int] = self._encoded(text, "query")[1]["input_ids"]
        self._require_readable(ids, text, "query")
        return end_to_end([ids])

    def words_of(self, caption: str) -> tuple[torch.Tensor, list[Word]]:
        """Return a caption as token ids (L,), as the model reads it, and its words.

        A word is told as typed, from its first letter that the model reads to its last.
        """
        ready, encoded = self._encoded(caption, "caption")
        ids: list[int] = encoded["input_ids"]
        typed, words = origins(ready, caption), []
        for number in sorted({number for number in encoded.word_ids() if number is not None}):
            letters, (first, last) = encoded.word_to_chars(number), encoded.word_to_tokens(number)
            start, end = typed[letters.start], typed[letters.end - 1] + 1
            text = caption[start:end]
            if any(map(str.isalnum, text)):
                words.append(Word(text=text, start=start, end=end, first=first, last=last))
        if not words:
            raise DataError(f"the caption {caption!r} has no word in it; describe the picture")
        self._require_readable(ids, caption, "caption")
        return torch.tensor(ids), words

    def _encoded(self, text: str, what: str) -> tuple[str, BatchEncoding]:
        """Prepare a typed text as the captions were that the model learnt from; and its tokens.

        Training cuts captions that are too long; what is typed is refused instead of read in part.
        """
        if not text.strip():
            raise DataError(f'the {what} is empty; describe a picture, as "a red coat"')
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            problem = f"the {what} {text!r} has bytes that are not UTF-8"
            raise DataError(f"{problem}; type it anew, or set the terminal to UTF-8") from error
        most = self.retrieval.max_words
        words = len(clean_caption(text, max_words=len(text)).split())
        if self.retrieval.clean_captions and words > most:
            raise DataError(f"the {what} has {words} words, and the model reads {most}; shorten it")
        ready = self.retrieval.prepare(text)
        return ready, self.tokenizer(ready, truncation=False, verbose=False)

    def _require_readable(self, ids: Sequence[int], text: str, what: str) -> None:
        """Refuse tokens that the model cannot read, or that say nothing to it."""
        if len(ids) > (most := self.max_tokens):
            problem = f"has {len(ids)} tokens, and the model reads {most}"
            raise DataError(f"the {what} {problem}; shorten it")
        if not set(ids) - set(self.tokenizer.all_special_ids):
            problem = f"the {what} {text!r} has no word that the model knows"
            raise DataError(f"{problem}; use words of its captions")


def is_image_text(name: str) -> bool:
    """Return True if a name is the folder of an image-text model, of its run, or of a CLIP."""
    try:
        about = json.loads((Path(resolve(name)) / "config.json").read_text("utf-8"))
        return about["model_type"] in (ImageTextConfig.model_type, *ALIGNED)
    except (ModelError, OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def open_image_text(name: str) -> OpenImageText:
    """Load an image-text model with its tokenizer: a run's, a model folder, a CLIP or SigLIP."""
    model: ImageTextModel
    if is_aligned(name):
        model, tokenizer, _ = build_from_towers(name)
    elif is_image_text(name):
        model, info = load_weights(ImageTextModel, name)
        refuse_missing(name, "the model", info)
        tokenizer = load_tokenizer(name)
    else:
        fix = "name a folder that maskery train pairs or maskery convert has written"
        raise ModelError(f"'{name}' is no image-text model; {fix}, or a CLIP or SigLIP")
    to_gpu(model.eval())
    view = preprocessing_of(name, model, ViewConfig())
    own = read_model_retrieval(name) or _guess_model_retrieval(model)
    return OpenImageText(name=name, model=model, tokenizer=tokenizer, view=view, retrieval=own)


def _guess_model_retrieval(model: ImageTextModel) -> ModelRetrieval:
    # Biases start at exactly zero, and no optimiser leaves a trained one there. The bias over the
    # vocabulary may start at the words' frequencies, so that head counts as trained.
    towers = model.config.has_towers  # which come trained to be compared
    trained = [] if towers and not model.text_encoder.fusion_layers else ["mlm"]
    if towers or all(bool(p.bias.any()) for p in (model.text_proj, model.vision_proj)):
        trained.append("itc")
    if model.text_encoder.fusion_layers and bool(model.itm_head.bias.any()):
        trained.append("itm")
    return ModelRetrieval(trained=tuple(trained))


def preprocessing_of(name: str, model: ImageTextModel, view: ViewConfig) -> ViewConfig:
    """Return `view` with what is not set taken from the model's preprocessor, or its family's."""
    described, model_type = _read(name, PREPROCESSOR), _read(name, "config.json").get("model_type")
    mean, std = NORMALISATION.get(str(model_type), (config.HALF_MEAN, config.HALF_STD))
    mean = _channels(described.get("image_mean"), mean)
    std = _channels(described.get("image_std"), std)
    height, width = map(int, model.config.image_size)
    return view.for_encoder(height=height, width=width, mean=mean, std=std)


def _channels(found: Any, usual: Channels) -> Channels:
    if not isinstance(found, list) or len(found) != 3:
        return usual
    return float(found[0]), float(found[1]), float(found[2])


def _read(name: str, file: str) -> dict[str, Any]:
    """Return a JSON file of a model, empty where there is none."""
    from transformers.utils import cached_file

    try:
        found = cached_file(resolve(name), file, _raise_exceptions_for_missing_entries=False)
        read = {} if found is None else json.loads(Path(found).read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return read if isinstance(read, dict) else {}


def load_picture(image: str | Path | bytes, near: tuple[int, int] | None = None) -> "Image":
    """Read a picture as RGB, from a file or from its bytes; `near` is as in `load_image`."""
    if isinstance(image, bytes):
        return ImageRef.held("that was given", image).load(near)
    return ImageRef.file(Path(image).name, Path(image).parent).load(near)


def origins(ready: str, caption: str) -> Sequence[int]:
    """Return the place of each letter of a prepared caption in the caption as typed.

    Preparing drops letters and splits words, and never changes their order: the next letter is
    always the next one of its kind. A space has the place of the letter before it.
    """
    if ready == caption:
        return range(len(caption))
    # One letter may be two in lower case. A sigma's form depends on the letters around it.
    typed = ((low, place) for place, letter in enumerate(caption) for low in letter.lower())
    places = []
    for letter in ready:
        if letter != " ":
            alike = (letter, "σ") if letter == "ς" else (letter,)
            place = next(place for low, place in typed if low in alike)
        places.append(place)
    return places
