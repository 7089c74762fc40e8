"""Open a text model by name, read held-out text as that model reads it, and evaluate on it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from maskery.core.errors import DataError, ModelError
from maskery.core.processes import to_gpu
from maskery.data import tokenise
from maskery.data.batching import Batching, Layout, Template, TextSource
from maskery.data.corpus.config import CorpusConfig
from maskery.data.corpus.reader import Corpus
from maskery.data.store import Documents
from maskery.evaluation.intervals import Interval
from maskery.evaluation.text.masked import MaskedScores, compare, score_examples, summarise
from maskery.masking.config import MaskingConfig
from maskery.masking.masker import Masker
from maskery.models.layout import can_pack, max_positions
from maskery.models.loading import Loaded, load_masked_lm
from maskery.models.masked_lm import MaskedLanguageModel

if TYPE_CHECKING:
    from maskery.evaluation.image_text.opening import OpenImageText

MAX_LENGTH = 512  # of windows, as in training, even where a model has more positions


@dataclass(frozen=True, kw_only=True)
class OpenModel:
    """A text model ready for use."""

    name: str  # As given
    model: MaskedLanguageModel  # In evaluation mode, on the GPU where there is one
    tokenizer: PreTrainedTokenizerBase  # Its tokenizer


def open_model(name: str | Path | OpenModel, *, trained_head: bool = True) -> OpenModel:
    """Load a text model: a run folder, a model folder, a hub name, `minilm`, or an open model.

    With `trained_head`, a model whose prediction head would start from noise is a ModelError.
    """
    if isinstance(name, OpenModel):
        return name
    loaded = load_masked_lm(str(name))
    if trained_head:
        require_head(str(name), loaded)
    return as_open(str(name), loaded)


def require_head(name: str, loaded: Loaded) -> None:
    """Refuse a model without a trained head."""
    if loaded.new_parameters:
        problem = f"'{name}' has no masked-language-modelling head of its own"
        fix = f"train one first: maskery train text CORPUS --model {name}"
        raise ModelError(f"{problem}, so its predictions would be noise; {fix}")


def as_open(name: str, loaded: Loaded) -> OpenModel:
    """Return a model that was loaded, ready for use."""
    pad = int(loaded.tokenizer.pad_token_id or 0)
    packed, _ = can_pack(loaded.model, pad)
    model = MaskedLanguageModel(loaded.model, packed=packed, pad_token_id=pad)
    return OpenModel(name=name, model=to_gpu(model.eval()), tokenizer=loaded.tokenizer)


def held_out_source(
    opened: OpenModel,
    data: Sequence[str],
    reading: CorpusConfig | None = None,
    *,
    cache_dir: Path | None = None,
    batch_tokens: int = 4096,
    progress: bool = True,
) -> TextSource:
    """Read files or a hub dataset as a model reads them; every example counts as held out."""
    corpus, cache = Corpus.open(data, reading), cache_dir or tokenise.default_cache_dir()
    store = tokenise.tokenise(corpus, opened.tokenizer, cache, progress=progress)
    return _source(opened, store, batch_tokens)


def texts_source(opened: OpenModel, texts: Any, *, batch_tokens: int = 4096) -> TextSource:
    """Read texts in memory as a model reads them; each counts as held out.

    They are strings, mappings with the text under `text`, or a dataset of `datasets`. The figures
    do not depend on `batch_tokens`.
    """
    batches = tokenise.batched(Corpus.of(texts, name="the texts"))
    encoded = tokenise.encode_batches(batches, tokenise.encoder(opened.tokenizer))
    documents = Documents.gather(encoded)
    if not documents.num_documents:
        problem = f"the texts hold no tokens for the tokenizer of '{opened.name}'"
        raise DataError(f"{problem}; bring text in a script that it knows")
    return _source(opened, documents, batch_tokens)


@dataclass(frozen=True, kw_only=True)
class TextEvaluation:
    """The figures of a model, and its difference to another one."""

    scores: MaskedScores  # Of the model
    against: MaskedScores | None = None  # Of the other model, if one was named
    difference: dict[str, Interval] | None = None  # Of loss, top1, top5 to the other's, paired


def evaluate(
    model: str | Path | OpenModel,
    texts: Any,
    *,
    against: str | Path | OpenModel | None = None,
    masking: MaskingConfig | None = None,
    seed: int = 0,
    batch_tokens: int = 4096,
) -> TextEvaluation:
    """Evaluate a text model on frozen masks: `evaluate("runs/notes", texts).scores.loss`.

    Args:
        model: A run folder, a model folder, a hub name, `minilm`, or an open model.
        texts: Held-out texts, each an example: strings, mappings with the text under `text`, or a
            dataset of `datasets`; or the name of a file, a folder or a hub dataset.
        against: Another model with the same tokenizer, for the paired difference.
        masking: Policy and rate of the masks. Default: 15% of the tokens.
        batch_tokens: Tokens scored at once; the figures do not depend on it.

    Raises:
        DataError: There is no text, or nothing in it can be masked.
        ModelError: A model cannot be loaded or predicts no numbers, or they cut text differently.
    """
    opened = [open_model(one) for one in (model, against) if one is not None]
    if against is not None:
        require_same_tokenizer(*opened)
    kept = list(texts) if isinstance(texts, Iterator) else texts  # two models read it twice
    scored = []
    for one in opened:
        if isinstance(kept, str | Path):
            source = held_out_source(one, [str(kept)], batch_tokens=batch_tokens, progress=False)
        else:
            source = texts_source(one, kept, batch_tokens=batch_tokens)
        masker = Masker.of(one.tokenizer, masking, seed=seed)
        scored.append(score_examples(one.model, source.in_order(), masker))
    own, *other = map(summarise, scored)
    if not other:
        return TextEvaluation(scores=own)
    return TextEvaluation(scores=own, against=other[0], difference=compare(*scored))


def require_same_tokenizer(
    one: "OpenModel | OpenImageText", other: "OpenModel | OpenImageText"
) -> None:
    """Refuse to compare models that cut text differently."""
    first, second = (tokenise.tokenizer_fingerprint(model.tokenizer) for model in (one, other))
    if first != second:
        problem = f"'{one.name}' and '{other.name}' cut text into different tokens"
        why = "so their losses are not of the same thing"
        raise ModelError(f"{problem}, {why}; compare models that share a tokenizer")


def _source(opened: OpenModel, documents: Documents, batch_tokens: int) -> TextSource:
    limit = min(MAX_LENGTH, max_positions(opened.model.hf.config) or MAX_LENGTH)
    template, size = Template.of(opened.tokenizer), max(batch_tokens, limit)
    layout: Layout = "packed" if opened.model.packed else "padded"
    batching = Batching(template=template, max_length=limit, batch_tokens=size, layout=layout)
    return TextSource(documents, np.arange(len(documents.ids)), batching)
