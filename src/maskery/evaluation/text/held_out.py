"""Any text as any model reads it, to score the model on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from maskery.core.errors import ModelError
from maskery.data.corpus.config import CorpusConfig
from maskery.data.corpus.reader import Corpus
from maskery.data.text_source import Template, TextSource
from maskery.data.tokenise import tokenise, tokenizer_fingerprint
from maskery.evaluation.image_text.opening import OpenImageText
from maskery.evaluation.text.opening import OpenModel
from maskery.models.packing import max_positions

MAX_LENGTH = 512


def held_out_source(
    opened: OpenModel,
    data: Sequence[str],
    reading: CorpusConfig,
    *,
    cache_dir: Path,
    batch_tokens: int = 4096,
    progress: bool = True,
) -> TextSource:
    """Files or a hub dataset as a model reads them.

    Args:
        opened: The model.
        data: Files, folders, globs or one hub id; every example counts as held out.
        reading: How the data is read.
        cache_dir: Where tokens are kept.
        batch_tokens: Tokens scored at once; the figures do not depend on it.
        progress: Whether to draw a bar.
    """
    tokenizer = opened.tokenizer
    store = tokenise(Corpus.open(data, reading), tokenizer, cache_dir, progress=progress)
    limit = min(MAX_LENGTH, max_positions(opened.model.hf.config) or MAX_LENGTH)
    return TextSource(
        store,
        np.arange(store.num_documents),
        Template.of(tokenizer),
        max_length=limit,
        batch_tokens=max(batch_tokens, limit),
        layout="packed" if opened.model.packed else "padded",
    )


def require_same_tokenizer(
    one: OpenModel | OpenImageText, other: OpenModel | OpenImageText
) -> None:
    """Refuse to compare models that cut text differently.

    Raises:
        ModelError: Their tokenizers differ.
    """
    if tokenizer_fingerprint(one.tokenizer) != tokenizer_fingerprint(other.tokenizer):
        raise ModelError(
            f"'{one.name}' and '{other.name}' cut text into different tokens, so their losses "
            f"are not of the same thing; compare models that share a tokenizer"
        )
