"""A gallery of pictures and the captions that look for them, made of pairs; and what they find.

Each caption looks for the pictures of its person. Where no person is named, each picture is its
own, as in general image-text retrieval. A picture in several pairs is in the gallery once.

Shapes: N pairs, I pictures, T captions, Q chosen captions, B pictures of a batch, H, W their size.
"""

import json
from collections.abc import Iterator
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
import torch
from safetensors.torch import save_file

from maskery.core.bars import Bar
from maskery.core.batch import Ints, TokenBatch
from maskery.core.errors import DataError
from maskery.core.processes import Processes
from maskery.data.images.config import ViewConfig
from maskery.data.images.drawing import RIGHT, Cell, SheetRow, draw_sheet
from maskery.data.images.loading import Skipped
from maskery.data.images.views import view_stack
from maskery.data.pairs.batches import Pictures, ReadPairs, tokenise_captions
from maskery.data.pairs.config import PairsConfig
from maskery.data.pairs.pairs import NOBODY, Pairs
from maskery.data.person_search.config import PersonSearchDataConfig
from maskery.evaluation.image_text.opening import OpenImageText
from maskery.evaluation.retrieval.config import RetrievalConfig
from maskery.evaluation.retrieval.evaluate import Retrieval, evaluate_retrieval
from maskery.evaluation.retrieval.metrics import text_figures
from maskery.models.image_text.model import ImageTextModel

if TYPE_CHECKING:
    from PIL.Image import Image


class FoundPicture(NamedTuple):
    """A picture of the gallery."""

    image: "Image"  # RGB, as loaded
    right: bool  # True if it shows the person who is described


class RetrievalSet:
    """The pictures of pairs as a gallery, and their captions as queries.

    Pictures that cannot be read leave it with their captions; one said to show two persons fails.
    """

    def __init__(self, read: ReadPairs, *, batch_images: int = 64) -> None:
        self.pairs, self.captions, self.pictures, self.view = read
        self.batch_images, pairs = batch_images, read.pairs
        # Where nobody is named, equal bytes are one picture under any name.
        first: dict[str | int, int] = {}
        known = pairs.contents.tolist() if not pairs.person_names else pairs.names.to_pylist()
        self._first: Ints = np.array([first.setdefault(name, i) for i, name in enumerate(known)])
        persons = pairs.persons
        two = (persons != NOBODY) & (persons != persons[self._first])
        for index in np.flatnonzero(two)[:1].tolist():
            names = [*pairs.person_names, "nobody"]  # the last is `NOBODY`'s
            name, both = pairs[index].image.name, (index, self._first[index])
            shown = " and ".join(f"person {names[persons[place]]}" for place in both)
            raise DataError(f"image {name} is said to show {shown}; correct the one that is wrong")

    @classmethod
    def read_by(
        cls,
        opened: OpenImageText,
        pairs: Pairs,
        # What becomes of captions without a known word, and of pictures that cannot be read
        reading: PairsConfig | PersonSearchDataConfig | None = None,
        *,
        view: ViewConfig | None = None,  # of the pictures; by default the model's
        batch_images: int = 64,
    ) -> Self:
        """Return pairs, their captions prepared, as a model reads them; it cuts long captions."""
        view, reading = view or opened.view, reading or PairsConfig()
        skipped = Skipped("caption", reading.on_bad_caption)
        tokens = tokenise_captions(pairs, opened.tokenizer, skipped, max_length=opened.max_tokens)
        pictures = Pictures(pairs, reading.on_bad_image, near=view.size)
        return cls(ReadPairs(pairs, tokens, pictures, view), batch_images=batch_images)

    @property
    def skipped(self) -> list[str]:
        """One line for each kind of thing that was left out."""
        kinds = (self.pairs.skipped_captions, self.captions.skipped, self.pictures.skipped)
        return [str(kind) for kind in kinds if kind.count]

    @cached_property
    def gallery(self) -> Ints:
        """The pairs whose picture can be read, each picture once: (I,) int64."""
        unique = np.flatnonzero(self._first == np.arange(len(self.pairs)))
        loaded = chain.from_iterable(map(self.pictures.load, self._batches(unique)))
        gallery: Ints = unique[np.array([image is not None for image in loaded], np.bool_)]
        if not len(gallery):
            raise DataError(f"no picture of the gallery can be read ({self.pictures.skipped})")
        return gallery

    @cached_property
    def queries(self) -> Ints:
        """The captions of the gallery's pictures: (T,) int64."""
        return np.flatnonzero(np.isin(self._first[self.captions.owners], self.gallery))

    @property
    def image_persons(self) -> Ints:
        """The person that each picture shows: (I,) int64."""
        return self._persons[self.gallery]

    @property
    def text_persons(self) -> Ints:
        """The person that each caption describes: (T,) int64."""
        return self._persons[self._first[self.captions.owners[self.queries]]]

    def texts_of(self, queries: Ints) -> TokenBatch:
        """Return some of the T captions."""
        captions = self.queries[queries]
        return self.captions.batch(captions, self.pairs.ids[self.captions.owners[captions]])

    def caption(self, query: int) -> str:
        """Return the words of one of the T captions."""
        index = self.queries[query]
        owner, place = int(self.captions.owners[index]), int(self.captions.places[index])
        return self.pairs[owner].captions[place]

    def images(self, *, progress: bool = False) -> Iterator[torch.Tensor]:
        """Yield the I pictures in order: (B, 3, H, W) float32, normalised."""
        batches = list(self._batches(self.gallery))
        for members in Bar(len(batches), "images", shown=progress, iterable=batches):
            loaded = self.pictures.load(members)
            yield view_stack([image for image in loaded if image is not None], self.view)

    def evaluate(
        self,
        model: ImageTextModel,
        config: RetrievalConfig,
        *,
        queries: Ints | None = None,  # (Q,) of the T captions; by default all
        processes: Processes | None = None,
        progress: bool = False,
    ) -> Retrieval:
        """Let captions find their persons among all pictures; see `evaluate_retrieval`."""
        chosen = np.arange(len(self.queries)) if queries is None else queries
        return evaluate_retrieval(
            model,
            self.images(progress=progress),
            self.texts_of(chosen),
            image_persons=self.image_persons,
            text_persons=self.text_persons[chosen],
            config=config,
            processes=processes,
            progress=progress,
        )

    def names_of(self, pairs: Ints) -> list[str]:
        """Return the names of the pictures of some pairs."""
        return [str(self.pairs.names[index]) for index in pairs.tolist()]

    def rank_rows(self, found: Retrieval) -> list[dict[str, Any]]:
        """Return a row a caption, by the last ranking.

        `rank` is that of its first right picture, from 1; `first` the picture that came first.
        """
        persons = [*self.pairs.person_names, None]  # the last is nobody's
        names, last = self.names_of(self.gallery), found.last
        columns = {
            "caption": map(self.caption, range(len(last.order))),
            "picture": self.names_of(self.captions.owners[self.queries]),
            "person": (persons[one] for one in self.text_persons.clip(min=-1).tolist()),
            "rank": last.ranks[:, 0].tolist(),
            "rank_by_similarity": found.contrastive.ranks[:, 0].tolist(),
            "average_precision": text_figures(last.ranks)[:, 3].tolist(),
            "first": (names[one] for one in last.order[:, 0].tolist()),
        }
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def save_features(self, path: Path, found: Retrieval) -> None:
        """Write unit features `images` (I, E) and `texts` (T, E), and whom each shows or describes.

        The metadata of the safetensors has the pictures' names and the captions as JSON lists.
        """
        tensors = {"images": found.images.cpu(), "texts": found.texts.cpu()}
        tensors["image_persons"] = torch.from_numpy(self.image_persons)
        tensors["text_persons"] = torch.from_numpy(self.text_persons)
        captions = list(map(self.caption, range(len(found.texts))))
        named = {"images": self.names_of(self.gallery), "captions": captions}
        save_file(tensors, path, {name: json.dumps(one) for name, one in named.items()})

    def samples(
        self, queries: Ints, ranking: torch.Tensor, *, count: int = 10
    ) -> Iterator[tuple[str, list[FoundPicture]]]:
        """Yield captions (Q,), each with its `count` best pictures, ranked best first (Q, K)."""
        for query, row in zip(queries.tolist(), ranking[:, :count].tolist(), strict=True):
            images = self.pictures.load(self.gallery[row].tolist())
            right = (self.image_persons[row] == self.text_persons[query]).tolist()
            both = zip(images, right, strict=True)
            found = [FoundPicture(image, fits) for image, fits in both if image is not None]
            yield self.caption(query), found

    def draw(self, queries: Ints, ranking: torch.Tensor, *, height: int = 192) -> "Image":
        """Draw captions with their ten best pictures, `height` pixels high, right ones framed."""
        rows = []
        for caption, found in self.samples(queries, ranking):
            cells = [Cell(image=f.image, frame=RIGHT if f.right else None) for f in found]
            rows.append(SheetRow(heading=caption, cells=cells))
        return draw_sheet(rows, height=height)

    def _batches(self, indices: Ints) -> Iterator[list[int]]:
        for first in range(0, len(indices), self.batch_images):
            yield indices[first : first + self.batch_images].tolist()

    @cached_property
    def _persons(self) -> Ints:
        """The person of each pair, a number of its own where none is named: (N,) int64."""
        persons = self.pairs.persons
        # Below `NOBODY`, so that no picture shares a number with another or with a person.
        return np.where(persons == NOBODY, NOBODY - 1 - np.arange(len(persons)), persons)


def ranks_jsonl(rows: list[dict[str, Any]]) -> str:
    """Return the rows of `RetrievalSet.rank_rows`, one a line."""
    return "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)


def spread_queries(num_texts: int, count: int = 5) -> Ints:
    """Choose at most `count` of T texts, evenly spread over all: (Q,) int64."""
    return np.unique(np.linspace(0, num_texts - 1, count + 2).astype(np.int64)[1:-1])
