"""Score texts by their pseudo-log-likelihood under a masked language model.

Each token is masked in turn; the sum of their log-probabilities is the score of Salazar, Liang,
Nguyen and Kirchhoff, "Masked language model scoring" (ACL 2020). In words of several pieces the
others give the masked one away, so Kauf and Ivanova, "A better way to do masked language model
scoring" (ACL 2023), also mask the pieces to the right within the word.

Shapes: L tokens of a text, M copies of texts in a batch, T tokens of a batch, V vocabulary.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch

from maskery.core.batch import Floats, MaskedTokens, vocabulary_size
from maskery.core.errors import DataError
from maskery.core.processes import inference
from maskery.evaluation.text.fill import Filler, by_length, end_to_end
from maskery.evaluation.text.masked import require_numbers, true_log_probabilities
from maskery.evaluation.text.opening import OpenModel
from maskery.evaluation.text.words_of_text import EncodedText

Method = Literal["original", "within-word"]
CHUNK = 1_000  # texts sorted by length together: they fill batches with copies of like length
LOGITS = 1 << 25  # in memory at once, whatever the vocabulary: 128 MB of float32


def score(
    model: str | Path | OpenModel,
    sentences: str | Iterable[str],
    *,
    method: Method = "within-word",
    batch_tokens: int = 4096,
) -> "list[TextScore]":
    """Score sentences, in their order, with a model: `score("runs/notes", ["A cat sleeps."])`.

    Args:
        model: A run folder, a model folder, a hub name, `minilm`, or an open model.
        method: "original" masks one token at a time, "within-word" also those after it in its word.
        batch_tokens: Tokens computed at once; the scores do not depend on it.

    Raises:
        DataError: A sentence has no words, or more tokens than the model has positions.
        ModelError: The model cannot be loaded, or predicts values that are not numbers.
    """
    texts = [sentences] if isinstance(sentences, str) else sentences
    scorer = Scorer(Filler.of(model), method=method, batch_tokens=batch_tokens)
    return list(scorer.score(texts))


@dataclass(frozen=True, kw_only=True)
class WordScore:
    """One word of a text."""

    word: str  # As it stands in the text
    start: int  # Its first character in the text
    end: int  # One past its last character
    log_probability: float  # The sum over its pieces, in nats; or that of the unknown token
    pieces: tuple[str, ...]  # Its tokens
    piece_log_probabilities: tuple[float, ...]  # The log-probability of each piece, in nats


@dataclass(frozen=True, kw_only=True)
class TextScore:
    """The pseudo-log-likelihood of a text."""

    text: str  # As given
    log_probability: float  # The sum over its tokens, in nats; special tokens do not count
    tokens: int  # Tokens that were scored
    words: tuple[WordScore, ...]  # The scores of its words

    @property
    def per_token(self) -> float:
        """Return the mean over tokens, in nats."""
        return self.log_probability / self.tokens


class Copy(NamedTuple):
    """A text of which one token is predicted."""

    text: int  # The index of the text
    position: int  # The token that is predicted
    end: int  # One past the last token that is masked, from this one on


class Scorer:
    """Scores texts with one model; the arguments are those of `score`."""

    def __init__(
        self, filler: Filler, *, method: Method = "within-word", batch_tokens: int = 4096
    ) -> None:
        self.filler, self.method, self.batch_tokens = filler, method, batch_tokens
        self.batch_copies = max(1, LOGITS // vocabulary_size(filler.tokenizer))

    def score(
        self, texts: Iterable[str], name: Callable[[int], str] = lambda index: f"text {index + 1}"
    ) -> Iterator[TextScore]:
        """Score any number of texts, in their order; `name` tells messages which text is meant."""
        remaining = enumerate(texts)
        while chunk := list(islice(remaining, CHUNK)):
            encoded = [self._encode(text, name(index)) for index, text in chunk]
            scores = [np.full(len(one.ids), np.nan) for one in encoded]
            copies = [copy for numbered in enumerate(encoded) for copy in self._copies(*numbered)]
            lengths = np.array([len(encoded[copy.text].ids) for copy in copies])
            # Copies of like length share a batch, so that next to nothing is padding.
            for chosen in by_length(lengths, self.batch_tokens, self.batch_copies):
                batch = [copies[place] for place in chosen.tolist()]
                values = self._log_probabilities(encoded, batch)
                for copy, value in zip(batch, values.tolist(), strict=True):
                    scores[copy.text][copy.position] = value
            for (_, text), one, values in zip(chunk, encoded, scores, strict=True):
                yield self._text_score(text, one, values)

    def _encode(self, text: str, name: str) -> EncodedText:
        encoded, what = self.filler.reader.read(text), f"{name} ({text!r:.60})"
        if not encoded.words:
            raise DataError(f"{what} has no words to score; give it some")
        self.filler.require_room(len(encoded.ids), what, "cut it into sentences")
        return encoded

    def _copies(self, text: int, encoded: EncodedText) -> Iterator[Copy]:
        for word in encoded.words:
            for position in range(word.first, word.last):
                end = word.last if self.method == "within-word" else position + 1
                yield Copy(text, position, end)

    @inference()
    def _log_probabilities(self, encoded: Sequence[EncodedText], copies: Sequence[Copy]) -> Floats:
        batch = end_to_end([encoded[copy.text].ids for copy in copies])
        ids, positions = batch.input_ids.copy(), np.zeros(len(copies), np.int64)
        for row, (start, copy) in enumerate(zip(batch.boundaries.tolist(), copies, strict=False)):
            positions[row] = start + copy.position
            ids[start + copy.position : start + copy.end] = self.filler.mask_id
        masked = replace(MaskedTokens.unmasked(batch, positions), input_ids=ids)
        logs = true_log_probabilities(self.filler.predict(masked), masked.targets)
        require_numbers(torch.from_numpy(logs))
        return logs

    def _text_score(self, text: str, encoded: EncodedText, values: Floats) -> TextScore:
        words = tuple(
            WordScore(
                word=word.text,
                start=word.start,
                end=word.end,
                log_probability=float(values[word.first : word.last].sum()),
                pieces=self.filler.reader.pieces(encoded.ids[word.first : word.last]),
                piece_log_probabilities=tuple(values[word.first : word.last].tolist()),
            )
            for word in encoded.words
        )
        total, tokens = sum(w.log_probability for w in words), sum(len(w.pieces) for w in words)
        return TextScore(text=text, log_probability=total, tokens=tokens, words=words)
