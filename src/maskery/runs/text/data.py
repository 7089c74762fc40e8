"""The data of a text run: a tokenised corpus, or shards; what few runs need comes in by name."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from maskery.core.batch import Ints
from maskery.core.errors import ConfigError, counted
from maskery.data.batching import Batching, TextSource
from maskery.data.corpus.reader import Corpus
from maskery.data.shards.places import holds_shards
from maskery.data.split import sample, split, split_by_value, without_held_out
from maskery.data.tokenise import tokenise, tokenizer_fingerprint
from maskery.data.vocabulary import learnt_tokenizer
from maskery.models.loading import load_tokenizer
from maskery.runs.frame.run_folder import TOKENIZER
from maskery.runs.text.config import SCRATCH, TextRunConfig

if TYPE_CHECKING:
    from maskery.data.added_words import AddedWords
    from maskery.data.corpus.config import CorpusConfig
    from maskery.data.store import TokenStore
    from maskery.runs.text.shards import ShardedText

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Given:
    """Objects of the user's own, in the place of what a configuration names; see `train_text`."""

    texts: Any = None
    eval_texts: Any = None
    model: torch.nn.Module | None = None
    tokenizer: PreTrainedTokenizerBase | None = None
    objective: Callable[[Any], Any] | None = None
    callbacks: tuple[Any, ...] = ()

    def __post_init__(self) -> None:
        if self.model is not None and self.tokenizer is None:
            problem = f"the model, a {type(self.model).__name__}, comes without a tokenizer"
            fix = "pass its own, as tokenizer=AutoTokenizer.from_pretrained(...)"
            raise ConfigError(f"{problem}; {fix}")


def open_text(
    config: TextRunConfig, cache_dir: Path, given: Given, *, progress: bool = True
) -> StoredText | ShardedText:
    """Read and tokenise the corpus of a run, or open the shards that it names."""
    places = [] if given.texts is not None else list(filter(holds_shards, config.corpus))
    if config.mix and (given.texts is not None or len(places) not in (0, len(config.corpus))):
        needed = "text of its own (a file, folder or glob), or each as shards of maskery tokenize"
        raise ConfigError(f"--mix needs each corpus as {needed}; name those")
    if not places:
        return StoredText(config, cache_dir, given, progress=progress)
    if len(config.corpus) > 1 and not config.mix:
        rule = "which is named alone or with a --mix"
        fix = "tokenize all of the corpus into one folder, or say how much of each"
        raise ConfigError(f"'{places[0]}' is a folder or address of shards, {rule}; {fix}")
    if config.add_words is not None:
        problem = f"--add-words {config.add_words}: the shards were cut without these words"
        raise ConfigError(f"{problem}; train on the text itself")
    if config.group_column is not None:
        problem = f"--group-column {config.group_column}: shards were split when they were made"
        raise ConfigError(f"{problem}; train on the text itself, or on an --eval-data of your own")
    shards = import_module("maskery.runs.text.shards")
    sharded: ShardedText = shards.ShardedText(config, cache_dir, progress=progress)
    return sharded


class StoredText:
    """A corpus in a token store of the cache, with some of it, or another, held out."""

    def __init__(
        self, config: TextRunConfig, cache_dir: Path, given: Given, *, progress: bool = True
    ) -> None:
        corpus = _corpus(given.texts, config.corpus, config.reading)
        if given.tokenizer is not None:
            self.tokenizer = given.tokenizer
        elif config.model.startswith(SCRATCH):
            kept = None if config.output is None else config.output / TOKENIZER
            if config.from_run is not None:
                kept = import_module("maskery.runs.text.branch").kept_tokenizer(config)
            self.tokenizer = learnt_tokenizer(corpus, config, kept, progress=progress)
        else:
            self.tokenizer = load_tokenizer(config.model)
        self.added = self._add_words(config.add_words)
        self.config = config
        self.store = tokenise(corpus, self.tokenizer, cache_dir, progress=progress)
        self.token_counts = self.store.token_counts
        # Equal texts have one id: they are of the first corpus that has them.
        self.shares = config.shares
        self.owners = np.full(self.store.num_documents if self.shares else 0, -1)
        for number, path in enumerate(config.corpus if self.shares else ()):
            one = Corpus.open([path], config.reading)
            own = tokenise(one, self.tokenizer, cache_dir, progress=progress)
            self.owners[np.isin(self.store.ids, own.ids) & (self.owners < 0)] = number
        self.others = other_texts(config, self.tokenizer, cache_dir, progress=progress)
        outside = [store for store, _ in self.others.values()]
        if config.deciding_data or given.eval_texts is not None:
            other = _corpus(given.eval_texts, config.deciding_data, config.reading)
            self.held_store = tokenise(other, self.tokenizer, cache_dir, progress=progress)
            outside.append(self.held_store)
            self.train_documents = np.arange(self.store.num_documents)
            self.held_documents = np.arange(self.held_store.num_documents)
        else:
            self.held_store = self.store
            whole = self.store, self.tokenizer, config.held_out_share
            group = config.group_column
            self.train_documents, self.held_documents = (
                split(*whole) if group is None else split_by_value(*whole, corpus.groups(group))
            )
        if outside:
            train = self.train_documents
            self.train_documents = without_held_out(self.store, train, outside, self.tokenizer)
        self.most_tokens, whole_size = config.streaming.held_out_tokens, len(self.held_documents)
        self.held_documents = sample(self.held_store, self.held_documents, self.most_tokens)
        parts = [(len(self.held_documents), whole_size)]
        parts += [(len(scored), store.num_documents) for store, scored in self.others.values()]
        self.is_sampled = any(scored < whole for scored, whole in parts)

    def _add_words(self, path: str | None) -> AddedWords | None:
        if path is None:
            return None
        from maskery.data.added_words import add_words, read_words, require_growing

        require_growing(self.tokenizer)
        added = add_words(self.tokenizer, read_words(path, self.tokenizer), path)
        self.tokenizer = added.tokenizer
        log.info("added to the vocabulary: %s", counted(len(added.pieces), "word"))
        if added.known:
            shown = ", ".join(added.known[:5]) + (", ..." if len(added.known) > 5 else "")
            log.info("%d were single tokens already: %s", len(added.known), shown)
        return added

    def described(self) -> dict[str, Any]:
        """Return what a continuation must share, by name; for `identity`."""
        # A store's name is a hash of content and tokenizer.
        own = self.held_store is not self.store
        return {
            "corpus_fingerprint": self.store.folder.name,
            "tokenizer_fingerprint": tokenizer_fingerprint(self.tokenizer),
            "eval_data_fingerprint": self.held_store.folder.name if own else None,
            "held_out_share": None if own else self.config.held_out_share,
            **({"held_out_tokens": self.most_tokens} if self.is_sampled else {}),
        }

    def sources(self, batching: Batching) -> tuple[TextSource, TextSource]:
        """Return training and held-out batches."""
        chosen, train = (self.store, self.train_documents, batching), None
        if self.shares:
            mixed = import_module("maskery.data.mixture").MixedSource
            train = mixed(*chosen, self.owners, self.shares)
            log.info("%s", train.describe([Path(path).name for path in self.config.corpus]))
        held_out = TextSource(self.held_store, self.held_documents, batching)
        return train or TextSource(*chosen), held_out

    def describe(self) -> str:
        """Return how much there is to train and to be measured on, in words."""
        tokens = int(self.store.lengths()[self.train_documents].sum())
        of_more = " (a sample: --held-out-tokens)" if self.is_sampled else ""
        held_out = counted(len(self.held_documents), "held-out example") + of_more
        return f"{len(self.train_documents):,} training and {held_out}, {counted(tokens, 'token')}"


def other_texts(
    config: TextRunConfig, tokenizer: PreTrainedTokenizerBase, cache_dir: Path, *, progress: bool
) -> dict[str, tuple[TokenStore, Ints]]:
    """Read and tokenise the held-out texts that have names, and choose what of each is scored."""
    found = {}
    for name, path in config.other_data.items():
        corpus = Corpus.open([path], config.reading)
        store = tokenise(corpus, tokenizer, cache_dir, progress=progress)
        every = np.arange(store.num_documents)
        found[name] = (store, sample(store, every, config.streaming.held_out_tokens))
    return found


def _corpus(texts: Any, sources: Sequence[str], reading: CorpusConfig) -> Corpus:
    return Corpus.open(sources, reading) if texts is None else Corpus.of(texts, reading)
