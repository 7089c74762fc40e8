"""From a corpus to a token store, once for each (content, tokenizer); where words begin.

Words of scripts that write no spaces between them, such as Thai, Burmese and Chinese, are cut by
ICU's dictionaries (`pip install 'maskery[words]'`); without them each piece of the tokenizer is a
word of its own.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers import Encoding, Tokenizer

from maskery.core.bars import byte_bar
from maskery.core.batch import Bools, Ints, vocabulary_size
from maskery.core.errors import DataError
from maskery.core.ranges import local_path
from maskery.data.store import FORMAT, Part, TokenStore, own_folder, write_store

if TYPE_CHECKING:  # processes that make shards import this, and no Transformers
    from transformers import PreTrainedTokenizerBase

    from maskery.data.corpus.reader import Corpus

log = logging.getLogger(__name__)

# Enough to keep the tokenizer's threads busy, and little beside the memory of a run.
BATCH_CHARS = 1_000_000
BATCH_TEXTS = 2_000
# A long German word has 15 pieces; of what has more, as a line of DNA, each piece is masked alone.
MOST_PIECES = 48
# Where a text is a single word, fewer: it may be a word like others, or a sequence.
MOST_OF_A_TEXT = 8
# The lead bytes of the CJK ideographs U+4000 to U+9FFF in UTF-8.
CJK_LEAD_BYTES = range(0xE4, 0xEA)
# How a space before a word is written by Metaspace and by byte-level tokenizers.
METASPACE, BYTE_LEVEL_SPACE = "▁", "Ġ"
# Tokens added for other ends, such as `[URL]`, are there to be written in texts.
CONTROL_ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
# No text has it: a file with NUL bytes is refused as binary.
TYPED = "\0"
# First and last code points, ascending.
UNSPACED = (
    *((0x0E01, 0x0E7F), (0x0E81, 0x0EFF)),  # Thai, Lao
    *((0x0F00, 0x0FFF), (0x1000, 0x109F)),  # Tibetan, Burmese
    *((0x1780, 0x17FF), (0x1950, 0x19DF)),  # Khmer, Tai Le, New Tai Lue
    *((0x1A20, 0x1AAF), (0x1B00, 0x1B7F)),  # Tai Tham, Balinese
    *((0x3005, 0x3007), (0x3031, 0x3035)),  # marks of repetition, and zero
    *((0x3041, 0x30FF), (0x31F0, 0x31FF)),  # kana
    *((0x3400, 0x4DBF), (0x4E00, 0x9FFF)),  # ideographs
    *((0xA980, 0xA9FF), (0xAA60, 0xAADF)),  # Javanese, Burmese, Tai Viet
    *((0xF900, 0xFAFF), (0xFF66, 0xFF9F)),  # ideographs, half-width kana
    (0x20000, 0x3FFFF),
)
_BOUNDS = np.array([edge for first, last in UNSPACED for edge in (first, last + 1)], np.uint32)

Encoded = tuple[Ints, Bools, Ints]
Encode = Callable[[list[str]], Encoded]
Batch = tuple[list[str], list[int]]


def default_cache_dir() -> Path:
    """Return `$MASKERY_CACHE`, or `maskery` in the user's cache folder."""
    if chosen := os.environ.get("MASKERY_CACHE"):
        return local_path(chosen, "MASKERY_CACHE")
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "maskery"


def tokenise(
    corpus: Corpus, tokenizer: PreTrainedTokenizerBase, cache_dir: Path, *, progress: bool = True
) -> TokenStore:
    """Return the token store of a corpus, made now or found from an earlier run."""
    decisive = (corpus.fingerprint(), tokenizer_fingerprint(tokenizer), word_rules())
    key = hashlib.blake2b("\0".join((str(FORMAT), *decisive)).encode(), digest_size=16)
    folder = own_folder(cache_dir, "tokens") / key.hexdigest()
    vocab_size = vocabulary_size(tokenizer)
    if folder.exists():
        try:
            return TokenStore.open(folder, vocab_size=vocab_size)
        except DataError as error:
            log.warning("%s; tokenising again", error)
    about = {"tokenizer": tokenizer.name_or_path, "vocab_size": vocab_size}

    def parts() -> Iterator[Part]:
        num_tokens = 0
        with byte_bar(corpus.num_bytes, "tokenising", progress) as bar:
            for part in encode_batches(batched(corpus), encoder(tokenizer)):
                num_tokens += len(part[0])
                yield part
                bar.update(corpus.bytes_read - bar.n)
        if num_tokens == 0:
            problem = f"holds no tokens for the tokenizer of '{tokenizer.name_or_path}'"
            fix = "name a corpus with text in a script that it knows"
            raise DataError(f"the corpus {problem}; {fix}")

    write_store(folder, parts(), vocab_size=vocab_size, about=about)
    if unusual := corpus.report.describe():
        log.warning("%s", unusual)
    # It was written just now; reading all of it once more would tell nothing.
    return TokenStore.open(folder, verify=False)


def plain_backend(tokenizer: PreTrainedTokenizerBase, *, keep: str = "") -> Tokenizer | None:
    """Return the Rust tokenizer as texts are read: nothing is cut off, padded or a control token.

    `keep` is the one control token that is recognised where a text has it.
    """
    if not tokenizer.is_fast:
        return None
    # Control tokens are renamed and not removed, so every id stays; a Unigram model would find them
    # among its pieces even where the `tokenizers` library is told to split them.
    described: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    control = {getattr(tokenizer, f"{role}_token") for role in CONTROL_ROLES} - {None, keep}

    def renamed(token: str) -> str:
        return TYPED + token if token in control else token

    model = described["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {renamed(token): index for token, index in model["vocab"].items()}
    else:
        model["vocab"] = [[renamed(token), score] for token, score in model["vocab"]]
    if model.get("unk_token"):
        model["unk_token"] = renamed(model["unk_token"])
    for token in described["added_tokens"]:
        token["content"] = renamed(token["content"])
    # The post-processor names them, and puts them around texts only.
    described |= {"post_processor": None, "truncation": None, "padding": None}
    return Tokenizer.from_str(json.dumps(described))


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash everything that decides which tokens a text becomes."""
    if tokenizer.is_fast:
        backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        backend.no_truncation()
        backend.no_padding()
        described = backend.to_str()
    else:
        settings = {k: repr(v) for k, v in tokenizer.init_kwargs.items() if k != "name_or_path"}
        tables = sorted(tokenizer.get_vocab().items()), sorted(settings.items())
        described = repr((type(tokenizer).__name__, *tables))
    return hashlib.blake2b(described.encode("utf-8"), digest_size=16).hexdigest()


def encoder(tokenizer: Tokenizer | PreTrainedTokenizerBase) -> Encode:
    """Return a function from texts to (ids (t,), word starts (t,), lengths (n,))."""
    # In Rust, it is from `plain_backend` already.
    backend = tokenizer if isinstance(tokenizer, Tokenizer) else plain_backend(tokenizer)
    if backend is None:
        from maskery.data.rows import PythonReader

        read = PythonReader(tokenizer)
    else:
        always = starts_word_table(backend.get_vocab(), is_byte_level(backend))

    def rows_of(texts: list[str]) -> Iterator[tuple[Ints, Bools]]:
        if backend is None:
            yield from (read(text)[:2] for text in texts)
            return
        encodings = backend.encode_batch(texts, add_special_tokens=False)
        for encoding, text in zip(encodings, texts, strict=True):
            row = np.array(encoding.ids, np.int64)
            yield row, word_starts(encoding, row, always, text)

    def encode(texts: list[str]) -> Encoded:
        # Of no texts, there are empty arrays.
        ids, starts = [np.zeros(0, np.int64)], [np.zeros(0, np.bool_)]
        for row, first in rows_of(texts):
            ids.append(row)
            starts.append(break_long_words(first))
        lengths = np.array([len(row) for row in ids[1:]], np.int64)
        return np.concatenate(ids), np.concatenate(starts), lengths

    return encode


def encode_texts(texts: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> Encoded:
    """Tokenise a few texts as a store would: (ids, word starts, lengths)."""
    return encoder(tokenizer)(list(texts))


def batched(examples: Iterable[Any], max_chars: int = BATCH_CHARS) -> Iterator[Batch]:
    """Yield the texts and ids of examples in batches of about `max_chars` characters."""
    texts, ids, chars = list[str](), list[int](), 0
    for example in examples:
        texts.append(example.text)
        ids.append(example.id)
        chars += len(example.text)
        if chars >= max_chars or len(texts) >= BATCH_TEXTS:
            yield texts, ids
            texts, ids, chars = [], [], 0
    if texts:
        yield texts, ids


def encode_batches(batches: Iterable[Batch], encode: Encode) -> Iterator[Part]:
    """Tokenise batches; examples of which the tokenizer keeps nothing are left out."""
    for texts, ids in batches:
        tokens, starts, lengths = encode(texts)
        kept = lengths > 0
        yield tokens, starts, lengths[kept], np.array(ids, np.uint64)[kept]


def byte_level_alphabet() -> dict[str, int]:
    """Return byte-level BPE's printable stand-in for each byte (GPT-2's table)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(256) if byte not in printable)
    return table | {chr(256 + n): byte for n, byte in enumerate(others)}


def is_byte_level(backend: Tokenizer) -> bool:
    """Return True if the tokenizer's pieces are bytes in GPT-2's printable stand-ins."""
    return "ByteLevel" in str(backend.pre_tokenizer) + str(backend.decoder)


def starts_word_table(vocabulary: Mapping[str, int], byte_level: bool) -> Bools:
    """Mark the tokens that start a word whatever stands before them: (V,) bool."""
    # Word ids alone take a Chinese sentence for one word in Metaspace and byte-level tokenizers,
    # which split at spaces only, and any text where nothing is split before the model. So a piece
    # of a script without spaces starts a word, as in Chinese BERT, and so does a space marker.
    table = np.zeros(max(vocabulary.values(), default=-1) + 1, np.bool_)
    alphabet = byte_level_alphabet() if byte_level else {}
    # Elsewhere Ġ is a letter (of Maltese).
    marker = BYTE_LEVEL_SPACE if byte_level else METASPACE
    for token, index in vocabulary.items():
        text = token.lstrip(marker)
        ideograph = byte_level and alphabet.get(text[:1], 0) in CJK_LEAD_BYTES
        if byte_level:
            text = bytes(alphabet.get(c, 0) for c in text[:4]).decode("utf-8", "ignore")
        table[index] = token.startswith(marker) or ideograph or begins_unspaced(text)
    return table


def word_starts(encoding: Encoding, ids: Ints, always: Bools, text: str) -> Bools:
    """Mark the first token of each word of a text, encoded without special tokens: (t,) bool.

    `ids` are its token ids, and `always` is from `starts_word_table`.
    """
    words = np.array([-1 if word is None else word for word in encoding.word_ids], np.int64)
    starts = np.ones(len(ids), np.bool_)
    # A lone marker ("▁" before a piece of its own) is the start; what follows continues it.
    starts[1:] = (words[1:] != words[:-1]) | always[ids[1:]]
    return unspaced_starts(starts, encoding.offsets, text)


def unspaced_starts(starts: Bools, offsets: Sequence[tuple[int, int]], text: str) -> Bools:
    """Return word starts (t,) with those of scripts without spaces."""
    inside = is_unspaced(text)
    if len(starts) and inside.any():
        # The first character of each token, past the space that it counts to itself.
        kept = ((start, end, len(text[start:end].lstrip())) for start, end in offsets)
        # Of a space alone nothing is left: then the space itself.
        places = [end - rest if rest else start for start, end, rest in kept]
        first = np.array(places, np.int64).clip(max=len(text) - 1)
        unspaced, numbers = inside[first], word_numbers(text, inside)[first]
        both = unspaced[1:] & unspaced[:-1]
        crossed = unspaced[1:] != unspaced[:-1]
        starts[1:] = np.where(both, numbers[1:] != numbers[:-1], starts[1:] | crossed)
    return starts


def break_long_words(starts: Bools) -> Bools:
    """Make each token a word of words that are too long, above all where a text is one of them."""
    # Else a row would be masked whole, with nothing left to learn it from.
    places = np.flatnonzero(starts)
    sizes = np.diff(places, append=len(starts))
    long = sizes > (MOST_OF_A_TEXT if len(places) == 1 else MOST_PIECES)
    return starts | np.repeat(long, sizes) if long.any() else starts


@cache
def segmenter() -> Callable[[str], list[str]] | None:
    """Return ICU's function from text to its words; None, with a line that says so, without it."""
    try:
        from icu4py.breakers import WordBreaker
    except ImportError:
        told = "the text holds scripts without spaces, in which each token counts as a word"
        log.warning("%s; for their words: pip install 'maskery[words]'", told)
        return None
    # The dictionaries are the same in every locale.
    return lambda text: [str(word) for word in WordBreaker(text, "en")]


def is_unspaced(text: str) -> Bools:
    """Mark the characters of these scripts: (n,) bool."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    inside: Bools = np.searchsorted(_BOUNDS, codes, side="right") % 2 == 1
    return inside


def begins_unspaced(piece: str) -> bool:
    """Return True if a piece begins with a character of these scripts."""
    return piece[:1] >= chr(UNSPACED[0][0]) and bool(is_unspaced(piece[:1])[0])


def word_rules() -> str:
    """Return what decides where words begin, for the names of what is kept on disk."""
    try:
        return f"words by icu4py {version('icu4py')}"
    except PackageNotFoundError:
        return "words by pieces"


def word_numbers(text: str, inside: Bools) -> Ints:
    """Number the words of the marked characters in order: (n,) int64; others have no meaning."""
    cut = segmenter()
    numbers = np.arange(len(text))
    if cut is None:
        return numbers
    edges = np.flatnonzero(np.diff(inside, prepend=False, append=False)).tolist()
    for first, last in zip(edges[::2], edges[1::2], strict=True):
        start = first
        for word in cut(text[first:last]):
            numbers[start : start + len(word)] = start
            start += len(word)
    return numbers
