"""Index a folder of pictures, and search it with words, a picture, or both.

Every content is encoded once, whatever happens to its file. A search ranks by similarity, then by
matching, as `evaluate_retrieval` does, so that figures hold for searches. The most similar are
found by an exact scan of a float16 matrix; docs/search.md says why there is no approximate index.

Shapes: I pictures, E features, K pictures that are matched, or nearest.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from maskery.core.bars import Bar
from maskery.core.batch import Ints
from maskery.core.errors import DataError
from maskery.core.processes import inference
from maskery.core.random import Float32Array
from maskery.data import gallery as galleries
from maskery.data.gallery import GalleryStore, Stamp
from maskery.data.images.loading import ImageRef, Skipped
from maskery.data.images.views import view_batches, view_stack
from maskery.data.store import own_folder
from maskery.evaluation.image_text.opening import OpenImageText, load_picture
from maskery.evaluation.retrieval.config import RetrievalConfig
from maskery.evaluation.retrieval.metrics import rank
from maskery.evaluation.retrieval.rerank import Matcher, ReadTexts, read_images, read_texts

if TYPE_CHECKING:
    from PIL.Image import Image

log = logging.getLogger(__name__)

MOST_OF_NAME = 100  # bytes of a gallery's own name in the name of its index
BLOCK_NUMBERS = 1 << 19  # of a block: 2 MiB as float32, which stays in the second-level cache
MARGIN = 16  # more than are wanted, compared again exactly: rounding may swap close ones


@dataclass(frozen=True, kw_only=True)
class Changes:
    """Changes of the folder since the last look."""

    read: int  # files that were new, or not as they had been
    encoded: int  # contents among them that got a feature: never seen before, and readable
    removed: int  # files that are gone, or can no longer be read


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """A folder of pictures whose features are known."""

    folder: Path  # the pictures
    matrix: npt.NDArray[np.float16]  # (I, E) float16, memory-mapped
    paths: Sequence[str]  # of its rows, below the folder
    changes: Changes  # since the last look
    troubles: Sequence[str]  # one line for each file that was left out

    def __len__(self) -> int:
        return len(self.paths)


def index_folder(cache_dir: Path, folder: Path, fingerprint: str) -> Path:
    """Return the folder of the index of a gallery under one model."""
    path = folder.resolve()
    place = blake2b(os.fsencode(path), digest_size=8).hexdigest()
    # For people to know it by. File names end at 255 bytes, and names here may be of other bytes.
    name = os.fsencode(path.name)[:MOST_OF_NAME].decode("utf-8", "ignore") or "root"
    return own_folder(cache_dir, "galleries") / f"{name}-{place}-{fingerprint}"


def fingerprint(opened: OpenImageText) -> str:
    """Return a hash of everything that a picture's feature depends on: weights and preparation."""
    view, model = opened.view, opened.model
    hashed = blake2b(repr((view.size, view.normalisation)).encode(), digest_size=8)
    for module in (model.visual_encoder, model.vision_proj):
        for name, tensor in module.state_dict().items():
            hashed.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            hashed.update(tensor.float().cpu().contiguous().numpy().data)
    return hashed.hexdigest()


def open_gallery(
    opened: OpenImageText,
    folder: Path,
    *,
    cache_dir: Path,  # of all indices
    batch_images: int = 32,
    rehash: bool = False,
    progress: bool = False,
) -> Gallery:
    """Bring the index of a folder of pictures up to date, and open it.

    Each batch is kept as soon as it is done, so that an interrupted run is continued. With `rehash`
    every file is read, whatever its size and time, and what could not be decoded is tried again.
    """
    opened.require_contrast()
    found = galleries.find_pictures(folder)
    if not found:
        problem = f"the gallery '{folder}' has no picture in it (.jpg .png .webp ...)"
        raise DataError(f"{problem}; name a folder that does")
    index = index_folder(cache_dir, folder, fingerprint(opened))
    width = int(opened.model.config.embed_dim)
    indexing = Indexing(opened, folder, found, batch_images, rehash, progress)
    try:
        gallery = indexing.bring_up_to_date(galleries.open_store(index, width))
    except galleries.DamagedIndex as error:
        gallery = indexing.bring_up_to_date(galleries.renewed(index, width, error))
    if not len(gallery):
        told = f"{len(gallery.troubles)} were skipped; the first: {gallery.troubles[0]}"
        raise DataError(f"the gallery '{folder}' has no readable picture: {told}")
    return gallery


@dataclass(frozen=True)
class Indexing:
    """One look at a folder; see `open_gallery`."""

    opened: OpenImageText
    folder: Path
    found: Mapping[str, Stamp]
    batch_images: int
    rehash: bool
    progress: bool

    def bring_up_to_date(self, store: GalleryStore) -> Gallery:
        """Encode what is new, forget what is gone; DamagedIndex if the index turns out to be so."""
        before, encoded, size = store.files(), 0, self.batch_images
        known = {} if self.rehash else before
        suspects = [path for path, stamp in self.found.items() if known.get(path) != stamp]
        unread: dict[str, str] = {}
        with Bar(len(suspects), "indexing", shown=self.progress) as bar:
            for first in range(0, len(suspects), size):
                encoded += self._take_in(store, suspects[first : first + size], unread)
                bar.update(min(size, len(suspects) - first))
        gone = [path for path in before if path not in self.found or path in unread]
        if gone:
            store.forget(gone)
        changes = Changes(read=len(suspects) - len(unread), encoded=encoded, removed=len(gone))
        (matrix, paths), troubles = store.snapshot(), [*unread.values(), *store.troubles()]
        return Gallery(
            folder=self.folder, matrix=matrix, paths=paths, changes=changes, troubles=troubles
        )

    @inference()
    def _take_in(self, store: GalleryStore, batch: list[str], unread: dict[str, str]) -> int:
        """Encode the contents that are new, and return the number that could be."""
        files: dict[str, tuple[Stamp, bytes]] = {}
        contents: dict[bytes, ImageRef] = {}
        for path in batch:
            try:
                picture = galleries.read_picture(self.folder, path)
            except DataError as error:
                unread[path] = str(error)  # the next run tries it again
                continue
            digest = galleries.digest_of(picture)
            files[path], contents[digest] = (self.found[path], digest), picture
        for digest in store.known(contents, readable=self.rehash):
            del contents[digest]
        digests, refs, model = list(contents), list(contents.values()), self.opened.model
        features: dict[bytes, npt.NDArray[np.float16]] = {}
        skipped, size = Skipped("image", "skip"), self.batch_images
        for indices, pixels in view_batches(refs, self.opened.view, skipped, batch_images=size):
            tokens = model.encode_image(pixels.to(model.device))
            encoded = model.image_feature(tokens).float().cpu().numpy().astype(np.float16)
            features.update(zip((digests[i] for i in indices), encoded, strict=True))
        left = [digest for digest in digests if digest not in features]
        store.save(files, features, dict(zip(left, skipped.reasons, strict=True)))
        return len(features)


@dataclass(frozen=True, kw_only=True)
class Hit:
    """One picture that was found."""

    path: str  # relative to the gallery
    similarity: float  # cosine of the contrastive features, from -1 to 1
    match: float | None = None  # the matching head's probability; None where it was not asked
    score: float | None = None  # the score that matched pictures are sorted by; None likewise


def search(
    opened: OpenImageText,
    gallery: str | Path | Gallery,
    texts: str | Sequence[str] = (),
    *,
    like: str | Path | bytes | Float32Array | None = None,
    top: int = 10,
    rerank: int | None = None,
    cache_dir: str | Path | None = None,
) -> list[list[Hit]]:
    """Find the best pictures for each of some descriptions, in a folder or an open gallery.

    Or those most like another picture (a file or its `picture_features`), or like it and each text.
    """
    from maskery.data.tokenise import default_cache_dir

    texts = [texts] if isinstance(texts, str) else list(texts)
    for text in texts:
        opened.encode_query(text)  # a bad description is told before an hour of indexing
    if isinstance(like, str | Path | bytes):
        like = picture_features(opened, like)
    if not isinstance(gallery, Gallery):
        cache = default_cache_dir() if cache_dir is None else Path(cache_dir)
        gallery = open_gallery(opened, Path(gallery), cache_dir=cache)
    ranking = None if rerank is None else replace(opened.retrieval.ranking, rerank=rerank)
    searcher = Searcher(opened, gallery, ranking)
    return [searcher.search(text, like=like, top=top) for text in texts or (None,)]


def picture_features(opened: OpenImageText, picture: str | Path | bytes) -> Float32Array:
    """Return the features (E,) of a picture, as those of the gallery's pictures are computed."""
    opened.require_contrast()
    pixels = view_stack([load_picture(picture, opened.view.size)], opened.view)
    return read_images(opened.model, [pixels], 1, tokens=False).features[0].cpu().numpy()


class Searcher:
    """Finds pictures of a gallery, ranked as the settings say, by the model that indexed it."""

    def __init__(
        self, opened: OpenImageText, gallery: Gallery, config: RetrievalConfig | None = None
    ) -> None:
        self.opened, self.gallery = opened, gallery
        self.config = config or opened.retrieval.ranking
        self.rerank = min(self.config.rerank, len(gallery))
        if self.rerank and not opened.trained("itm"):
            told = "the matching head of '%s' was never trained, so the ranking is by similarity "
            log.warning(f"{told}alone", opened.name)
            self.rerank = 0
        elif self.config.rerank > len(gallery):
            log.info("the gallery has %d pictures: all of them are ranked anew", len(gallery))

    def search(
        self, text: str | None, *, like: Float32Array | None = None, top: int = 10
    ) -> list[Hit]:
        """Return the `top` pictures that fit a description best, fewer where the gallery has fewer.

        First those that matching looked at, by their score; then the others by similarity. With the
        features (E,) of a picture that they should be `like`, similarity is that to the direction
        between both, and nothing is matched, since that looks at the words alone.
        """
        rerank, query = self.rerank if like is None else 0, like
        if text is not None:
            words = self.opened.encode_query(text)
            read = read_texts(self.opened.model, words, states=rerank > 0)
            query = read.features[0].cpu().numpy()
            if like is not None:
                query = (query + like) / np.linalg.norm(query + like)
        if query is None:
            raise DataError("there is nothing to search for; give words, a picture, or both")
        wanted = min(max(top, rerank), len(self.gallery))
        rows, similar = nearest(self.gallery.matrix, query, wanted)
        found = zip(rows.tolist(), similar.tolist(), strict=True)
        hits = [Hit(path=self.gallery.paths[row], similarity=cosine) for row, cosine in found]
        if rerank:
            hits = self._match(read, hits[:rerank]) + hits[rerank:]
        return hits[:top]

    def picture(self, path: str) -> "Image":
        """Return a picture of the gallery, as RGB; DataError if it can no longer be read."""
        return galleries.read_picture(self.gallery.folder, path).load()

    def _match(self, read: ReadTexts, hits: list[Hit]) -> list[Hit]:
        """Rank some hits anew; pictures that cannot be read any more come last."""
        pictures: dict[str, ImageRef] = {}
        for hit in hits:
            try:
                pictures[hit.path] = galleries.read_picture(self.gallery.folder, hit.path)
            except DataError as error:
                log.warning("%s", error)
        if not pictures:
            return hits
        model, config, refs = self.opened.model, self.config, list(pictures.values())
        skipped, size = Skipped("image", "fail"), config.batch_images
        batches = view_batches(refs, self.opened.view, skipped, batch_images=size)
        pixels, most = (pixels for _, pixels in batches), config.memory_bytes
        images = read_images(model, pixels, len(refs), tokens=True, memory_bytes=most)
        # The index keeps features in half precision; here they are at hand as they were computed.
        similar = (read.features @ images.features.T).cpu()
        candidates = torch.arange(len(pictures))[None]
        scores, logits = Matcher(model, read, images, config).scores(candidates, similar)
        columns = (similar[0], logits[0].softmax(dim=-1)[:, 1], scores[0])
        rows = zip(pictures, *(column.tolist() for column in columns), strict=True)
        known = [Hit(path=p, similarity=s, match=m, score=score) for p, s, m, score in rows]
        matched = [known[i] for i in rank(scores)[0].tolist()]
        return matched + [hit for hit in hits if hit.path not in pictures]


def nearest(
    matrix: npt.NDArray[np.float16],  # (I, E), writable, or memory-mapped copy-on-write
    query: Float32Array,
    count: int,
) -> tuple[Ints, Float32Array]:
    """Return the rows (K,) with the largest inner products with a query (E,), and these."""
    vectors, column = torch.from_numpy(matrix), torch.from_numpy(query)
    products = torch.empty(len(vectors))
    rows = max(1, BLOCK_NUMBERS // vectors.shape[1])
    for first in range(0, len(vectors), rows):
        block = slice(first, first + rows)
        torch.mv(vectors[block].float(), column, out=products[block])
    found = products.topk(min(len(vectors), count + MARGIN)).indices.sort().values
    # Sums by block differ in their last digit by where a row lies; these do not.
    exact = (vectors[found].double() * column.double()).sum(dim=1).float()
    order = exact.argsort(descending=True, stable=True)[:count]  # ties by index
    return found[order].numpy(), exact[order].numpy()
