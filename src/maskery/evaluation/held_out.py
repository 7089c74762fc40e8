"""Scoring any model on any text with frozen masks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from maskery.core.errors import ModelError
from maskery.core.vocabulary import Vocabulary
from maskery.data.corpus.config import CorpusConfig
from maskery.data.corpus.reader import Corpus
from maskery.data.text_source import Template, TextSource
from maskery.data.tokenise import tokenise, tokenizer_fingerprint
from maskery.evaluation.masked import ExampleSums, score_examples
from maskery.evaluation.opening import OpenModel
from maskery.masking.config import MaskingConfig
from maskery.masking.masker import Masker
from maskery.models.packing import max_positions

MAX_LENGTH = 512


def score_text(
    opened: OpenModel,
    data: Sequence[str],
    reading: CorpusConfig,
    masking: MaskingConfig,
    *,
    cache_dir: Path,
    batch_tokens: int = 4096,
    seed: int = 0,
    progress: bool = True,
) -> ExampleSums:
    """Held-out sums of a model on files or a hub dataset.

    Args:
        opened: The model.
        data: Files, folders, globs or one hub id; every example counts as held out.
        reading: How the data is read.
        masking: How it is masked.
        cache_dir: Where tokens are kept.
        batch_tokens: Tokens scored at once; the figures do not depend on it.
        seed: Of the masks.
        progress: Whether to draw a bar.
    """
    tokenizer = opened.tokenizer
    store = tokenise(Corpus.open(data, reading), tokenizer, cache_dir, progress=progress)
    limit = min(MAX_LENGTH, max_positions(opened.model.hf.config) or MAX_LENGTH)
    source = TextSource(
        store,
        np.arange(store.num_documents),
        Template.of(tokenizer),
        max_length=limit,
        batch_tokens=max(batch_tokens, limit),
        layout="packed" if opened.model.packed else "padded",
    )
    masker = Masker(vocabulary=Vocabulary.of(tokenizer), config=masking, seed=seed)
    return score_examples(opened.model, source.in_order(), masker)


def require_same_tokenizer(one: OpenModel, other: OpenModel) -> None:
    """Refuse to compare models that cut text differently.

    Raises:
        ModelError: Their tokenizers differ.
    """
    if tokenizer_fingerprint(one.tokenizer) != tokenizer_fingerprint(other.tokenizer):
        raise ModelError(
            f"'{one.name}' and '{other.name}' cut text into different tokens, so their losses "
            f"are not of the same thing; compare models that share a tokenizer"
        )
