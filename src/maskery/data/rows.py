"""Tokenised rows, as datasets and data collators hold them, as flat batches and as a source.

A row is a mapping with `input_ids` (special tokens included) and, where known, `example_id` and
`word_starts`; its ids may be a list, a NumPy array or a tensor.

Shapes: B rows, T tokens of all rows together.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedTokenizerBase

from maskery.core.batch import Bools, Ids, Ints, TokenBatch
from maskery.core.errors import DataError, explained
from maskery.data import tokenise
from maskery.data.batching import Batching, Layout, Template, TextSource, assemble
from maskery.data.corpus.examples import GOLDEN_GAMMA, mix
from maskery.data.store import Documents

Row = Mapping[str, Any]
# The errors of lists, NumPy and PyTorch for values of another kind or shape.
UNREADABLE = (TypeError, ValueError, RuntimeError)
# The class of a character that goes with any other.
ANY = -1
# How tokenizers in Python mark their pieces, and how far on in the text the next one is looked for:
# beyond an unknown word, and not in another sentence.
MARKS, REACH = re.compile("^(?:##|▁)|(?:@@|</w>)$"), 40


def tokenise_rows(
    texts: Iterable[str], tokenizer: PreTrainedTokenizerBase, *, max_length: int
) -> list[dict[str, Any]]:
    """Tokenise texts into rows with word starts, for a dataset that fits into memory.

    Texts of more than `max_length` tokens, special ones included, are cut into several rows, so no
    token is lost; empty texts give none.
    """
    template = Template.of(tokenizer)
    added = template.num_special
    if (room := max_length - added) < 1:
        problem = f"max_length is {max_length}, which leaves no room beside {added} special tokens"
        raise DataError(f"{problem}; raise it")
    ids, starts, lengths = tokenise.encode_texts(texts, tokenizer)
    firsts = np.concatenate(([0], np.cumsum(lengths)))
    cuts = (np.arange(a, b, room) for a, b in pairwise(firsts))
    begins = np.concatenate([np.zeros(0, np.int64), *cuts])
    ends = np.minimum(begins + room, firsts[np.searchsorted(firsts, begins, side="right")])
    none = np.zeros(len(begins), np.int64)
    batch = assemble(ids, starts, begins, ends - begins, none.astype(np.uint64), none, template)
    return [
        {"input_ids": batch.input_ids[a:b], "word_starts": batch.word_starts[a:b]}
        for a, b in pairwise(batch.boundaries)
    ]


def flatten(rows: Sequence[Row]) -> TokenBatch:
    """Lay rows end to end.

    A row without `example_id` is named by a hash of its tokens; one without `word_starts` has every
    token for a word of its own. Rows without `input_ids`, or with columns that disagree in length,
    are a DataError.
    """
    if not rows:
        raise DataError("a batch has no rows; give the collator at least one")
    if not all(isinstance(row, Mapping) and "input_ids" in row for row in rows):
        raise DataError("a row has no 'input_ids': tokenise the texts first")
    for row in rows:
        if odd := sorted(row.keys() ^ rows[0].keys()):
            raise DataError(f"a row has no '{odd[0]}', and another has: give it to all or to none")
    columns = [row["input_ids"] for row in rows]
    fix = "give one number for each token, as a tokenizer does without return_tensors"
    with explained("the input_ids of a row are no list of ids", fix, *UNREADABLE):
        bounds = np.cumsum([0, *map(len, columns)], dtype=np.int64)
        ids = flat_column(columns, np.int64)
        if ids.shape != (bounds[-1],):
            raise ValueError(f"they have {columns[0].ndim} dimensions")
    words = np.ones(len(ids), np.bool_)
    if "word_starts" in rows[0]:
        given = [row["word_starts"] for row in rows]
        with explained("the word_starts of a row are no list", "give one for each id", *UNREADABLE):
            if [*map(len, given)] != [*map(len, columns)]:
                raise DataError("input_ids and word_starts of a row must agree in length")
        words = flat_column(given, np.bool_)
    if "example_id" in rows[0]:
        # Negative ids, as of datasets of int64, are those of the same bits.
        given = [row["example_id"] for row in rows]
        with explained("an example_id is no whole number", "number the rows", *UNREADABLE):
            whole = [*map(int, given)]  # of tables with gaps as 5.0, of text files as "5"
            if any(a != b for a, b in zip(whole, given, strict=True) if not isinstance(b, str)):
                raise ValueError("it has a fraction")
        names = np.array([number & (1 << 64) - 1 for number in whole], np.uint64)
    else:
        names = hash_rows(ids, bounds)
    starts = np.zeros(len(rows), np.int64)
    return TokenBatch(
        input_ids=ids, boundaries=bounds, example_ids=names, starts=starts, word_starts=words
    )


def flat_column(columns: Sequence[Any], dtype: Any) -> npt.NDArray[Any]:
    """Copy lists, arrays or tensors end to end."""
    if isinstance(columns[0], np.ndarray):
        return np.concatenate(columns).astype(dtype, copy=False)
    if isinstance(columns[0], torch.Tensor):
        return torch.cat(list(columns)).numpy().astype(dtype, copy=False)
    return np.fromiter(chain.from_iterable(columns), dtype)


def hash_rows(input_ids: Ints, boundaries: Ints) -> Ids:
    """Hash each row's tokens and their order: (B,) uint64, equal on any machine."""
    lengths = np.diff(boundaries)
    within = np.arange(len(input_ids)) - np.repeat(boundaries[:-1], lengths)
    named = (within.astype(np.uint64) << np.uint64(32)) + input_ids.astype(np.uint64)
    # SplitMix64's outputs of these numbers, of seed 0, so that neighbours share no bits.
    gamma = np.uint64(GOLDEN_GAMMA)
    # Sums that wrap around; so does the difference of two of them.
    before = np.append(np.uint64(0), np.cumsum(mix(named * gamma)))[boundaries]
    return mix((np.diff(before) + lengths.astype(np.uint64)) * gamma)


class RowSource(TextSource):
    """The batches of a run over rows in memory, special tokens included, without empty ones."""

    def __init__(
        self,
        rows: Sequence[Row],
        *,
        batch_tokens: int,
        micro_tokens: int | None = None,
        layout: Layout = "packed",
        seed: int = 0,
    ) -> None:
        flat = flatten(rows)
        batching = Batching(
            template=Template(prefix=(), suffix=()),
            max_length=max(1, int(flat.lengths.max())),  # so that each row is one window
            batch_tokens=batch_tokens,
            micro_tokens=micro_tokens,
            layout=layout,
            seed=seed,
        )
        held = Documents(flat.input_ids, flat.word_starts, flat.boundaries, flat.example_ids)
        super().__init__(held, np.arange(len(rows)), batching)


class PieceWords:
    """Finds the words of token ids from the tokenizer's pieces, where the text is gone.

    WordPiece marks pieces that go on (`##ing`), Metaspace and byte-level tokenizers pieces that
    begin (`▁the`, `Ġthe`), others the end (`the</w>`). Byte-level tokenizers also cut between
    letters, digits and other characters, as GPT-2 does. Where nothing is marked, each token is a
    word, and special tokens always are.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, special_ids: Sequence[int]) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        vocabulary = tokenizer.get_vocab()
        size = max(vocabulary.values(), default=-1) + 1
        by_id = {index: token for token, index in vocabulary.items()}
        pieces = [by_id.get(index, "") for index in range(size)]
        self.space = ""  # how a tokenizer in Python writes the space before a word
        self._begins, self._ends = np.zeros(size, np.bool_), np.zeros(size, np.bool_)
        # By class of character; the same on both sides cuts nowhere.
        self._first, self._last = np.zeros(size, np.int8), np.zeros(size, np.int8)
        prefix, suffix, goes_on, byte_level = "", "", "", False
        if backend is None:  # a tokenizer in Python: BERT's, fairseq's or XLM's marks, if any
            many = size // 20  # any vocabulary may have a token of such signs
            prefix = "##" if sum(token.startswith("##") for token in vocabulary) > many else ""
            goes_on = "@@" if sum(token.endswith("@@") for token in vocabulary) > many else ""
            suffix = "</w>" if sum(token.endswith("</w>") for token in vocabulary) > many else ""
        else:
            prefix = getattr(backend.model, "continuing_subword_prefix", "")
            suffix = getattr(backend.model, "end_of_word_suffix", "")
            byte_level = tokenise.is_byte_level(backend)
        marker = tokenise.BYTE_LEVEL_SPACE if byte_level else tokenise.METASPACE
        if prefix and any(token.startswith(prefix) for token in vocabulary):
            both = ((piece, piece.removeprefix(prefix)) for piece in pieces)
            starts = [rest == one or tokenise.begins_unspaced(rest) for one, rest in both]
            self._begins = np.array(starts)
        elif goes_on:
            self._ends = np.array([not piece.endswith(goes_on) for piece in pieces])
        elif suffix:
            self._ends = np.array([piece.endswith(suffix) for piece in pieces])
        elif any(token.startswith(marker) for token in vocabulary):
            self.space = marker if backend is None else ""
            self._begins = tokenise.starts_word_table(vocabulary, byte_level)
            if byte_level:
                # A lone marker is the start of a word that whatever follows goes on with.
                rests = [piece.removeprefix(marker) for piece in pieces]
                self._last = np.array([_kind(rest[-1:]) for rest in rests], np.int8)
                self._first = np.array([_kind(rest[:1]) for rest in rests], np.int8)
        else:
            self._begins[:] = True
        own = [index for index in special_ids if index < size]
        self._begins[own] = self._ends[own] = True

    def __call__(self, ids: Ints) -> Bools:
        """Return the first token of each word, (T,) bool; the first of a row is always one."""
        starts = self._begins[ids]
        before, after = self._last[ids[:-1]], self._first[ids[1:]]
        starts[1:] |= self._ends[ids[:-1]] | ((before != after) & (before != ANY))
        starts[:1] = True
        return starts


def _kind(character: str) -> int:
    """Return the class of a byte-level character: 0 letter, 1 digit, 2 other, 3 white space."""
    if not character:
        return ANY
    if 0x100 <= ord(character) <= 0x120:  # the stand-ins of bytes up to the space
        return 3
    if not character.isascii() or character.isalpha():
        return 0  # bytes of other scripts are letters, for most
    return 1 if character.isdigit() else 2


class PythonReader:
    """Cut texts with a tokenizer in Python, which marks its pieces and tells no places."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, keep: str = "") -> None:
        self.tokenizer, self.keep = tokenizer, keep  # keep: as in `plain_backend`
        self.words = PieceWords(tokenizer, tokenizer.all_special_ids)

    def __call__(self, text: str) -> tuple[Ints, Bools, list[tuple[int, int]]]:
        """Return ids (t,), word starts (t,) and character offsets, without special tokens."""
        ids: list[int] = []
        for part in re.split(f"({re.escape(self.keep)})", text) if self.keep else [text]:
            plain = {"split_special_tokens": part != self.keep or not part}
            ids += self.tokenizer(part, add_special_tokens=False, **plain)["input_ids"]
        row = np.array(ids, np.int64)
        offsets = places_of(self.tokenizer.convert_ids_to_tokens(ids), text)
        return row, tokenise.unspaced_starts(self.words(row), offsets, text), offsets


def places_of(pieces: Iterable[str], text: str) -> list[tuple[int, int]]:
    """Return where pieces start and end in a text, in order; what is not found is empty."""
    fold = str.lower if len(text.lower()) == len(text) else str  # İ becomes two characters
    text, at, found = fold(text), 0, []
    for piece in pieces:
        bare = fold(MARKS.sub("", piece))
        start = text.find(bare, at, at + len(bare) + REACH) if bare else -1
        found.append((at, at) if start < 0 else (start, at := start + len(bare)))
    return found
