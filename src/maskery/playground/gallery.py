"""Search a folder of pictures from the page.

A picture is named by a number that a search has given out, never by a path; it is decoded and drawn
anew in small, so that nothing of a file but its look reaches the page.
"""

from __future__ import annotations

import io
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
    """A gallery and one model.

    Raises:
        DataError: There is no picture in it.
        ModelError: The model's features cannot be compared.
    """

    def __init__(self, opened: OpenImageText, folder: Path, cache_dir: Path) -> None:
        gallery = open_gallery(opened, folder, cache_dir=cache_dir, progress=True)
        ranking = opened.retrieval.ranking
        # Somebody waits for the page, so it looks again at fewer pictures than the command line.
        ranking = replace(ranking, rerank=min(ranking.rerank, RERANK, len(gallery)))
        self.searcher = Searcher(opened, gallery, ranking)
        self._paths: OrderedDict[int, str] = OrderedDict()
        self._numbers: dict[str, int] = {}
        self._next = 0

    def __len__(self) -> int:
        return len(self.searcher.gallery)

    def search(self, text: str, top: int) -> dict[str, Any]:
        """Find pictures, as `maskery search`, with a number for each."""
        hits = self.searcher.search(text, top=top)
        return {
            "hits": [
                {
                    "picture": self._number(hit.path),
                    "name": Path(hit.path).name,
                    "similarity": hit.similarity,
                    "match": hit.match,
                }
                for hit in hits
            ]
        }

    def thumbnail(self, number: int) -> bytes:
        """Return a picture that was found, as a small JPEG.

        Raises:
            RequestError: No search has given out that number, or long ago.
            DataError: The picture is gone.
        """
        if number not in self._paths:
            raise RequestError("no such picture; search again", 404)
        image = self.searcher.picture(self._paths[number])
        image.thumbnail((SIDE, SIDE))
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=85)
        return buffer.getvalue()

    def _number(self, path: str) -> int:
        if path not in self._numbers:
            self._numbers[path] = self._next
            self._next += 1
        number = self._numbers[path]
        self._paths[number] = path
        self._paths.move_to_end(number)
        while len(self._paths) > REMEMBERED:
            _, dropped = self._paths.popitem(last=False)
            del self._numbers[dropped]
        return number
