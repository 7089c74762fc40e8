"""The models of a playground and what can be asked of them, without any HTTP."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from maskery import __version__
from maskery.evaluation.fill import MASK, Filler
from maskery.evaluation.image_fill import ImageFiller
from maskery.evaluation.image_text_opening import OpenImageText, is_image_text, open_image_text
from maskery.evaluation.opening import open_model
from maskery.evaluation.pseudo_likelihood import Scorer
from maskery.evaluation.saliency import saliency
from maskery.playground import config
from maskery.playground.requests import RequestError


class Session:
    """One or two models, and the pictures that were dropped on the page.

    Args:
        names: Run folders, model folders or hub names.

    Raises:
        ModelError: One cannot be opened.
    """

    def __init__(self, *names: str) -> None:
        self.names = names
        self._opened: list[Filler | OpenImageText] = [_open(name) for name in names]
        self._pictures: OrderedDict[str, bytes] = OrderedDict()
        self._fillers: OrderedDict[tuple[int, str | None], Filler] = OrderedDict()
        self._scorers: dict[Filler, Scorer] = {}

    def info(self) -> dict[str, Any]:
        """What the page must know before it asks anything."""
        models = [
            {
                "name": _shown(name),
                "pictures": isinstance(opened, OpenImageText),
                "positions": self._filler(index, None).limit,
            }
            for index, (name, opened) in enumerate(zip(self.names, self._opened, strict=True))
        ]
        limits = {
            "characters": config.CHARACTERS,
            "masks": config.MASKS,
            "top_k": config.TOP_K,
            "words": config.WORDS,
            "scored_tokens": config.SCORED_TOKENS,
            "picture_bytes": config.PICTURE_BYTES,
        }
        return {"version": __version__, "mask": MASK, "models": models, "limits": limits}

    def add_picture(self, data: bytes) -> dict[str, Any]:
        """Keep a picture for the requests that follow; the oldest of too many is dropped.

        Raises:
            RequestError: No model here looks at pictures.
            DataError: It is none that can be read.
        """
        index = next(
            (i for i, one in enumerate(self._opened) if isinstance(one, OpenImageText)), None
        )
        if index is None:
            raise RequestError("no model here looks at pictures; open one of maskery train pairs")
        name = hashlib.blake2b(data, digest_size=16).hexdigest()
        self._pictures[name] = data
        self._pictures.move_to_end(name)
        try:
            self._filler(index, name)
        except Exception:
            del self._pictures[name]
            raise
        while len(self._pictures) > config.PICTURES:
            self._pictures.popitem(last=False)
        return {"picture": name}

    def fill(self, values: dict[str, Any]) -> dict[str, Any]:
        """`maskery fill`."""
        filler = self._asked(values)
        masks = values["text"].count(MASK)
        if masks > config.MASKS:
            raise RequestError(f"there are {masks} masks; at most {config.MASKS} are filled")
        filling = filler.fill(
            values["text"],
            top_k=values["top_k"],
            words=values["words"],
            together=values["together"],
        )
        return {
            "masks": [[asdict(candidate) for candidate in mask] for mask in filling.masks],
            "completions": [asdict(completion) for completion in filling.completions],
            "words": [asdict(word) for word in filling.words],
        }

    def score(self, values: dict[str, Any]) -> dict[str, Any]:
        """`maskery score`; masks in the text stay hidden."""
        scorer = self._scorer(self._asked(values))
        read = Shifted(values["text"], scorer.reader.mask_token)
        tokens = len(scorer.reader.read(read.text).ids)
        if tokens > config.SCORED_TOKENS:
            raise RequestError(
                f"the text has {tokens} tokens, and at most {config.SCORED_TOKENS} are scored "
                f"here; shorten it, or use maskery score"
            )
        scorer.method = values["method"]
        (score,) = scorer.score([read.text])
        words = [
            {**asdict(word), "start": read.back(word.start), "end": read.back(word.end)}
            for word in score.words
        ]
        return {"log_probability": score.log_probability, "tokens": score.tokens, "words": words}

    def saliency(self, values: dict[str, Any]) -> dict[str, Any]:
        """Which words a mask's likeliest token hangs on."""
        filler = self._asked(values)
        reader = self._scorer(filler).reader
        read = Shifted(values["text"], reader.mask_token)
        found = saliency(filler, reader, read.text, mask=values["mask"])
        words = [
            {
                "word": word.text,
                "start": read.back(word.start),
                "end": read.back(word.end),
                "weight": weight,
            }
            for word, weight in zip(found.words, found.weights, strict=True)
        ]
        return {"token": found.token, "probability": found.probability, "words": words}

    def replaced(self, values: dict[str, Any]) -> dict[str, Any]:
        """How likely each word of a caption does not belong to its picture.

        Raises:
            RequestError: The model reads text alone.
        """
        filler = self._asked(values)
        if not isinstance(filler, ImageFiller):
            raise RequestError("this model reads text alone and detects no replaced words")
        reader = self._scorer(filler).reader
        read = Shifted(values["text"], reader.mask_token)
        encoded = reader.read(read.text)
        if len(encoded.ids) > filler.limit:  # type: ignore[operator]
            raise RequestError(
                f"the text has {len(encoded.ids)} tokens, and the model has {filler.limit} "
                f"positions; shorten it"
            )
        chances = filler.replaced(torch.from_numpy(encoded.ids)[None])[0]
        words = [
            {
                "word": word.text,
                "start": read.back(word.start),
                "end": read.back(word.end),
                "probability": float(chances[word.first : word.last].max()),
            }
            for word in encoded.words
        ]
        return {"words": words}

    def _asked(self, values: dict[str, Any]) -> Filler:
        if values["model"] >= len(self._opened):
            raise RequestError(f"there is no model {values['model']}; there is one model")
        name = values["picture"]
        if name is not None and not isinstance(self._opened[values["model"]], OpenImageText):
            raise RequestError("this model reads text alone; leave the picture out")
        return self._filler(values["model"], name)

    def _filler(self, index: int, picture: str | None) -> Filler:
        """The filler of a model and a picture; a few are kept, with their pictures encoded."""
        opened = self._opened[index]
        if isinstance(opened, Filler):
            return opened
        if picture is not None and picture not in self._pictures:
            raise RequestError("the picture is no longer here; send it again", 410)
        key = (index, picture)
        if key not in self._fillers:
            data = None if picture is None else self._pictures[picture]
            self._fillers[key] = ImageFiller(opened, data)
        self._fillers.move_to_end(key)
        while len(self._fillers) > 2 * config.PICTURES:
            _, dropped = self._fillers.popitem(last=False)
            self._scorers.pop(dropped, None)
        return self._fillers[key]

    def _scorer(self, filler: Filler) -> Scorer:
        if filler not in self._scorers:
            if isinstance(filler, ImageFiller):
                scorer = Scorer(filler.tokenizer, filler.predict, limit=filler.limit)
            else:
                scorer = Scorer.of(filler.model, filler.tokenizer)
            self._scorers[filler] = scorer
        return self._scorers[filler]


class Shifted:
    """A text with the tokenizer's own mask token, and the way back to places in the original.

    Args:
        text: With `[MASK]`s.
        mask_token: How the tokenizer writes them.
    """

    def __init__(self, text: str, mask_token: str) -> None:
        self.text = text.replace(MASK, mask_token)
        self._step = len(mask_token) - len(MASK)
        self._starts = []
        place = text.find(MASK)
        while place >= 0:
            # Where each mask starts in the text that the tokenizer reads.
            self._starts.append(place + self._step * len(self._starts))
            place = text.find(MASK, place + len(MASK))

    def back(self, place: int) -> int:
        """A place in the text that was read, as a place in the original."""
        if place < 0:
            return place
        return place - self._step * sum(start < place for start in self._starts)


def _open(name: str) -> Filler | OpenImageText:
    if is_image_text(name):
        return open_image_text(name)
    opened = open_model(name)
    return Filler(opened.model, opened.tokenizer)


def _shown(name: str) -> str:
    """A folder by its own name: the page need not know where it lies."""
    path = Path(name)
    return path.resolve().name if path.is_dir() else name
