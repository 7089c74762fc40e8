"""Indexing a folder of pictures: every content is encoded once, whatever happens to its file.

Shapes: B pictures, E features.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from maskery.core.errors import DataError
from maskery.data.gallery import (
    DamagedIndex,
    GalleryStore,
    Stamp,
    digest_of,
    find_pictures,
    open_store,
    read_picture,
    renewed,
)
from maskery.data.images.loading import ImageRef, Skipped
from maskery.data.images.views import view_batches
from maskery.data.store import own_folder
from maskery.evaluation.image_text.opening import OpenImageText, require_contrast
from maskery.models.image_text.model import ImageTextModel

log = logging.getLogger(__name__)

# Bytes of a gallery's own name in the name of its index.
MOST_OF_NAME = 100


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
    hashed = blake2b(digest_size=8)
    view = opened.view
    hashed.update(repr((view.size, view.normalisation)).encode())
    model: ImageTextModel = opened.model
    for module in (model.visual_encoder, model.vision_proj):
        for name, tensor in module.state_dict().items():
            hashed.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            hashed.update(tensor.float().cpu().contiguous().numpy().data)
    return hashed.hexdigest()


def open_gallery(
    opened: OpenImageText,
    folder: Path,
    *,
    cache_dir: Path,
    batch_images: int = 32,
    rehash: bool = False,
    progress: bool = False,
) -> Gallery:
    """Bring a gallery's index up to date, and open it.

    Each batch is kept as soon as it is done, so that a run that was interrupted is continued.

    Args:
        folder: Of pictures, with folders in it.
        cache_dir: Folder of all indices.
        rehash: Read every file, rather than trust those whose size and time are as they were, and
            try again those that could not be decoded.

    Raises:
        DataError: There is no readable picture, or the index cannot be written.
        ModelError: The model's features say nothing.
    """
    require_contrast(opened)
    found = find_pictures(folder)
    if not found:
        raise DataError(
            f"the gallery '{folder}' has no picture in it (.jpg .png .webp ...); name a folder "
            f"that does"
        )
    index = index_folder(cache_dir, folder, fingerprint(opened))
    width = int(opened.model.config.embed_dim)
    indexing = Indexing(opened, folder, found, batch_images, rehash, progress)
    store = open_store(index, width)
    try:
        gallery = indexing.bring_up_to_date(store)
    except DamagedIndex as error:
        gallery = indexing.bring_up_to_date(renewed(index, width, error))
    if not len(gallery):
        raise DataError(
            f"the gallery '{folder}' has no readable picture: {len(gallery.troubles)} were "
            f"skipped; the first: {gallery.troubles[0]}"
        )
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
        from tqdm import tqdm

        before = store.files()
        known = {} if self.rehash else before
        suspects = [path for path, stamp in self.found.items() if known.get(path) != stamp]
        encoded = 0
        unread: dict[str, str] = {}
        quiet = not self.progress
        with tqdm(total=len(suspects), desc="indexing", leave=False, disable=quiet) as bar:
            for first in range(0, len(suspects), self.batch_images):
                batch = suspects[first : first + self.batch_images]
                encoded += self._take_in(store, batch, unread)
                bar.update(len(batch))
        gone = [path for path in before if path not in self.found or path in unread]
        if gone:
            store.forget(gone)
        snapshot = store.snapshot()
        return Gallery(
            folder=self.folder,
            matrix=snapshot.features,
            paths=snapshot.paths,
            changes=Changes(read=len(suspects) - len(unread), encoded=encoded, removed=len(gone)),
            troubles=[*unread.values(), *store.troubles()],
        )

    def _take_in(self, store: GalleryStore, batch: list[str], unread: dict[str, str]) -> int:
        """Encode the contents that are new, and return the number that could be."""
        files: dict[str, tuple[Stamp, bytes]] = {}
        contents: dict[bytes, ImageRef] = {}
        for path in batch:
            try:
                picture = read_picture(self.folder, path)
            except DataError as error:
                unread[path] = str(error)  # the next run tries it again
                continue
            digest = digest_of(picture)
            files[path], contents[digest] = (self.found[path], digest), picture
        for digest in store.known(contents, readable=self.rehash):
            del contents[digest]
        features, troubles = self._encode(contents)
        store.save(files, features, troubles)
        return len(features)

    @torch.no_grad()
    def _encode(
        self, pictures: Mapping[bytes, ImageRef]
    ) -> tuple[dict[bytes, npt.NDArray[np.float16]], dict[bytes, str]]:
        """Return features, and the reasons of pictures that have none, by digest."""
        digests, model = list(pictures), self.opened.model
        features: dict[bytes, npt.NDArray[np.float16]] = {}
        troubles = Skipped("image", "skip")
        # A batch of files: no more pictures than are encoded at once.
        refs, size = list(pictures.values()), self.batch_images
        for indices, pixels in view_batches(refs, self.opened.view, troubles, batch_images=size):
            tokens = model.encode_image(pixels.to(model.device))
            encoded = model.image_feature(tokens).float().cpu().numpy().astype(np.float16)
            features |= {digests[i]: row for i, row in zip(indices, encoded, strict=True)}
        left = [digest for digest in digests if digest not in features]
        return features, dict(zip(left, troubles.reasons, strict=True))
