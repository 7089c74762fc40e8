"""What training and measuring read of pairs: caption tokens, decoded pictures, and their batches.

A batch has two random views of each picture and one of its captions. Everything random is a
function of (seed, epoch, example): the order, the views, the caption. So a batch does not depend on
the number of processes, on threads or on resuming.

Shapes: N pairs or examples, C captions, T tokens of all captions, B examples of a batch, I
pictures, H height, W width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedTokenizerBase

from maskery.core.batch import Bools, Ids, Ints, TokenBatch, Vocabulary
from maskery.core.errors import DataError
from maskery.core.random import Stream, uniforms
from maskery.data.batching import PlannedSource, Template, assemble
from maskery.data.images.config import Channels, ViewConfig
from maskery.data.images.loading import Skipped, decode_many, decoders
from maskery.data.images.views import view_draws, view_stack
from maskery.data.pairs.pairs import Pairs, wrong_pairs
from maskery.data.pairs.records import brief
from maskery.data.tokenise import encoder

if TYPE_CHECKING:
    from PIL.Image import Image

# Tokenizers work on lists in parallel; in longer ones, each text takes kilobytes until it is read.
CAPTIONS_AT_ONCE = 4096
# Pillow pads red, green and blue to a word.
BYTES_PER_PIXEL = 4


@dataclass(frozen=True, kw_only=True)
class CaptionTokens:
    """Every usable caption, tokenised once."""

    tokens: npt.NDArray[np.int32]  # (T,) int32, without special tokens
    word_starts: Bools  # (T,) bool
    # (C + 1,) int64; caption c is `tokens[boundaries[c]:boundaries[c + 1]]`.
    boundaries: Ints
    owners: Ints  # (C,) int64, ascending: the pair of each caption
    places: Ints  # (C,) int64: its number among its pair's captions
    # (C,) int64: the caption's first token among its pair's, special tokens counted. A pair's
    # captions are windows of one document, so that each has masks of its own.
    starts: Ints
    template: Template  # the special tokens of a sequence
    skipped: Skipped  # captions that were left out because nothing in them can be masked
    num_cut: int  # captions that were cut at the longest length

    def token_counts(self, vocab_size: int) -> Ints:
        """Count each token of the captions: (V,) int64."""
        return np.bincount(self.tokens, minlength=vocab_size).astype(np.int64)

    def batch(self, captions: Ints, example_ids: Ids) -> TokenBatch:
        """Return some captions end to end, each under the id of its pair."""
        firsts, ends = self.boundaries[captions], self.boundaries[captions + 1]
        arrays = self.tokens, self.word_starts, firsts, ends - firsts, example_ids
        return assemble(*arrays, self.starts[captions], self.template)


def tokenise_captions(
    pairs: Pairs, tokenizer: PreTrainedTokenizerBase, skipped: Skipped, *, max_length: int
) -> CaptionTokens:
    """Tokenise all captions, cut to `max_length` tokens; `skipped` is told of unusable ones."""
    template = Template.of(tokenizer)
    longest = max_length - template.num_special
    captions = [(n, place) for n, pair in enumerate(pairs) for place in range(len(pair.captions))]
    owners, places = np.array(captions, np.int64).T
    texts = (caption for pair in pairs for caption in pair.captions)
    encode, parts = encoder(tokenizer), []
    while chunk := list(islice(texts, CAPTIONS_AT_ONCE)):
        parts.append(encode(chunk))
    tokens, words, lengths = map(np.concatenate, zip(*parts, strict=True))
    rows = np.repeat(np.arange(len(lengths)), lengths)  # the caption of each token
    within = np.arange(len(tokens)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    # A piece of a caption still describes the picture; the count is told at the end.
    kept = within < longest
    protected = Vocabulary.of(tokenizer).protected
    maskable = np.bincount(rows, kept & ~protected[tokens], len(lengths)) > 0
    for owner, place in zip(owners[~maskable].tolist(), places[~maskable].tolist(), strict=True):
        pair = pairs[owner]
        caption = f"the caption {brief(pair.captions[place])} of image {pair.image.name}"
        fix = "correct it or choose another tokenizer"
        skipped.report(DataError(f"{caption} holds no token that could be masked; {fix}"))
    if not maskable.any():
        raise DataError(f"no caption is left to learn from ({skipped}); bring others")
    kept &= maskable[rows]
    owners, cut = owners[maskable], np.minimum(lengths[maskable], longest)
    before = np.cumsum(cut + template.num_special) - cut - template.num_special
    return CaptionTokens(
        tokens=tokens[kept].astype(np.int32),
        word_starts=words[kept],
        boundaries=np.concatenate(([0], np.cumsum(cut))),
        owners=owners,
        places=places[maskable],
        # Counted from the first caption of the same pair.
        starts=before - before[np.searchsorted(owners, owners, side="left")],
        template=template,
        skipped=skipped,
        num_cut=int((lengths > longest).sum()),
    )


class Pictures:
    """Decodes the pictures of pairs by index, in threads, and keeps them while there is room."""

    def __init__(
        self,
        pairs: Pairs,
        on_bad_image: Literal["skip", "fail"],
        *,
        near: tuple[int, int] | None,  # size to keep them at; None where they are to be cropped
        cache_bytes: int = 0,
    ) -> None:
        self.skipped = Skipped("image", on_bad_image)
        self._pairs, self._near, self._room = pairs, near, cache_bytes
        self._kept: dict[int, Image | None] = {}
        self.pool = decoders()

    def load(self, indices: Sequence[int]) -> list[Image | None]:
        """Return the RGB pictures of some pairs; None for what `skipped` was told of, once."""
        wanted = [i for i in dict.fromkeys(indices) if i not in self._kept]
        refs = [self._pairs[i].image for i in wanted]
        images = decode_many(refs, self.skipped, self.pool, self._near)
        if self._near is not None:  # as views do, bicubic by default: no epoch resizes it again
            images = [image and image.resize(self._near) for image in images]
        decoded = dict(zip(wanted, images, strict=True))
        for index, image in decoded.items():
            size = 0 if image is None else image.width * image.height * BYTES_PER_PIXEL
            # Those that come first stay: every epoch comes back to them in another order.
            if size <= self._room:
                self._room -= size
                self._kept[index] = image
        return [decoded[i] if i in decoded else self._kept[i] for i in indices]


class ReadPairs(NamedTuple):
    """Pairs as a model reads them."""

    pairs: Pairs
    captions: CaptionTokens  # of these pairs
    pictures: Pictures  # of these pairs, decoded when they are asked for
    view: ViewConfig  # of the pictures


@dataclass(frozen=True, kw_only=True)
class ViewedPairs:
    """B pairs, as the image-text tasks read them."""

    # (B, 3, H, W) float32, normalised: one random view of each picture. For a GPU (B, H, W, 3)
    # uint8, which it normalises: a quarter of the bytes to copy, and less work for the host.
    image1: torch.Tensor
    image2: torch.Tensor  # another view, likewise
    text1: TokenBatch  # B captions
    normalisation: tuple[Channels, Channels] | None = None  # mean and deviation, of bytes alone


@dataclass(frozen=True, kw_only=True)
class JudgedPairs:
    """B held-out captions with their pictures and wrong ones."""

    images: torch.Tensor  # (I, 3, H, W) float32, normalised, without random changes
    right: torch.Tensor  # (B,) int64: the picture of each caption, an index into `images`
    wrong: torch.Tensor  # (B,) int64: a picture of something (someone) else
    text: TokenBatch  # B captions
    # (B,) uint64: the picture or person of each caption; what intervals resample.
    groups: Ids


ViewedT = TypeVar("ViewedT")


class PicturedExamples(PlannedSource[ViewedT]):
    """Training examples with a picture each: their order, their pictures and views."""

    def __init__(
        self,
        read: ReadPairs,
        ids: Ids,  # (N,)
        pairs: Ints,  # (N,) of which each example has the picture
        batch_size: int,  # examples of a step, over all processes
        micro_size: int | None,  # most examples of a micro-batch
        seed: int,
    ) -> None:
        # Pictures cost the same whatever their captions, so each example counts as one token.
        super().__init__(np.ones(len(ids), np.int64), batch_size, micro_size, "packed", seed)
        self.ids, self.pairs = ids, pairs
        _, self.captions, self.pictures, self.view = read

    def readable(self, members: Ints, epoch: int) -> tuple[Ints, list[Image]]:
        """Return those examples whose picture can be read, or else the next in the order."""
        order = self.plan(epoch).order
        at = int(np.flatnonzero(order == members[-1])[0])
        # All together, then those that follow one by one.
        following = ([int(example)] for example in np.roll(order, -at - 1))
        for chosen in chain([members.tolist()], following):
            images = self.pictures.load(self.pairs[chosen].tolist())
            if found := {e: image for e, image in zip(chosen, images, strict=True) if image}:
                return np.array(list(found), np.int64), list(found.values())
        raise DataError(f"no picture of the pairs can be read ({self.pictures.skipped})")

    def views(self, images: list[Image], ids: Ids, epoch: int) -> dict[str, Any]:
        """Return two random views of each picture, and how to normalise them; see `ViewedPairs`."""
        # In one go, so that no thread of the pool waits between the two.
        draws = np.concatenate([view_draws(self.seed, epoch, ids, view=n) for n in (0, 1)])
        gpu, pool = torch.cuda.is_available(), self.pictures.pool
        both = view_stack([*images, *images], self.view, draws, pool=pool, as_bytes=gpu)
        image1, image2 = both.chunk(2)
        normalisation = self.view.normalisation if gpu else None
        return {"image1": image1, "image2": image2, "normalisation": normalisation}


class PairSource(PicturedExamples[ViewedPairs]):
    """The batches of a run over the `chosen` pairs, without those that have no usable caption."""

    def __init__(
        self,
        read: ReadPairs,
        chosen: Ints,
        *,
        batch_pairs: int,
        micro_pairs: int | None = None,
        seed: int = 0,
    ) -> None:
        chosen = chosen[np.isin(chosen, read.captions.owners)]
        super().__init__(read, read.pairs.ids[chosen], chosen, batch_pairs, micro_pairs, seed)

    def batch(self, chosen: Ints, epoch: int = 0, crowd: Ints | None = None) -> ViewedPairs:
        """Return the batch of some pairs that can be read, with one caption of each."""
        del crowd
        members, images = self.readable(chosen, epoch)
        ids = self.ids[members]
        owners, pairs = self.captions.owners, self.pairs[members]
        first = np.searchsorted(owners, pairs, side="left")
        count = np.searchsorted(owners, pairs, side="right") - first
        drawn = uniforms(self.seed, Stream.CAPTION, epoch, ids, np.zeros(len(ids), np.int64))
        captions = first + (drawn.astype(np.float64) * count).astype(np.int64)
        text = self.captions.batch(captions, ids)
        return ViewedPairs(text1=text, **self.views(images, ids, epoch))


class HeldOutPairs:
    """Every caption of the `chosen` pairs, with the picture it belongs to and a wrong one."""

    def __init__(
        self, read: ReadPairs, groups: Ids, chosen: Ints, *, batch_pairs: int = 64
    ) -> None:
        pairs, self.captions, self.pictures, self.view = read
        self.ids, self.groups, self.batch_pairs = pairs.ids, groups, batch_pairs
        self.chosen = chosen[np.isin(chosen, self.captions.owners)]
        wrong = wrong_pairs(groups, self.chosen)
        self.wrong = dict(zip(self.chosen.tolist(), wrong.tolist(), strict=True))

    def __iter__(self) -> Iterator[JudgedPairs]:
        """Yield batches in the order of the pairs."""
        found = False
        for first in range(0, len(self.chosen), self.batch_pairs):
            if batch := self._batch(self.chosen[first : first + self.batch_pairs].tolist()):
                found = True
                yield batch
        if not found:
            raise DataError(f"no held-out picture can be read ({self.pictures.skipped})")

    def _batch(self, members: list[int]) -> JudgedPairs | None:
        """Return a batch, or None where no picture can be read."""
        wanted = list(dict.fromkeys([*members, *(self.wrong[i] for i in members)]))
        loaded = zip(wanted, self.pictures.load(wanted), strict=True)
        images = {index: image for index, image in loaded if image is not None}
        members = [i for i in members if i in images and self.wrong[i] in images]
        if not members:
            return None
        place = {index: row for row, index in enumerate(images)}
        rows = np.flatnonzero(np.isin(self.captions.owners, members))
        owners = self.captions.owners[rows]
        return JudgedPairs(
            images=view_stack(list(images.values()), self.view, pool=self.pictures.pool),
            right=torch.tensor([place[i] for i in owners.tolist()]),
            wrong=torch.tensor([place[self.wrong[i]] for i in owners.tolist()]),
            text=self.captions.batch(rows, self.ids[owners]),
            groups=self.groups[owners],
        )
