"""Encode texts and images once each, and match each text with its best images, image by image.

The released evaluations of ALBEF and RaSa project the keys and values of all k images anew for each
text, in every fusion layer. Here pairs are sorted by image: each is projected once, and all texts
that want it look at it together. Image tokens beyond the memory allowed go to a temporary file.

Shapes: T texts, K candidates of each, S tokens of all texts, D text width, I images, N image
tokens, W image width, E features, R texts of one image.
"""

import contextlib
import errno
import math
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from maskery.core.bars import Bar
from maskery.core.batch import Ints, TokenBatch
from maskery.core.errors import DataError, reason_of
from maskery.core.processes import Processes, inference
from maskery.core.random import Float32Array
from maskery.evaluation.retrieval.config import RetrievalConfig
from maskery.evaluation.text.fill import by_length
from maskery.evaluation.text.masked import require_numbers
from maskery.models.image_text import text_encoder
from maskery.models.image_text.model import ImageTextModel
from maskery.models.layout import pad

CHUNK_BYTES = 1 << 20  # written at a time where the file system cannot reserve space
NOT_OFFERED = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)  # its errors that say so
IMAGES_AT_ONCE = 64  # more projected together gain nothing


@dataclass(frozen=True, kw_only=True)
class ReadTexts:
    """Texts after the layers that see no image."""

    features: torch.Tensor  # (T, E), unit length
    states: torch.Tensor | None  # (S, D), after the first fusion self-attention; None if unmatched
    batch: TokenBatch  # Its boundaries are those of the states, too


@dataclass(frozen=True, kw_only=True)
class ReadImages:
    """Images after the vision encoder."""

    features: torch.Tensor  # (I, E), unit length
    tokens: Float32Array | None  # (I, N, W), in memory or a temporary file; None without matching


@inference()
def read_texts(
    model: ImageTextModel, texts: TokenBatch, *, states: bool, batch_tokens: int = 4096
) -> ReadTexts:
    """Encode each text once, those of similar length together."""
    device, width = model.device, model.config.text_config.hidden_size
    features = torch.empty(len(texts.lengths), model.config.embed_dim, device=device)
    kept = torch.empty(texts.num_tokens, width, device=device) if states else None
    for chosen in by_length(texts.lengths, batch_tokens):
        picked = tokens_of(texts, chosen)
        ends = np.append(0, np.cumsum(texts.lengths[chosen]))
        inputs = pad(texts.input_ids[picked], ends, picked[:0], pad_token_id=0).to(device)
        mask = inputs.arguments["attention_mask"].bool()
        hidden = model.text_encoder.encode_text(inputs.input_ids, mask)
        features[torch.from_numpy(chosen)] = model.text_feature(hidden, mask).float()
        if kept is not None:
            begun = text_encoder.before_looking(model.text_encoder, hidden, mask)[mask]
            kept[torch.from_numpy(picked).to(device)] = begun.float()
    return ReadTexts(features=features, states=kept, batch=texts)


@inference()
def read_images(
    model: ImageTextModel,
    batches: Iterable[torch.Tensor],
    count: int,
    *,
    tokens: bool,  # True to keep them, where matching will follow
    memory_bytes: int = 1_000_000_000,  # above, tokens are kept in a temporary file
) -> ReadImages:
    """Encode each of `count` images once; they come in normalised batches (B, 3, height, width)."""
    features, done = torch.empty(count, model.config.embed_dim, device=model.device), 0
    kept: Float32Array | None = None
    for pixels in batches:
        end = done + len(pixels)
        if end > count:
            raise DataError(f"more than {count} images came; name as many persons as images")
        read = model.encode_image(pixels.to(model.device))
        features[done:end] = model.image_feature(read).float()
        if tokens:
            kept = large_array((count, *read.shape[1:]), memory_bytes) if kept is None else kept
            kept[done:end] = read.float().cpu().numpy()
        done = end
    if done != count:
        raise DataError(f"{done} images came, and {count} persons are named; they must be as many")
    return ReadImages(features=features, tokens=kept)


def tokens_of(texts: TokenBatch, chosen: Ints) -> Ints:
    """Return the indices of all tokens of the chosen texts, in that order."""
    lengths = texts.lengths[chosen]
    ends = np.cumsum(lengths)
    within = np.arange(int(ends[-1])) - np.repeat(ends - lengths, lengths)
    return np.repeat(texts.boundaries[chosen], lengths) + within


def large_array(shape: tuple[int, ...], memory_bytes: int) -> Float32Array:
    """Return an array in memory, or in a nameless temporary file where it would be too large."""
    size = 4 * math.prod(shape)
    if size <= memory_bytes:
        return np.empty(shape, np.float32)
    try:
        with tempfile.TemporaryFile() as file:  # stays until nothing refers to the array
            # A file with holes would kill the process at the first page that finds no space.
            _reserve(file.fileno(), size)
            return np.memmap(file, np.float32, "r+", shape=shape)
    except OSError as error:
        megabytes, where = math.ceil(size / 1_000_000), "there is"
        with contextlib.suppress(OSError):  # no folder can be written to at all
            where = f"'{tempfile.gettempdir()}' has"
        problem = f"the image tokens take {megabytes:,} MB in a temporary file"
        reason = f"for which {where} no room ({error.strerror or reason_of(error)})"
        in_memory = f"raise --memory-mb to {megabytes} to keep them in memory"
        fix = f"set TMPDIR to a folder with room, {in_memory}, or turn the re-ranking off"
        raise DataError(f"{problem}, {reason}; {fix} with --rerank 0") from error


def _reserve(file: int, size: int) -> None:
    try:
        os.posix_fallocate(file, 0, size)
    except (AttributeError, OSError) as error:  # macOS does not have it
        if getattr(error, "errno", errno.ENOSYS) not in NOT_OFFERED:
            raise
        zeros = memoryview(bytes(CHUNK_BYTES))
        while size > 0:
            size -= os.write(file, zeros[:size])


@dataclass(frozen=True)
class Matcher:
    """Matches texts with images, all read once."""

    model: ImageTextModel  # in evaluation mode, with fusion layers
    texts: ReadTexts  # with states
    images: ReadImages  # with tokens
    config: RetrievalConfig

    @torch.no_grad()
    def scores(
        self,
        candidates: torch.Tensor,  # (T, K) int64, images of each text
        similarities: torch.Tensor,  # (T, K), of their features
        processes: Processes | None = None,  # they share the images out; all must ask, and get all
        progress: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return scores (T, K) that candidates are sorted by, and the logits (T, K, 2) of these."""
        processes = processes or Processes()
        mine = by_image(candidates.cpu().numpy())[processes.rank :: processes.world_size]
        total = sum(len(places) for _, places in mine)
        flat, count = torch.zeros(candidates.numel(), 2), candidates.shape[1]
        with Bar(total, "matching", shown=progress) as bar:
            for places, judged in self.logits(mine, count):
                flat[torch.from_numpy(places)] = judged
                bar.update(len(places))
        logits = processes.add(flat).view(-1, count, 2)  # what is another's is 0 here
        require_numbers(logits)
        if self.config.score == "matching":
            return logits[..., 1], logits
        odds = logits[..., 1] - logits[..., 0]
        if self.config.score == "odds":
            return odds, logits
        temperature = float(self.model.temp.detach())
        return self.config.odds_weight * odds + similarities / temperature, logits

    @torch.no_grad()
    def logits(
        self, pairs: Sequence[tuple[int, Ints]], count: int
    ) -> Iterator[tuple[Ints, torch.Tensor]]:
        """Yield the places (R,) of each image's pairs and their logits (R, 2); `count` is K."""
        assert self.images.tokens is not None
        width = self.model.config.text_config.hidden_size
        # Keys and values, of four bytes a number; as many images at a time as fit the memory.
        each = 2 * 4 * len(self.model.text_encoder.fusion_layers) * width
        fitting = self.config.memory_bytes // (each * self.images.tokens.shape[1])
        size = max(1, min(fitting, IMAGES_AT_ONCE))
        for first in range(0, len(pairs), size):
            block = pairs[first : first + size]
            tokens = torch.from_numpy(self.images.tokens[[image for image, _ in block]])
            with inference():
                keys = self.model.project_images(tokens.to(self.model.device))
            for number, (_, places) in enumerate(block):
                only = slice(number, number + 1)  # a view: nothing is copied
                own = [replace(k, keys=k.keys[only], values=k.values[only]) for k in keys]
                yield places, self._judge(places // count, own)

    @inference()
    def _judge(self, own: Ints, keys: Sequence[text_encoder.ImageKeys]) -> torch.Tensor:
        """Return (R, 2) logits on the CPU, of one image and its own texts."""
        assert self.texts.states is not None
        texts, model, judged = self.texts.batch, self.model, torch.empty(len(own), 2)
        lengths = texts.lengths[own]
        for chosen in by_length(lengths, self.config.batch_tokens):
            picked = torch.from_numpy(tokens_of(texts, own[chosen])).to(model.device)
            rows = text_encoder.Rows.of_lengths(lengths[chosen], model.device)
            states = self.texts.states.index_select(0, picked)
            tokens = text_encoder.fuse_class_tokens(model.text_encoder, states, rows, keys)
            judged[torch.from_numpy(chosen)] = model.itm_head(tokens).float().cpu()
        return judged


def by_image(candidates: Ints) -> list[tuple[int, Ints]]:
    """Return each image among (T, K) candidates, and the places of its pairs among the T * K."""
    flat = candidates.ravel()
    order = np.argsort(flat, kind="stable")
    images, firsts = np.unique(flat[order], return_index=True)
    return list(zip(images.tolist(), np.split(order, firsts[1:]), strict=True))
