"""`maskery score`."""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from maskery.cli.main import Command, table
from maskery.core.errors import ConfigError
from maskery.core.ranges import Range, check_ranges
from maskery.core.system import quick_imports

if TYPE_CHECKING:
    from maskery.evaluation.text.pseudo_likelihood import Scorer, TextScore
    from maskery.evaluation.text.words_of_text import TextReader

log = logging.getLogger(__name__)

PAIR_COLUMNS = ("line", "likelier", "difference", "first", "second")
TEXT_COLUMNS = ("line", "log_probability", "tokens", "per_token", "text")
WORD_COLUMNS = ("line", "word", "log_probability", "pieces")
TEXT_WIDTH = 60


@dataclass(frozen=True, kw_only=True)
class Score(Command):
    """Score sentences by how likely a model finds them: pseudo-log-likelihood, in nats.

    Each token is masked in turn; the log-probabilities of the true tokens are summed. With
    --method within-word the pieces to the right within the word are hidden too, so that a word of
    many pieces does not look likelier than it is; original hides the one token alone.

    Examples:
      maskery score runs/meditations-minilm sentences.txt
      maskery score runs/a sentences.txt --words --tsv > words.tsv
      maskery score bert-base-uncased pairs.tsv --pairs
      echo "Nothing happens to anybody." | maskery score runs/a -
    """

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """A run folder, a model folder or a hub name."""
    file: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
    """One sentence a line, here or at an address; - for standard input; also .gz, .xz, .zst
    and .bz2."""
    pairs: bool = False
    """Two sentences a line with a tab between them, the one that should be likelier first: tells
    which is, and the share of pairs that are as they should be."""
    words: bool = False
    """Also a score for each word."""
    method: Literal["within-word", "original"] = "within-word"
    """within-word: Kauf and Ivanova 2023; original: Salazar et al. 2020."""
    image: Path | None = None
    """A picture to look at, for a model that maskery train pairs or convert has written."""
    batch_tokens: Annotated[int, Range(8)] = 4096
    """Tokens computed at once; the scores do not depend on it."""
    encoding: str = "utf-8"
    """The character encoding of the file."""
    tsv: bool = False
    """Tab-separated values with a heading, exact figures."""

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.tsv and self.json:
            raise ConfigError("--tsv and --json are both given; choose one")
        if self.pairs and self.words:
            raise ConfigError("--pairs compares whole sentences; leave out --words")

    def execute(self) -> None:
        """Score every line."""
        from tqdm import tqdm

        from maskery.data.corpus.sentences import name_of, read_sentence_pairs, read_sentences

        if self.pairs:
            pairs = read_sentence_pairs(self.file, encoding=self.encoding)
            lines = [line for pair in pairs for line in pair]
        else:
            lines = list(read_sentences(self.file, encoding=self.encoding))
        file, numbers = name_of(self.file), [line.number for line in lines]
        scorer = self.scorer()
        refuse_masks(scorer.filler.reader, lines, file)
        scored = scorer.score(
            (line.text for line in lines), lambda index: f"{file}: line {numbers[index]}"
        )
        # No bar where standard error is no terminal.
        scores = list(tqdm(scored, desc="scoring", total=len(lines), leave=False, disable=None))
        warn_of_unknown_words(scorer.filler.reader, scores)
        if self.pairs:
            self.report_pairs(list(zip(numbers[::2], scores[::2], scores[1::2], strict=True)))
        else:
            self.report(list(zip(numbers, scores, strict=True)))

    def scorer(self) -> Scorer:
        """Open a text model, or an image-text model with or without a picture."""
        with quick_imports():
            from maskery.evaluation.text.pseudo_likelihood import Scorer
            from maskery.runs.shortcuts import open_filler

        filler = open_filler(self.model, self.image)
        return Scorer(filler, method=self.method, batch_tokens=self.batch_tokens)

    def report(self, scored: Sequence[tuple[int, TextScore]]) -> None:
        """Print sentences, or their words if these are asked for."""
        data = [as_json(number, score, self.words) for number, score in scored]
        if self.words:
            words = ((number, word) for number, score in scored for word in score.words)
            rows = [(n, w.word, w.log_probability, " ".join(w.pieces)) for n, w in words]
            shown = self.rows(WORD_COLUMNS, rows)
        else:
            lines = [(n, s.log_probability, s.tokens, s.per_token, s.text) for n, s in scored]
            shown = self.rows(TEXT_COLUMNS, lines)
        total = sum(score.log_probability for _, score in scored)
        tokens = sum(score.tokens for _, score in scored)
        note = (
            f"{len(scored):,} sentences, {tokens:,} tokens: {total:,.1f} nats, "
            f"{total / tokens:.3f} a token ({self.method})"
        )
        self.answer(data, shown if self.tsv else f"{shown}\n{note}")

    def report_pairs(self, pairs: Sequence[tuple[int, TextScore, TextScore]]) -> None:
        """Print which sentence of each pair is likelier; a tie counts half."""
        differences = [one.log_probability - other.log_probability for _, one, other in pairs]
        right = sum(0.5 if d == 0 else float(d > 0) for d in differences)
        rows = [
            (number, likelier(difference), difference, first.text, second.text)
            for difference, (number, first, second) in zip(differences, pairs, strict=True)
        ]
        listed = [
            dict(zip(PAIR_COLUMNS, row, strict=True))
            | {"first": as_json(number, first, False), "second": as_json(number, second, False)}
            for row, (number, first, second) in zip(rows, pairs, strict=True)
        ]
        share = right / len(pairs)
        shown = self.rows(PAIR_COLUMNS, rows)
        note = (
            f"{right:g} of {len(pairs):,} pairs have the likelier sentence first: "
            f"{100 * share:.1f}% ({self.method})"
        )
        self.answer(
            {"accuracy": share, "method": self.method, "pairs": listed},
            shown if self.tsv else f"{shown}\n{note}",
        )

    def rows(self, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
        """Return rows as a table for people, or as tab-separated values."""
        if self.tsv:
            stream = io.StringIO()
            writer = csv.writer(stream, delimiter="\t", lineterminator="\n")
            writer.writerows([columns, *rows])
            return stream.getvalue().rstrip("\n")
        heading = [column.replace("_", " ") for column in columns]
        cells = [heading, *[[cell(value) for value in row] for row in rows]]
        # Numbers stand to the right, texts to the left.
        return table(cells, [index for index, one in enumerate(rows[0]) if isinstance(one, str)])


def refuse_masks(reader: TextReader, lines: Iterable[Any], file: str) -> None:
    """Refuse lines with a mask, which has no probability."""
    for line in lines:
        if reader.mask_token in line.text:
            raise ConfigError(
                f"{file}: line {line.number} has a {reader.mask_token}, and only words have "
                f"a probability; write the word, or use maskery fill"
            )


def warn_of_unknown_words(reader: TextReader, scores: Iterable[TextScore]) -> None:
    """Say which words the tokenizer does not know: their score is that of any unknown word."""
    unknown = reader.tokenizer.unk_token
    words = {w.word for score in scores for w in score.words if unknown in w.pieces}
    if words:
        shown = ", ".join(sorted(words)[:8]) + (", ..." if len(words) > 8 else "")
        log.warning(
            "%d words are unknown to the tokenizer and scored as %s: %s", len(words), unknown, shown
        )


def likelier(difference: float) -> str:
    """Return in a word which of two sentences is likelier."""
    return "first" if difference > 0 else "second" if difference < 0 else "tie"


def as_json(number: int, score: TextScore, words: bool) -> dict[str, Any]:
    """Return a sentence for `--json`."""
    described = {"line": number, **asdict(score), "per_token": score.per_token}
    if not words:
        del described["words"]
    return described


def cell(value: Any) -> str:
    """Return a value for a table."""
    if isinstance(value, float):
        return f"{value:.3f}"
    text = str(value)
    return text if len(text) <= TEXT_WIDTH else f"{text[: TEXT_WIDTH - 1]}…"
