"""Decoding many pictures at once, and what happens to those that cannot be."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from typing import TYPE_CHECKING, Protocol

from maskery.core.errors import DataError
from maskery.data.images.skipped import Skipped

if TYPE_CHECKING:
    from PIL.Image import Image


class Loadable(Protocol):
    """Anything that can be decoded to a picture."""

    def load(self, near: tuple[int, int] | None = None) -> Image:
        """The RGB picture; `near` as in `load_image`."""


def decode_many(
    refs: Sequence[Loadable],
    skipped: Skipped,
    *,
    near: tuple[int, int] | None = None,
    pool: Executor | None = None,
) -> list[Image | None]:
    """Decode pictures, None standing for those that were skipped.

    Args:
        refs: What to decode.
        skipped: Told, in order, of each picture that cannot be read.
        near: As in `load_image`.
        pool: Threads help, because Pillow releases the interpreter lock while it decodes.

    Raises:
        DataError: A picture cannot be read, and `skipped` does not skip it.
    """

    def decode(ref: Loadable) -> Image | DataError:
        try:
            return ref.load(near)
        except DataError as error:
            return error

    results = list(map(decode, refs) if pool is None else pool.map(decode, refs))
    images: list[Image | None] = []
    for result in results:
        if isinstance(result, DataError):
            skipped.report(result)
            images.append(None)
        else:
            images.append(result)
    return images
