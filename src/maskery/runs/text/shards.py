"""The data of a text run over token shards."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from maskery.core.batch import Ints
from maskery.core.errors import DataError, ModelError, counted, explained
from maskery.data.added_words import AddedWords
from maskery.data.batching import Batching, TextSource
from maskery.data.corpus.reader import Corpus
from maskery.data.shards.places import holds_shards, open_place
from maskery.data.shards.source import ShardSource, TokenShards
from maskery.data.store import Documents
from maskery.data.tokenise import tokenise, tokenizer_fingerprint
from maskery.models.loading import load_tokenizer
from maskery.runs.frame.run_frame import fingerprint_of
from maskery.runs.text.config import SCRATCH, TextRunConfig
from maskery.runs.text.data import other_texts

log = logging.getLogger(__name__)

COUNTED_SHARDS = 4  # shards whose token frequencies a new head starts from


class ShardedText:
    """Training and held-out batches of shards; `cache_dir` keeps copies and tokenised text."""

    def __init__(self, config: TextRunConfig, cache_dir: Path, *, progress: bool = True) -> None:
        self.config = config
        self.shards = TokenShards(open_place(config.corpus[0], cache_dir))
        self.tokenizer = self._tokenizer()
        self.added: AddedWords | None = None
        self.others = other_texts(config, self.tokenizer, cache_dir, progress=progress)
        self.held_out_store = self._held_out(cache_dir, progress)

    def described(self) -> dict[str, Any]:
        """Return what a continuation must share, by name."""
        manifest, streaming = self.shards.manifest, self.config.streaming
        own = self.config.deciding_data
        held_out = fingerprint_of(np.asarray(self.held_out_store.ids)) if own else None
        others = {name: store.folder.name for name, (store, _) in self.others.items()}
        return {
            "corpus_fingerprint": manifest.fingerprint,
            "tokenizer_fingerprint": manifest.tokenizer_fingerprint,
            "eval_data_fingerprint": held_out,
            "held_out_tokens": streaming.held_out_tokens,
            "shuffle_shards": streaming.shuffle_shards,
            **({"other_fingerprints": others} if others else {}),
        }

    def token_counts(self, vocab_size: int) -> Ints:
        """Return (vocab_size,) int64: counts in a few shards, spread evenly."""
        entries = self.shards.manifest.shards
        step = max(1, len(entries) // COUNTED_SHARDS)
        counts = np.zeros(vocab_size, np.int64)
        for entry in entries[::step][:COUNTED_SHARDS]:
            counts += self.shards.open([entry]).token_counts(vocab_size)
        return counts

    def sources(self, batching: Batching) -> tuple[ShardSource, TextSource]:
        """Return training and held-out batches."""
        streaming = self.config.streaming
        documents = np.arange(self.held_out_store.num_documents)
        held_out = TextSource(self.held_out_store, documents, batching)
        # What was set aside when the shards were made is in none of them.
        own = [self.held_out_store] if self.config.deciding_data else []
        named = [store for store, _ in self.others.values()]
        outside = [np.asarray(store.ids) for store in (*own, *named)]
        train = ShardSource(
            self.shards,
            batching,
            shuffle_shards=streaming.shuffle_shards,
            cache_shards=streaming.cache_shards,
            exclude=np.concatenate(outside) if outside else None,
        )
        return train, held_out

    def describe(self) -> str:
        """Return how much there is, in words."""
        manifest = self.shards.manifest
        return (
            f"{counted(len(manifest.shards), 'shard')} with "
            f"{counted(manifest.documents, 'training example')}, "
            f"{counted(manifest.tokens, 'token')}; "
            f"{counted(self.held_out_store.num_documents, 'held-out example')}"
        )

    def _tokenizer(self) -> PreTrainedTokenizerBase:
        config, manifest = self.config, self.shards.manifest
        if config.model.startswith(SCRATCH):
            # Not `load_tokenizer`: no model's configuration lies beside it.
            folder = self.shards.tokenizer_folder()
            problem = f"the tokenizer in '{folder}' cannot be loaded"
            errors = (OSError, ValueError, KeyError)
            with explained(problem, "make the shards again", *errors, kind=ModelError):
                return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        tokenizer = load_tokenizer(config.model)
        if tokenizer_fingerprint(tokenizer) != manifest.tokenizer_fingerprint:
            raise ModelError(
                f"the shards of '{self.shards.place.name}' were made with the tokenizer of "
                f"'{manifest.tokenizer}', and that of --model {config.model} is another; make "
                f"shards with: maskery tokenize CORPUS OUT --model {config.model}"
            )
        return tokenizer

    def _held_out(self, cache_dir: Path, progress: bool) -> Documents:
        texts, most = self.config.deciding_data, self.config.streaming.held_out_tokens
        if not texts:
            return self.shards.held_out(most)
        if len(texts) == 1 and holds_shards(texts[0]):
            other = TokenShards(open_place(texts[0], cache_dir))
            if other.manifest.tokenizer_fingerprint != self.shards.manifest.tokenizer_fingerprint:
                raise DataError(
                    f"the shards of --eval-data '{texts[0]}' were made with another tokenizer; "
                    "make them again with that of the corpus"
                )
            entries = other.manifest.shards
            ends = np.cumsum([entry.tokens for entry in entries])
            return other.open(entries[: np.searchsorted(ends, most) + 1])
        corpus = Corpus.open(texts, self.config.reading)
        return tokenise(corpus, self.tokenizer, cache_dir, progress=progress)
