"""New words for a tokenizer.

A WordPiece vocabulary grows by the words themselves: they are looked up as any other, so tokenising
stays as fast as it was. Other tokenizers get added tokens, which are searched for in every text
before anything else; `benchmarks/add_words.py` measures what that costs.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from maskery.core.batch import vocabulary_size
from maskery.core.errors import DataError, ModelError
from maskery.data.corpus.sentences import Line, read_sentences

TOKENIZER = "tokenizer.json"
WORDPIECE = "WordPiece"


@dataclass(frozen=True, kw_only=True)
class AddedWords:
    """A tokenizer that has grown."""

    tokenizer: PreTrainedTokenizerBase  # a new one; the given one is as it was
    # By the id of each new word, the ids it was cut into before, unknown ones left out.
    pieces: dict[int, tuple[int, ...]]
    known: tuple[str, ...]  # words of the file that were single tokens already


def read_words(path: Path) -> list[Line]:
    """Read the words of a file, one a line.

    Raises:
        DataError: The file cannot be read, or a line has more than one word.
    """
    lines = list(read_sentences(path))
    for number, word in lines:
        if len(word.split()) > 1:
            raise DataError(
                f"{path}: line {number} is {word!r:.60}, and each line is one word; put the words "
                f"on lines of their own"
            )
    return lines


def add_words(
    tokenizer: PreTrainedTokenizerBase, lines: Sequence[Line], source: Path
) -> AddedWords:
    """Return a tokenizer that knows some words as single tokens.

    Those it has already, and repetitions, change nothing. `source` is the file, for messages.

    Raises:
        DataError: A word cannot be one token of this tokenizer.
        ModelError: The tokenizer is written in Python.
    """
    if not tokenizer.is_fast:
        raise ModelError(
            f"the tokenizer of '{tokenizer.name_or_path}' is written in Python, and words are "
            f"added to fast ones only; use a model with a tokenizer.json"
        )
    backend = tokenizer.backend_tokenizer
    described = json.loads(backend.to_str())
    grows = described["model"]["type"] == WORDPIECE
    pieces: dict[str, tuple[int, ...]] = {}
    known = []
    for line in lines:
        word = _as_one_word(line, backend, source) if grows else line.text
        ids = tokenizer(f" {word}", add_special_tokens=False)["input_ids"]
        if len(ids) == 1 and ids[0] != tokenizer.unk_token_id:
            known.append(line.text)
        elif word not in pieces:
            pieces[word] = tuple(i for i in ids if i != tokenizer.unk_token_id)
    grown = (
        grow_vocabulary(tokenizer, described, list(pieces), vocabulary_size(tokenizer))
        if grows
        else add_tokens(tokenizer, pieces)
    )
    added = {grown.convert_tokens_to_ids(word): parts for word, parts in pieces.items()}
    return AddedWords(tokenizer=grown, pieces=added, known=tuple(known))


def _as_one_word(line: Line, backend: Tokenizer, source: Path) -> str:
    """Normalise a word for the vocabulary; refuse one that is cut before it is looked up."""
    normal = (
        line.text if backend.normalizer is None else backend.normalizer.normalize_str(line.text)
    )
    normal = normal.strip()
    parts = [part for part, _ in backend.pre_tokenizer.pre_tokenize_str(normal)]
    if len(parts) != 1 or parts[0] != normal:
        raise DataError(
            f"{source}: line {line.number} is {line.text!r:.60}, which this tokenizer always cuts "
            f"into {' '.join(parts)!r:.80}; give the parts that are worth a token, or remove it"
        )
    return normal


def grow_vocabulary(
    tokenizer: PreTrainedTokenizerBase, described: dict[str, Any], words: list[str], first: int
) -> PreTrainedTokenizerBase:
    """Return a copy of the tokenizer with a longer WordPiece vocabulary."""
    described["model"]["vocab"] |= {word: index for index, word in enumerate(words, first)}
    return _copy(tokenizer, described)


def add_tokens(tokenizer: PreTrainedTokenizerBase, words: Iterable[str]) -> PreTrainedTokenizerBase:
    """Return a copy of the tokenizer with added tokens, which take the space before them."""
    grown = _copy(tokenizer)
    tokens = [AddedToken(word, single_word=True, lstrip=True, normalized=False) for word in words]
    grown.add_tokens(tokens)
    return grown


def _copy(
    tokenizer: PreTrainedTokenizerBase, described: dict[str, Any] | None = None
) -> PreTrainedTokenizerBase:
    """Save and open a tokenizer again, `described` as its `tokenizer.json` if that is given."""
    with tempfile.TemporaryDirectory(prefix="maskery-tokenizer-") as name:
        folder = Path(name)
        tokenizer.save_pretrained(folder)
        if described is not None:
            (folder / TOKENIZER).write_text(json.dumps(described), "utf-8")
            # Where a list of the vocabulary lies beside it, it may be read instead.
            (folder / "vocab.txt").unlink(missing_ok=True)
        grown: PreTrainedTokenizerBase
        grown = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    grown.name_or_path = tokenizer.name_or_path
    return grown
