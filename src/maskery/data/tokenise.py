"""From a corpus to a token store, once for each (content, tokenizer)."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from maskery.core.batch import vocabulary_size
from maskery.core.errors import DataError
from maskery.data.store import FORMAT, TokenStore, TokenStoreWriter
from maskery.data.words import starts_word_table, word_starts

log = logging.getLogger(__name__)

BATCH_CHARS = 1_000_000
BATCH_TEXTS = 2_000


class Example(Protocol):
    """A document of a corpus."""

    @property
    def text(self) -> str:
        """Its text."""

    @property
    def id(self) -> int:
        """Its stable 64-bit id."""


class Examples(Protocol):
    """A corpus, as `tokenise` reads it."""

    @property
    def num_bytes(self) -> int | None:
        """Its size, if known, for the progress bar."""

    @property
    def bytes_read(self) -> int:
        """The part of its size that the current iteration has read."""

    def __iter__(self) -> Iterator[Any]:
        """Iterate over its examples, always in the same order."""

    def fingerprint(self) -> str:
        """A hash of its content."""


def default_cache_dir() -> Path:
    """Return `$MASKERY_CACHE`, or `maskery` in the user's cache folder."""
    chosen = os.environ.get("MASKERY_CACHE")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "maskery"


def tokenise(
    corpus: Examples,
    tokenizer: PreTrainedTokenizerBase,
    cache_dir: Path,
    *,
    progress: bool = True,
) -> TokenStore:
    """Return the token store of a corpus, made now or found from an earlier run.

    A store that turns out damaged is made again, with a warning.

    Raises:
        DataError: The corpus holds no tokens, or the store cannot be written.
    """
    backend = plain_backend(tokenizer)
    key = hashlib.blake2b(digest_size=16)
    key.update(f"{FORMAT}\0{corpus.fingerprint()}\0{tokenizer_fingerprint(tokenizer)}".encode())
    folder = cache_dir / "tokens" / key.hexdigest()
    if folder.exists():
        try:
            return TokenStore.open(folder)
        except DataError as error:
            log.warning("%s; tokenising again", error)
    vocab_size = vocabulary_size(tokenizer)
    about = {"tokenizer": tokenizer.name_or_path, "vocab_size": vocab_size}
    with TokenStoreWriter(folder, vocab_size=vocab_size, about=about) as writer:
        bar = tqdm(
            total=corpus.num_bytes,
            desc="tokenising",
            unit="B",
            unit_scale=True,
            leave=False,
            disable=not progress,
        )
        with bar:
            encode = encoder(tokenizer, backend)
            num_tokens = 0
            for texts, ids in batched(corpus):
                tokens, starts, lengths = encode(texts)
                kept = lengths > 0
                writer.append(tokens, starts, lengths[kept], np.array(ids, np.uint64)[kept])
                num_tokens += len(tokens)
                bar.update(corpus.bytes_read - bar.n)
        if num_tokens == 0:
            raise DataError(
                f"the corpus holds no tokens for the tokenizer of '{tokenizer.name_or_path}'; name "
                f"a corpus with text in a script that it knows"
            )
        writer.finish()
    return TokenStore.open(folder, verify=False)


def plain_backend(tokenizer: PreTrainedTokenizerBase) -> Tokenizer | None:
    """Return the Rust tokenizer without the truncation and padding saved with it."""
    if not tokenizer.is_fast:
        return None
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_truncation()
    backend.no_padding()
    return backend


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash everything that decides which tokens a text becomes."""
    backend = plain_backend(tokenizer)
    if backend is not None:
        described = backend.to_str()
    else:
        settings = {k: v for k, v in tokenizer.init_kwargs.items() if k != "name_or_path"}
        described = repr(
            (
                type(tokenizer).__name__,
                sorted(tokenizer.get_vocab().items()),
                sorted((name, repr(value)) for name, value in settings.items()),
            )
        )
    return hashlib.blake2b(described.encode("utf-8"), digest_size=16).hexdigest()


Encoded = tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_], npt.NDArray[np.int64]]


def encoder(
    tokenizer: PreTrainedTokenizerBase, backend: Tokenizer | None
) -> Callable[[list[str]], Encoded]:
    """Return a function from texts to (ids (t,), word starts (t,), lengths (n,))."""
    if backend is None:
        # Tokenizers in Python know no word ids; each token counts as a word.
        def encode_slowly(texts: list[str]) -> Encoded:
            rows = tokenizer(texts, add_special_tokens=False)["input_ids"]
            ids = np.fromiter(chain.from_iterable(rows), np.int64)
            return ids, np.ones(len(ids), np.bool_), np.array([len(r) for r in rows], np.int64)

        return encode_slowly
    always = starts_word_table(backend)

    def encode(texts: list[str]) -> Encoded:
        encodings = backend.encode_batch(texts, add_special_tokens=False)
        rows = [np.array(encoding.ids, np.int64) for encoding in encodings]
        starts = [word_starts(e, row, always) for e, row in zip(encodings, rows, strict=True)]
        lengths = np.array([len(row) for row in rows], np.int64)
        if not rows:
            return np.zeros(0, np.int64), np.zeros(0, np.bool_), lengths
        return np.concatenate(rows), np.concatenate(starts), lengths

    return encode


def encode_texts(texts: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> Encoded:
    """Tokenise a few texts as a store would: (ids, word starts, lengths)."""
    return encoder(tokenizer, plain_backend(tokenizer))(list(texts))


def batched(
    corpus: Examples, max_chars: int = BATCH_CHARS
) -> Iterator[tuple[list[str], list[int]]]:
    """Yield examples in batches of about `max_chars` characters."""
    texts: list[str] = []
    ids: list[int] = []
    chars = 0
    for example in corpus:
        texts.append(example.text)
        ids.append(example.id)
        chars += len(example.text)
        if chars >= max_chars or len(texts) >= BATCH_TEXTS:
            yield texts, ids
            texts, ids, chars = [], [], 0
    if texts:
        yield texts, ids
