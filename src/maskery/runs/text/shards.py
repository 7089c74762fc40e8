"""The data of a text run over token shards, of one set or of a mixture of several."""

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
from maskery.data.mixture import MixedShards
from maskery.data.shards.places import holds_shards, open_place
from maskery.data.shards.source import ShardSource, TokenShards
from maskery.data.store import Documents
from maskery.data.tokenise import tokenise, tokenizer_fingerprint
from maskery.models.loading import load_tokenizer
from maskery.runs.frame.run_folder import fingerprint_of
from maskery.runs.text.config import SCRATCH, TextRunConfig
from maskery.runs.text.data import other_texts

log = logging.getLogger(__name__)

COUNTED_SHARDS = 4  # shards whose token frequencies a new head starts from


class ShardedText:
    """Training and held-out batches of shards; `cache_dir` keeps copies and tokenised text."""

    def __init__(self, config: TextRunConfig, cache_dir: Path, *, progress: bool = True) -> None:
        self.config, self.shares = config, config.shares or [1.0]
        self.sets = [TokenShards(open_place(name, cache_dir)) for name in config.corpus]
        self.shards = self.sets[0]
        for other in self.sets[1:]:
            self._require_same_tokenizer(other)
        self.tokenizer = self._tokenizer()
        self.added: AddedWords | None = None
        self.others = other_texts(config, self.tokenizer, cache_dir, progress=progress)
        self.held_out_store = self._held_out(cache_dir, progress)

    def described(self) -> dict[str, Any]:
        """Return what a continuation must share, by name."""
        manifest, streaming = self.shards.manifest, self.config.streaming
        own = self.config.deciding_data
        held_out = fingerprint_of(np.asarray(self.held_out_store.ids)) if own else None
        return {
            "corpus_fingerprint": "+".join(one.manifest.fingerprint for one in self.sets),
            "tokenizer_fingerprint": manifest.tokenizer_fingerprint,
            "eval_data_fingerprint": held_out,
            "held_out_tokens": streaming.held_out_tokens,
            "shuffle_shards": streaming.shuffle_shards,
        }

    def token_counts(self, vocab_size: int) -> Ints:
        """Return (vocab_size,) int64: counts in a few shards of each set, spread evenly."""
        counts = np.zeros(vocab_size, np.int64)
        for one in self.sets:
            entries = one.manifest.shards
            step = max(1, len(entries) // COUNTED_SHARDS)
            for entry in entries[::step][:COUNTED_SHARDS]:
                counts += one.open([entry]).token_counts(vocab_size)
        return counts

    def sources(self, batching: Batching) -> tuple[ShardSource | MixedShards, TextSource]:
        """Return training and held-out batches."""
        streaming = self.config.streaming
        documents = np.arange(self.held_out_store.num_documents)
        held_out = TextSource(self.held_out_store, documents, batching)
        # What was set aside when the shards were made is in none of them.
        own = [self.held_out_store] if self.config.deciding_data else []
        named = [store for store, _ in self.others.values()]
        outside = [np.asarray(store.ids) for store in (*own, *named)]
        settings: dict[str, Any] = {
            "shuffle_shards": streaming.shuffle_shards,
            "cache_shards": streaming.cache_shards,
            "exclude": np.concatenate(outside) if outside else None,
        }
        if not self.config.mix:
            return ShardSource(self.shards, batching, **settings), held_out
        train = MixedShards(self.sets, self.shares, batching, **settings)
        log.info("%s", train.describe([one.place.name for one in self.sets]))
        return train, held_out

    def describe(self) -> str:
        """Return how much there is, in words."""
        manifests = [one.manifest for one in self.sets]
        return (
            f"{counted(sum(len(one.shards) for one in manifests), 'shard')} with "
            f"{counted(sum(one.documents for one in manifests), 'training example')}, "
            f"{counted(sum(one.tokens for one in manifests), 'token')}; "
            f"{counted(self.held_out_store.num_documents, 'held-out example')}"
        )

    def _require_same_tokenizer(self, other: TokenShards, what: str = "") -> None:
        if other.manifest.tokenizer_fingerprint != self.shards.manifest.tokenizer_fingerprint:
            problem = f"the shards of {what}'{other.place.name}' were made with another tokenizer"
            than = f"than those of '{self.shards.place.name}'"
            raise DataError(f"{problem} {than}; make them again with the same --model")

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
            made = f"the tokenizer of '{manifest.tokenizer}'"
            problem = f"the shards of '{self.shards.place.name}' were made with {made}"
            fix = f"make shards with: maskery tokenize CORPUS OUT --model {config.model}"
            raise ModelError(f"{problem}, and that of --model {config.model} is another; {fix}")
        return tokenizer

    def _held_out(self, cache_dir: Path, progress: bool) -> Documents:
        texts, most = self.config.deciding_data, self.config.streaming.held_out_tokens
        if not texts:
            sets = zip(self.sets, self.shares, strict=True)
            parts = [one.held_out(round(share * most)) for one, share in sets]
            return Documents.gather((p.tokens, p.word_starts, p.lengths(), p.ids) for p in parts)
        if len(texts) == 1 and holds_shards(texts[0]):
            other = TokenShards(open_place(texts[0], cache_dir))
            self._require_same_tokenizer(other, "--eval-data ")
            entries = other.manifest.shards
            ends = np.cumsum([entry.tokens for entry in entries])
            return other.open(entries[: np.searchsorted(ends, most) + 1])
        corpus = Corpus.open(texts, self.config.reading)
        return tokenise(corpus, self.tokenizer, cache_dir, progress=progress)
