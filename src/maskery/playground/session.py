"""The models of a playground, its gallery, and the calls that the page makes, without any HTTP."""

import hashlib
import io
import os
import re
from collections import OrderedDict
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from maskery import __version__
from maskery.evaluation.image_text import opening
from maskery.evaluation.image_text.explain import explain
from maskery.evaluation.image_text.image_fill import ImageFiller
from maskery.evaluation.image_text.opening import OpenImageText
from maskery.evaluation.retrieval.search import Searcher, open_gallery
from maskery.evaluation.text.fill import MASK, Filler, saliency
from maskery.evaluation.text.pseudo_likelihood import Scorer, WordScore
from maskery.evaluation.text.words_of_text import Word
from maskery.playground import requests
from maskery.playground.requests import RequestError

SIDE = 320  # pixels of a thumbnail
REMEMBERED = 1_000  # pictures that were found lately, whose thumbnails can be loaded
RERANK = 16  # each takes a pass through the fusion encoder while somebody waits


class Session:
    """One or two models, pictures from the page, and a gallery for the first model that sees."""

    def __init__(
        self,
        *names: str,
        gallery: Path | None = None,
        cache_dir: Path | None = None,
        command: str = "maskery playground",  # starts it again
    ) -> None:
        self.names, self.command = names, command
        self._opened: list[Filler | OpenImageText] = [
            opening.open_image_text(name) if opening.is_image_text(name) else Filler.of(name)
            for name in names
        ]
        self._pictures: OrderedDict[str, bytes] = OrderedDict()
        # A few are kept, with their pictures encoded.
        self._looking = lru_cache(2 * requests.PICTURES)(self._look)
        self.searcher: Searcher | None = None
        self._found: OrderedDict[str, str] = OrderedDict()  # paths in the gallery, by a hash
        if gallery is not None:
            assert cache_dir is not None
            _, seeing = self._seeing()
            known = open_gallery(seeing, gallery, cache_dir=cache_dir, progress=True)
            ranking = seeing.retrieval.ranking
            # Somebody waits for the page, so it looks again at fewer than the command line.
            ranking = replace(ranking, rerank=min(ranking.rerank, RERANK, len(known)))
            self.searcher = Searcher(seeing, known, ranking)

    def info(self) -> dict[str, Any]:
        """Return the models, the limits and the size of the gallery."""
        names = ("characters", "masks", "top_k", "words", "scored_tokens", "picture_bytes")
        models: list[dict[str, Any]] = []
        for index, path in enumerate(map(Path, self.names)):
            filler = self._filler(index, None)
            # A folder's own name: the page need not know where it lies.
            shown = path.resolve().name if path.is_dir() else self.names[index]
            again = any(model["name"] == shown for model in models)
            about = {"name": f"{shown} (2)" if again else shown, "positions": filler.limit}
            about["pictures"] = isinstance(filler, ImageFiller)
            about["detects"] = isinstance(filler, ImageFiller) and filler.detects
            models.append(about)
        return {
            "version": __version__,
            "command": self.command,
            "mask": MASK,
            "models": models,
            "limits": {name: getattr(requests, name.upper()) for name in names},
            "gallery": 0 if self.searcher is None else len(self.searcher.gallery),
        }

    def add_picture(self, data: bytes) -> dict[str, Any]:
        """Keep a picture for the requests that follow; the oldest of too many is dropped."""
        index, _ = self._seeing()
        name = hashlib.blake2b(data, digest_size=16).hexdigest()
        self._pictures[name] = data
        self._pictures.move_to_end(name)
        try:
            self._filler(index, name)
        except Exception:
            del self._pictures[name]
            raise
        while len(self._pictures) > requests.PICTURES:
            self._pictures.popitem(last=False)
        return {"picture": name}

    def fill(self, values: dict[str, Any]) -> dict[str, Any]:
        """Fill masks, as `maskery fill`."""
        filler = self._asked(values)
        masks = values["text"].count(MASK)
        if masks > requests.MASKS:
            raise RequestError(f"there are {masks} masks; at most {requests.MASKS} are filled")
        settings = {name: values[name] for name in ("text", "top_k", "words", "together", "pieces")}
        filling = asdict(filler.fill(**settings))
        del filling["text"]
        return filling

    def score(self, values: dict[str, Any]) -> dict[str, Any]:
        """Score words, as `maskery score`; masks in the text stay hidden."""
        filler = self._asked(values)
        read = Shifted(values["text"], filler.reader.mask_token)
        tokens = len(filler.reader.read(read.text).ids)
        if tokens > requests.SCORED_TOKENS:
            rule = f"at most {requests.SCORED_TOKENS} are scored here"
            fix = "shorten it, or use maskery score"
            raise RequestError(f"the text has {tokens} tokens, and {rule}; {fix}")
        (score,) = Scorer(filler, method=values["method"]).score([read.text])
        words = [{**asdict(word), **read.place(word)} for word in score.words]
        return {"log_probability": score.log_probability, "tokens": score.tokens, "words": words}

    def saliency(self, values: dict[str, Any]) -> dict[str, Any]:
        """Weigh the words that a mask's likeliest token depends on."""
        filler = self._asked(values)
        read = Shifted(values["text"], filler.reader.mask_token)
        found = saliency(filler, read.text, mask=values["mask"])
        weighed = zip(found.words, found.weights, strict=True)
        words = [{"word": w.text, **read.place(w), "weight": weight} for w, weight in weighed]
        return {"token": found.token, "probability": found.probability, "words": words}

    def replaced(self, values: dict[str, Any]) -> dict[str, Any]:
        """Return the probability of each word that it does not belong to the picture."""
        filler = self._asked(values)
        if not isinstance(filler, ImageFiller):
            raise RequestError("this model reads text alone and detects no replaced words")
        read = Shifted(values["text"], filler.reader.mask_token)
        encoded = filler.reader.read(read.text)
        filler.require_room(len(encoded.ids), "the text", "shorten it")
        if not filler.detects:
            raise RequestError("this model was not trained to detect replaced words")
        chances = filler.replaced(encoded.ids)
        shares = [max(chances[word.first : word.last]) for word in encoded.words]
        judged = zip(encoded.words, shares, strict=True)
        words = [{"word": w.text, **read.place(w), "probability": share} for w, share in judged]
        return {"words": words}

    def explain(self, values: dict[str, Any]) -> dict[str, Any]:
        """Show where the model looks for each word of a caption, as `maskery explain`."""
        self._asked(values)  # refuses what is not there
        opened = self._opened[values["model"]]
        if values["picture"] is None or not isinstance(opened, OpenImageText):
            raise RequestError("a picture is needed to see where the model looks; drop one")
        picture = opening.load_picture(self._pictures[values["picture"]], opened.view.size)
        found = explain(opened, picture, values["text"])
        words, done = [], 0
        for word in found.words:
            start = values["text"].index(word.word, done)
            done = start + len(word.word)
            heat = np.round(word.heat / max(float(word.heat.max()), 1e-12), 3).tolist()
            words.append({"word": word.word, "start": start, "end": done, "heat": heat})
        return {"match": found.match, "words": words}

    def search(self, values: dict[str, Any]) -> dict[str, Any]:
        """Find pictures of the gallery, as `maskery search`, each named by a hash."""
        if self.searcher is None:
            raise RequestError("there is no gallery; start the playground with --gallery DIR")
        hits = []
        for hit in self.searcher.search(values["text"], top=values["top"]):
            name = hashlib.blake2b(os.fsencode(hit.path), digest_size=8).hexdigest()
            self._found[name] = hit.path
            self._found.move_to_end(name)
            found = {"similarity": hit.similarity, "match": hit.match, "score": hit.score}
            hits.append({"picture": name, "name": Path(hit.path).name, **found})
        while len(self._found) > REMEMBERED:
            self._found.popitem(last=False)
        return {"hits": hits}

    def thumbnail(self, name: str) -> bytes:
        """Return a picture that a search has found, as a small JPEG."""
        if self.searcher is None:
            raise RequestError("there is no gallery", 404)
        if name not in self._found:
            raise RequestError("no such picture; search again", 404)
        image = self.searcher.picture(self._found[name])
        image.thumbnail((SIDE, SIDE))
        buffer = io.BytesIO()
        # Above, files grow and nobody sees a difference in small pictures.
        image.save(buffer, "JPEG", quality=85)
        return buffer.getvalue()

    def _seeing(self) -> tuple[int, OpenImageText]:
        """Return the first model that looks at pictures, and its index."""
        for index, opened in enumerate(self._opened):
            if isinstance(opened, OpenImageText):
                return index, opened
        raise RequestError("no model here looks at pictures; open one of maskery train pairs")

    def _asked(self, values: dict[str, Any]) -> Filler:
        if values["model"] >= len(self._opened):
            raise RequestError(f"there is no model {values['model']}; there is one model")
        name = values["picture"]
        if name is not None and not isinstance(self._opened[values["model"]], OpenImageText):
            raise RequestError("this model reads text alone; leave the picture out")
        return self._filler(values["model"], name)

    def _look(self, index: int, picture: str | None) -> Filler:
        opened = self._opened[index]
        assert isinstance(opened, OpenImageText)
        return ImageFiller(opened, None if picture is None else self._pictures[picture])

    def _filler(self, index: int, picture: str | None) -> Filler:
        """Return the filler of a model and a picture."""
        opened = self._opened[index]
        if isinstance(opened, Filler):
            return opened
        if picture is not None and picture not in self._pictures:
            raise RequestError("the picture is no longer here; send it again", 410)
        return self._looking(index, picture)


class Shifted:
    """A text with the tokenizer's own mask token, and the way back to places in the original."""

    def __init__(self, text: str, mask_token: str) -> None:
        self.text = text.replace(MASK, mask_token)
        self._step = len(mask_token) - len(MASK)
        places = [found.start() for found in re.finditer(re.escape(MASK), text)]
        # Where each mask starts in the text that the tokenizer reads.
        self._starts = [place + self._step * before for before, place in enumerate(places)]

    def place(self, word: Word | WordScore) -> dict[str, int]:
        """Return where a word starts and ends in the original."""
        return {"start": self.back(word.start), "end": self.back(word.end)}

    def back(self, place: int) -> int:
        """Turn a place in the text that was read into a place in the original."""
        if place < 0:
            return place
        return place - self._step * sum(start < place for start in self._starts)
