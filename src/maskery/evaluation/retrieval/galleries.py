"""Retrieval on image-caption pairs: each caption looks for the pictures of its person.

Where no person is named, each picture is its own, as in general image-text retrieval.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerBase

from maskery.core.batch import TokenBatch
from maskery.core.errors import DataError
from maskery.data.images.config import ViewConfig
from maskery.data.images.loading import Skipped
from maskery.data.images.views import readable, view_batches
from maskery.data.pairs.captions import tokenise_captions
from maskery.data.pairs.pairs import NOBODY, Pair, Pairs
from maskery.data.pairs.pictures import ImageRef
from maskery.evaluation.retrieval.config import RetrievalConfig
from maskery.evaluation.retrieval.evaluate import Retrieval, evaluate_retrieval
from maskery.evaluation.retrieval.features import some_texts
from maskery.models.image_text.model import ImageTextModel


@dataclass(frozen=True, kw_only=True)
class RetrievalSet:
    """A gallery and the captions that look for its pictures.

    Attributes:
        images: I pictures, none twice.
        image_persons: (I,) int64.
        captions: T texts, as they are read.
        texts: The same as tokens.
        text_persons: (T,) int64.
        text_images: (T,) int64, the picture that each caption was written for.
    """

    images: Sequence[ImageRef]
    image_persons: npt.NDArray[np.int64]
    captions: Sequence[str]
    texts: TokenBatch
    text_persons: npt.NDArray[np.int64]
    text_images: npt.NDArray[np.int64]


def retrieval_set(
    pairs: Pairs,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    prepare: Callable[[str], str] = str,
    skipped: Skipped | None = None,
) -> RetrievalSet:
    """The gallery and the captions of pairs; a picture in several pairs is in the gallery once.

    Args:
        pairs: Held-out ones.
        tokenizer: The model's.
        max_length: Longer captions are cut.
        prepare: What is done to each caption before, as cleaning.
        skipped: Told of captions in which no word is known to the tokenizer. Default: one that
            refuses them.

    Raises:
        DataError: A picture is said to show two persons, or a caption has no word that the
            tokenizer knows and `skipped` does not skip it.
    """
    pairs = _Prepared(pairs, prepare)
    numbers: dict[str, int] = {}
    images: list[ImageRef] = []
    persons: list[int] = []
    owners = np.empty(len(pairs), np.int64)
    for index, pair in enumerate(pairs):
        name = str(PurePosixPath(pair.image.name))  # a/./b.jpg is a/b.jpg
        # Without a person, a picture stands for itself.
        person = pair.person if pair.person is not None else -2 - len(images)
        if name not in numbers:
            numbers[name] = len(images)
            images.append(pair.image)
            persons.append(person)
        elif pair.person is not None and persons[numbers[name]] != pair.person:
            raise DataError(
                f"image {name} is said to show person {_name(pairs, pair.person)} and person "
                f"{_name(pairs, persons[numbers[name]])}; correct the one that is wrong"
            )
        owners[index] = numbers[name]
    skipped = skipped or Skipped("caption", "fail")
    tokens = tokenise_captions(pairs, tokenizer, skipped, max_length=max_length)
    text_images = owners[tokens.owners]
    chosen = np.arange(len(tokens.owners))
    return RetrievalSet(
        images=images,
        image_persons=np.array(persons, np.int64),
        captions=[
            pairs[owner].captions[place]
            for owner, place in zip(tokens.owners.tolist(), tokens.places.tolist(), strict=True)
        ],
        texts=tokens.batch(chosen, pairs.ids[tokens.owners]),
        text_persons=np.array(persons, np.int64)[text_images],
        text_images=text_images,
    )


def without_unreadable(
    data: RetrievalSet, view: ViewConfig, skipped: Skipped, *, batch_images: int = 32
) -> RetrievalSet:
    """The pictures that can be read, and their captions; every picture is decoded to find out.

    Args:
        data: What is found, and by what.
        view: How pictures are prepared, with size set.
        skipped: Told of pictures that cannot be read; its policy decides what follows.
        batch_images: Pictures read at once; nothing else depends on it.

    Raises:
        DataError: One cannot be read and `skipped` does not skip it, or none can.
    """
    sound = np.array(readable(data.images, view, skipped, batch_images=batch_images), np.int64)
    if len(sound) == len(data.images):
        return data
    chosen = np.flatnonzero(np.isin(data.text_images, sound))
    if not len(chosen):
        raise DataError(f"no picture with a caption can be read ({skipped}); bring others")
    return RetrievalSet(
        images=[data.images[index] for index in sound.tolist()],
        image_persons=data.image_persons[sound],
        captions=[data.captions[index] for index in chosen.tolist()],
        texts=some_texts(data.texts, chosen),
        text_persons=data.text_persons[chosen],
        text_images=np.searchsorted(sound, data.text_images[chosen]),
    )


def evaluate_retrieval_set(
    model: ImageTextModel,
    data: RetrievalSet,
    view: ViewConfig,
    config: RetrievalConfig,
    *,
    progress: bool = False,
) -> Retrieval:
    """See `evaluate_retrieval`.

    Args:
        model: Put into evaluation mode meanwhile.
        data: What is found, and by what.
        view: How pictures are prepared, with size and normalisation set.
        config: Settings.
        progress: Whether to draw bars.

    Raises:
        DataError: A picture cannot be read.
    """
    from tqdm import tqdm

    batches = view_batches(
        data.images, view, Skipped("image", "fail"), batch_images=config.batch_images
    )
    total = -(-len(data.images) // config.batch_images)
    bar = tqdm(batches, total=total, desc="images", leave=False, disable=not progress)
    return evaluate_retrieval(
        model,
        (pixels for _, pixels in bar),
        data.texts,
        image_persons=data.image_persons,
        text_persons=data.text_persons,
        config=config,
        progress=progress,
    )


class _Prepared(Pairs):
    """The same pairs, with something done to their captions."""

    def __init__(self, pairs: Pairs, prepare: Callable[[str], str]) -> None:
        self.__dict__.update(pairs.__dict__)
        self._prepare = prepare

    def __getitem__(self, index: int) -> Pair:
        pair = super().__getitem__(index)
        return replace(pair, captions=tuple(self._prepare(text) for text in pair.captions))


def _name(pairs: Pairs, person: int) -> str:
    return pairs.person_names[person] if person > NOBODY else "nobody"
