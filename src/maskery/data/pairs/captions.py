"""The captions of image-caption pairs as tokens, in memory.

Shapes: N pairs, C captions, T tokens of all captions.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerBase

from maskery.core.batch import TokenBatch, Vocabulary
from maskery.core.errors import DataError
from maskery.core.random import Int64Array
from maskery.data.batching import Template, assemble
from maskery.data.images.loading import Skipped
from maskery.data.pairs.pairs import Pairs
from maskery.data.pairs.records import brief
from maskery.data.tokenise import encoder

# Tokenizers work on lists in parallel; larger ones gain nothing, and each text in them takes
# kilobytes until it is read.
CAPTIONS_AT_ONCE = 4096


@dataclass(frozen=True, kw_only=True)
class CaptionTokens:
    """Every usable caption, tokenised once."""

    tokens: npt.NDArray[np.int32]  # (T,) int32, without special tokens
    word_starts: npt.NDArray[np.bool_]  # (T,) bool
    # (C + 1,) int64; caption c is `tokens[boundaries[c]:boundaries[c + 1]]`.
    boundaries: Int64Array
    owners: Int64Array  # (C,) int64, ascending: the pair of each caption
    places: Int64Array  # (C,) int64: its number among its pair's captions
    # (C,) int64: the caption's first token among its pair's, special tokens counted. A pair's
    # captions are windows of one document, so that each has masks of its own.
    starts: Int64Array
    template: Template  # the special tokens of a sequence
    skipped: Skipped  # captions that were left out because nothing in them can be masked
    num_cut: int  # captions that were cut at the longest length

    def token_counts(self, vocab_size: int) -> Int64Array:
        """Count each token of the captions: (V,) int64."""
        return np.bincount(self.tokens, minlength=vocab_size).astype(np.int64)

    def batch(self, captions: Int64Array, example_ids: npt.NDArray[np.uint64]) -> TokenBatch:
        """Return some captions end to end, each under the id of its pair."""
        firsts = self.boundaries[captions]
        return assemble(
            self.tokens,
            self.word_starts,
            firsts,
            self.boundaries[captions + 1] - firsts,
            example_ids,
            self.starts[captions],
            self.template,
        )


def tokenise_captions(
    pairs: Pairs, tokenizer: PreTrainedTokenizerBase, skipped: Skipped, *, max_length: int
) -> CaptionTokens:
    """Tokenise all captions, cut to `max_length` tokens; `skipped` is told of unusable ones."""
    template = Template.of(tokenizer)
    longest = max_length - template.num_special
    captions = ((n, place) for n, pair in enumerate(pairs) for place in range(len(pair.captions)))
    owners, places = np.array(list(captions), np.int64).T
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
        skipped.report(
            DataError(
                f"the caption {brief(pair.captions[place])} of image {pair.image.name} holds no "
                f"token that could be masked; correct it or choose another tokenizer"
            )
        )
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


def fingerprint(pairs: Pairs) -> str:
    """Return a hash of the pairs' ids, which follow from image names and captions."""
    return blake2b(pairs.ids.tobytes(), digest_size=16).hexdigest()
