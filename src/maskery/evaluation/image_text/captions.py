"""Texts that people type, read as the captions that a model was trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from maskery.core.batch import TokenBatch
from maskery.core.errors import DataError
from maskery.data.person_search.config import clean_caption
from maskery.evaluation.image_text.opening import OpenImageText
from maskery.evaluation.text.fill import end_to_end


def prepared(opened: OpenImageText, text: str, *, what: str = "query") -> str:
    """Prepare a typed text as the captions were that the model was trained on.

    Training cuts captions that are too long; what is typed is refused instead of read in part.
    """
    if not text.strip():
        raise DataError(f'the {what} is empty; describe a picture, as "a red coat"')
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"the {what} {text!r} has bytes that are not UTF-8; type it anew, or set the terminal "
            f"to UTF-8"
        ) from error
    most = opened.retrieval.max_words
    words = len(clean_caption(text, max_words=len(text)).split())
    if opened.retrieval.clean_captions and words > most:
        raise DataError(f"the {what} has {words} words, and the model reads {most}; shorten it")
    return opened.retrieval.prepare(text)


def require_readable(
    opened: OpenImageText, ids: Sequence[int], text: str, *, what: str = "query"
) -> None:
    """Refuse tokens that the model cannot read, or that say nothing to it."""
    if len(ids) > opened.max_tokens:
        raise DataError(
            f"the {what} has {len(ids)} tokens, and the model reads {opened.max_tokens}; shorten it"
        )
    if not set(ids) - set(opened.tokenizer.all_special_ids):
        raise DataError(
            f"the {what} {text!r} has no word that the model knows; use words of its captions"
        )


def encode_query(opened: OpenImageText, text: str) -> TokenBatch:
    """Return a description as tokens; DataError if it is empty, unknown, too long, no Unicode."""
    ready = prepared(opened, text)
    ids: list[int] = opened.tokenizer(ready, truncation=False, verbose=False)["input_ids"]
    require_readable(opened, ids, text)
    return end_to_end([ids])


@dataclass(frozen=True, kw_only=True)
class Word:
    """A word of the caption."""

    text: str  # as typed, from its first letter that the model reads to its last
    tokens: tuple[int, ...]  # places of its pieces in the caption, special tokens counted


def words_of(opened: OpenImageText, caption: str) -> tuple[torch.Tensor, list[Word]]:
    """Return a caption as token ids (L,), as the model reads it, and its words."""
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
    """Return the place of each letter of a prepared caption in the caption as typed.

    Preparing drops letters and splits words, and never changes their order: the next letter is
    always the next one of its kind. A space has the place of the letter before it.
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
