"""Search a folder of pictures from the page.

A picture is named by a hash that a search has given out, never by its path; it is decoded and drawn
anew in small, so that nothing of a file but its look reaches the page.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any

from maskery.evaluation.image_text.opening import OpenImageText
from maskery.evaluation.retrieval.gallery import open_gallery
from maskery.evaluation.retrieval.search import Searcher
from maskery.playground.requests import RequestError

SIDE = 320  # pixels of a thumbnail
# Pictures that were found lately, whose thumbnails can be loaded.
REMEMBERED = 1_000
RERANK = 16


class GallerySearch:
    """A gallery and one model."""

    def __init__(self, opened: OpenImageText, folder: Path, cache_dir: Path) -> None:
        gallery = open_gallery(opened, folder, cache_dir=cache_dir, progress=True)
        ranking = opened.retrieval.ranking
        # Somebody waits for the page, so it looks again at fewer pictures than the command line.
        ranking = replace(ranking, rerank=min(ranking.rerank, RERANK, len(gallery)))
        self.searcher = Searcher(opened, gallery, ranking)
        self._paths: OrderedDict[str, str] = OrderedDict()

    def __len__(self) -> int:
        return len(self.searcher.gallery)

    def search(self, text: str, top: int) -> dict[str, Any]:
        """Find pictures, as `maskery search`, each named by a hash."""
        hits = []
        for hit in self.searcher.search(text, top=top):
            name = hashlib.blake2b(os.fsencode(hit.path), digest_size=8).hexdigest()
            self._paths[name] = hit.path
            self._paths.move_to_end(name)
            found = {"similarity": hit.similarity, "match": hit.match}
            hits.append({"picture": name, "name": Path(hit.path).name, **found})
        while len(self._paths) > REMEMBERED:
            self._paths.popitem(last=False)
        return {"hits": hits}

    def thumbnail(self, name: str) -> bytes:
        """Return a picture that was found, as a small JPEG."""
        if name not in self._paths:
            raise RequestError("no such picture; search again", 404)
        image = self.searcher.picture(self._paths[name])
        image.thumbnail((SIDE, SIDE))
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=85)
        return buffer.getvalue()
