"""New words for a tokenizer, in the model itself: tokens of texts without them stay as they were.

WordPiece looks whole words up before their pieces, and so does BPE when told to (`ignore_merges`).
Of a Unigram model, a new word is likelier than its pieces. Nothing is searched for in every text,
and a word is written as the vocabulary writes words, with the space before it.
"""

import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from maskery.core.batch import vocabulary_size
from maskery.core.errors import DataError, ModelError
from maskery.data.corpus.sentences import Line, read_sentences


@dataclass(frozen=True, kw_only=True)
class AddedWords:
    """A tokenizer that has grown."""

    tokenizer: PreTrainedTokenizerBase  # a new one; the given one is as it was
    # By the id of each new word, the ids it was cut into before, unknown ones left out.
    pieces: dict[int, tuple[int, ...]]
    known: tuple[str, ...]  # words of the file that were single tokens already


def read_words(path: str | Path, tokenizer: PreTrainedTokenizerBase | None = None) -> list[Line]:
    """Read the words of a file, one a line, for a tokenizer if it is given."""
    lines = list(read_sentences(path))
    _refuse(lines, None if tokenizer is None else tokenizer.backend_tokenizer, path)
    return lines


def add_words(
    tokenizer: PreTrainedTokenizerBase, lines: Sequence[Line], source: str | Path
) -> AddedWords:
    """Return a tokenizer that knows some words as single tokens; `source` is their file.

    Those it has already, and repetitions, change nothing. A longer word that begins with a new one
    may be cut after it by WordPiece and Unigram.
    """
    require_growing(tokenizer)
    backend = tokenizer.backend_tokenizer
    _refuse(lines, backend, source)
    pieces: dict[str, tuple[int, ...]] = {}
    known = []
    for line in lines:
        (word,) = _parts(line.text, backend)
        ids = tokenizer(f" {line.text}", add_special_tokens=False)["input_ids"]
        if len(ids) == 1 and ids[0] != tokenizer.unk_token_id:
            known.append(line.text)
        elif word not in pieces:
            pieces[word] = tuple(i for i in ids if i != tokenizer.unk_token_id)
    first = vocabulary_size(tokenizer)
    grown = _copy(tokenizer, grow(json.loads(backend.to_str()), pieces, first))
    added = dict(enumerate(pieces.values(), first))
    return AddedWords(tokenizer=grown, pieces=added, known=tuple(known))


def require_growing(tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer that words cannot be added to."""
    if not tokenizer.is_fast:
        problem = "is written in Python, and words are added to fast ones only"
        fix = "use a model with a tokenizer.json"
    elif getattr(tokenizer.backend_tokenizer.model, "end_of_word_suffix", None):
        problem = "marks the ends of words, and a new one would change how others are cut"
        fix = "use a model with another tokenizer"
    else:
        return
    raise ModelError(f"the tokenizer of '{tokenizer.name_or_path}' {problem}; {fix}")


def _refuse(lines: Sequence[Line], backend: Tokenizer | None, source: str | Path) -> None:
    """Refuse a list with lines that cannot be one token, and name them all."""
    if faults := [*filter(None, (_fault(line, backend) for line in lines))]:
        raise DataError(f"{source}: {'; '.join(faults)}")


def _fault(line: Line, backend: Tokenizer | None) -> str:
    """Say why a line cannot be one token; "" if it can."""
    told = f"line {line.number} is {line.text!r:.60}"
    if len(line.text.split()) > 1:
        return f"{told}, and each line is one word; put the words on lines of their own"
    if backend is None or len(parts := _parts(line.text, backend)) == 1:
        return ""
    fix = "give the parts that are worth a token, or remove it"
    return f"{told}, which this tokenizer always cuts into {' '.join(parts)!r:.80}; {fix}"


def _parts(word: str, backend: Tokenizer) -> list[str]:
    """Cut a word that follows a space as the tokenizer does before its model looks it up."""
    text = f" {word}"
    if backend.normalizer is not None:
        text = backend.normalizer.normalize_str(text)
    if backend.pre_tokenizer is None:
        return [text]
    return [part for part, _ in backend.pre_tokenizer.pre_tokenize_str(text)]


def grow(content: dict[str, Any], words: Mapping[str, Sequence[int]], first: int) -> dict[str, Any]:
    """Return a `tokenizer.json` with words, by their pieces, in its model; ids go from `first`."""
    model = content["model"]
    added = {token["id"]: token["content"] for token in content["added_tokens"]}
    if isinstance(model["vocab"], dict):
        # Added tokens are named, too, or they would get the ids after the longer vocabulary.
        model["vocab"] |= {token: index for index, token in added.items()}
        model["vocab"] |= {word: index for index, word in enumerate(words, first)}
    else:
        # A Unigram model has pieces with scores, and an id is a place in the list.
        vocab = model["vocab"]
        rarest = min(score for _, score in vocab)
        # Added tokens are found before the model sees a text, so their pieces are not looked up.
        between = (added.get(index, f"\0{index}") for index in range(len(vocab), first))
        vocab += [[token, 2 * rarest] for token in between]
        for word, pieces in words.items():
            # As likely as the rarest piece, unless its own pieces together are likelier.
            likeliest = sum(vocab[piece][1] for piece in pieces) if pieces else rarest
            vocab.append([word, max(rarest, likeliest + 0.1)])
    if model["type"] == "BPE":
        model["ignore_merges"] = True
        before = content["pre_tokenizer"]
        # Metaspace leaves a comma with the word before it until the model cuts them, so new words
        # are set apart from the signs after them.
        if words and "Metaspace" in json.dumps(before):
            pattern = f"(?:{'|'.join(map(re.escape, words))})(?!\\w)"
            split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated"}
            parts = [before, {**split, "invert": False}]
            content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": parts}
    return content


def _copy(tokenizer: PreTrainedTokenizerBase, content: dict[str, Any]) -> PreTrainedTokenizerBase:
    """Save and open a tokenizer again, with `content` as its `tokenizer.json`."""
    with tempfile.TemporaryDirectory(prefix="maskery-tokenizer-") as name:
        folder = Path(name)
        tokenizer.save_pretrained(folder)
        (folder / "tokenizer.json").write_text(json.dumps(content), "utf-8")
        # Where a list of the vocabulary lies beside it, it may be read instead.
        (folder / "vocab.txt").unlink(missing_ok=True)
        grown = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    grown.name_or_path = tokenizer.name_or_path
    return grown
