"""The words of a caption as they were typed, and the tokens that a model reads them as."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from maskery.core.errors import DataError
from maskery.evaluation.image_text.opening import OpenImageText
from maskery.evaluation.retrieval.queries import prepared, require_readable


@dataclass(frozen=True, kw_only=True)
class Word:
    """A word of the caption.

    Attributes:
        text: As typed, from its first letter that the model reads to its last.
        tokens: Where its pieces stand in the caption, special tokens counted.
    """

    text: str
    tokens: tuple[int, ...]


def words_of(opened: OpenImageText, caption: str) -> tuple[torch.Tensor, list[Word]]:
    """A caption as token ids (L,), prepared for the model, and its words without punctuation.

    Raises:
        DataError: It has no word, none that the model knows, or more than it reads.
    """
    ready = prepared(opened, caption, what="caption")
    encoded = opened.tokenizer(ready, truncation=False, verbose=False, return_offsets_mapping=True)
    ids: list[int] = encoded["input_ids"]
    pieces: dict[int, list[int]] = {}
    for place, number in enumerate(encoded.word_ids()):
        if number is not None:
            pieces.setdefault(number, []).append(place)
    offsets, typed = encoded["offset_mapping"], origins(ready, caption)
    words = []
    for places in pieces.values():
        first, end = typed[offsets[places[0]][0]], typed[offsets[places[-1]][1] - 1] + 1
        words.append(Word(text=caption[first:end], tokens=tuple(places)))
    words = [word for word in words if any(letter.isalnum() for letter in word.text)]
    if not words:
        raise DataError(f"the caption {caption!r} has no word in it; describe the picture")
    require_readable(opened, ids, caption, what="caption")
    return torch.tensor(ids), words


def origins(ready: str, caption: str) -> Sequence[int]:
    """Where each letter of a prepared caption stands in the caption as typed.

    Preparing lowers letters, drops some and splits words, and never changes their order. So the
    next letter is always the next one of its kind.

    Args:
        ready: From `clean_caption`, or the caption itself.
        caption: As typed.

    Returns:
        As many places as `ready` is long; a space has that of the letter before it.
    """
    if ready == caption:
        return range(len(caption))
    # One letter may be two in lower case. A sigma's form depends on the letters around it.
    letters = [(low, place) for place, letter in enumerate(caption) for low in letter.lower()]
    places: list[int] = []
    at = 0
    for letter in ready:
        if letter == " ":
            places.append(places[-1])
            continue
        while letters[at][0] != letter and (letters[at][0], letter) != ("σ", "ς"):
            at += 1
        places.append(letters[at][1])
        at += 1
    return places
