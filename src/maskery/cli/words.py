"""`maskery fill` and `maskery score`: commands that read sentences."""

import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from maskery.cli.main import Command
from maskery.cli.output import as_text, figures_csv, percent, prepare_outputs, table
from maskery.core.errors import ConfigError, counted
from maskery.core.ranges import Count, Range
from maskery.core.system import quick_imports
from maskery.runs.frame.run_folder import write_text

if TYPE_CHECKING:
    from maskery.evaluation.text.fill import Filling
    from maskery.evaluation.text.pseudo_likelihood import TextScore

log = logging.getLogger(__name__)

SAMPLING = frozenset({"temperature", "steps", "block", "seed"})  # flags that --sample reads
LISTING = frozenset({"top_k", "words", "pieces", "beams"})  # flags of lists of candidates
PAIR_COLUMNS = ("line", "likelier", "difference", "first", "second")
TEXT_COLUMNS = ("line", "log_probability", "tokens", "per_token", "text")
WORD_COLUMNS = ("line", "word", "log_probability", "pieces")
TEXT_WIDTH = 60  # characters of a text in a table for people; --tsv and --json have it whole


@dataclass(frozen=True, kw_only=True)
class Fill(Command):
    """Fill the [MASK]s of a sentence.

    Examples:
      maskery fill runs/meditations-minilm "The [MASK] of the universe is change."
      maskery fill bert-base-uncased "Paris is the [MASK] of France." --words capital heart
      maskery fill runs/a "He [MASK] the [MASK]." --top-k 10 --json
      maskery fill runs/diffusion "The [MASK]*8." --sample --temperature 0.7 --seed 1
      maskery fill runs/people "A woman in a [MASK] coat." --image people/imgs/000/000001_00.jpg
    """

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """A run folder, a model folder or a hub name."""
    text: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="SENTENCE ...")]
    """Sentences with one or more [MASK] each."""
    image: Path | None = None
    """A picture to look at, for a model that maskery train pairs or convert has written."""
    top_k: Count = 5
    """Candidates for each mask, and joint completions."""
    words: tuple[str, ...] = ()
    """Words whose probability as they would stand at the first mask is wanted."""
    pieces: bool = False
    """Also offer tokens that cannot stand alone there, such as ##ef."""
    beams: Count = 10
    """Partial fillings that the joint search of several masks keeps."""
    sample: bool = False
    """Write one text: fill all masks step by step, the surest first. [MASK]*12 is twelve masks."""
    temperature: Annotated[float, Range(0)] = 0.0
    """With --sample: 0 takes the likeliest tokens; above, tokens are drawn, ever more freely."""
    steps: Count | None = None
    """With --sample: predictions to fill all masks. Default: one for each mask."""
    block: Count = 32
    """With --sample: masks that are filled before any to the right of them."""
    seed: Annotated[int, Range(0, (1 << 63) - 1)] = 0
    """With --sample: another seed draws other tokens."""

    def __post_init__(self) -> None:
        if not self.text:
            raise ConfigError('no sentence is given: add one, such as "The [MASK] is red."')
        super().__post_init__()
        idle = LISTING if self.sample else SAMPLING
        goes = "goes without" if self.sample else "needs"
        for one in fields(self):
            if one.name in idle and getattr(self, one.name) != one.default:
                raise ConfigError(f"--{one.name.replace('_', '-')} is given: it {goes} --sample")

    def execute(self) -> None:
        """Fill every sentence."""
        with quick_imports():
            from maskery.runs.shortcuts import open_filler

        filler = open_filler(self.model, self.image)
        settings = {name: getattr(self, name) for name in (SAMPLING if self.sample else LISTING)}
        if self.sample:
            samples = [filler.sample(text, **settings) for text in self.text]
            self.answer(samples, "\n\n".join(sample.text for sample in samples))
            return
        fillings = [filler.fill(text, **settings) for text in self.text]
        self.answer(fillings, "\n\n".join(map(describe, fillings)))


def describe(filling: "Filling") -> str:
    """Return a filling for people."""
    blocks = [filling.text]
    for number, candidates in enumerate(filling.masks, 1):
        rows = [[c.token, percent(c.probability)] for c in candidates]
        heading = f"mask {number}:\n" if len(filling.masks) > 1 else ""
        blocks.append(heading + table(rows))
    if filling.completions:
        rows = [[c.text, f"{100 * math.exp(c.log_probability):.2f}%"] for c in filling.completions]
        blocks.append("together:\n" + table(rows))
    if filling.words:
        rows = [[w.word, f"{100 * w.probability:.3g}%", " ".join(w.pieces)] for w in filling.words]
        blocks.append("asked for:\n" + table(rows))
    return "\n".join(blocks)


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
      maskery score runs/a --suite blimp/data --against bert-base-uncased --csv blimp.csv
      echo "Nothing happens to anybody." | maskery score runs/a -
    """

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """A run folder, a model folder or a hub name."""
    file: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")] = ""
    """One sentence a line, here or at an address; - for standard input; also .gz, .xz, .zst
    and .bz2."""
    suite: str | None = None
    """In the place of FILE, a file or folder of minimal pairs, as of BLiMP and BabyLM: JSON lines
    with sentence_good and sentence_bad. Tells the accuracy by phenomenon."""
    against: str | None = None
    """With --suite: another model, for paired differences, MODEL minus this one."""
    csv: Path | None = None
    """With --suite: also write the figures into this file, those of each paradigm (UID) too."""
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
        super().__post_init__()
        if self.tsv and self.json:
            raise ConfigError("--tsv and --json are both given; choose one")
        if self.pairs and self.words:
            raise ConfigError("--pairs compares whole sentences; leave out --words")
        if bool(self.file) == bool(self.suite):
            raise ConfigError("name a FILE of sentences, or a --suite of pairs; one of them")
        for name in ("pairs", "words", "tsv") if self.suite else ("against", "csv"):
            if getattr(self, name):
                goes = "does not go with" if self.suite else "needs"
                raise ConfigError(f"--{name} {goes} --suite; leave it out")

    def execute(self) -> None:
        """Score every line, or every pair of a suite."""
        from maskery.data.corpus.sentences import name_of, read_sentence_pairs, read_sentences

        if self.suite:
            self.report_suite(self.suite)
            return
        if self.pairs:
            lines = list(chain(*read_sentence_pairs(self.file, encoding=self.encoding)))
        else:
            lines = list(read_sentences(self.file, encoding=self.encoding))
        places = [f"{name_of(self.file)}: line {line.number}" for line in lines]
        scores = self.scores(self.model, [line.text for line in lines], places)
        report = self.report_pairs if self.pairs else self.report
        report([(line.number, score) for line, score in zip(lines, scores, strict=True)])

    def scores(self, model: str, texts: Sequence[str], places: Sequence[str]) -> list["TextScore"]:
        """Score texts with a model; `places` tell messages where each stands."""
        with quick_imports():
            from maskery.core.bars import Bar
            from maskery.evaluation.text.pseudo_likelihood import Scorer
            from maskery.runs.shortcuts import open_filler

        filler = open_filler(model, self.image)
        reader = filler.reader
        for text, place in zip(texts, places, strict=True):
            if reader.mask_token in text:
                problem = f"{place} has a {reader.mask_token}, and only words have a probability"
                raise ConfigError(f"{problem}; write the word, or use maskery fill")
        scorer = Scorer(filler, method=self.method, batch_tokens=self.batch_tokens)
        scored = scorer.score(texts, places.__getitem__)
        scores = list(Bar(len(texts), "scoring", iterable=scored))
        mark = reader.tokenizer.unk_token
        unknown = sorted({w.word for score in scores for w in score.words if mark in w.pieces})
        if unknown:  # their score is that of any unknown word
            count, words = counted(len(unknown), "word"), ", ".join(unknown[:8])
            more = ", ..." if len(unknown) > 8 else ""
            told = "unknown to the tokenizer and scored as %s: %s: %s%s"
            log.warning(told, mark, count, words, more)
        return scores

    def report_suite(self, suite: str) -> None:
        """Print the accuracy of one model, or of two, by phenomenon."""
        with quick_imports():
            import numpy as np

            from maskery.evaluation.tables import suite_table
            from maskery.evaluation.text.suite import read_suite, suite_figures

        prepare_outputs(csv=self.csv)
        pairs = list(read_suite(suite, encoding=self.encoding))
        texts = [text for pair in pairs for text in (pair.good, pair.bad)]
        places = [pair.place for pair in pairs for _ in range(2)]
        models = [model for model in (self.model, self.against) if model]
        found = [self.scores(model, texts, places) for model in models]
        outcomes = [np.array([s.log_probability for s in scores]) for scores in found]
        figures = suite_figures(pairs, *outcomes)
        if self.csv is not None:
            write_text(self.csv, figures_csv(figures))
        data = {"suite": suite, "models": models, "method": self.method, "figures": figures}
        self.answer(data, as_text(suite_table(figures, models)))

    def report(self, scored: Sequence[tuple[int, "TextScore"]]) -> None:
        """Print sentences, or their words if these are asked for."""
        if self.words:
            words = ((number, word) for number, score in scored for word in score.words)
            rows: list[Any] = [(n, w.word, w.log_probability, " ".join(w.pieces)) for n, w in words]
        else:
            rows = [(n, s.log_probability, s.tokens, s.per_token, s.text) for n, s in scored]
        total = sum(score.log_probability for _, score in scored)
        tokens = sum(score.tokens for _, score in scored)
        amounts = f"{counted(len(scored), 'sentence')}, {counted(tokens, 'token')}"
        note = f"{amounts}: {total:,.1f} nats, {total / tokens:.3f} a token"
        columns = WORD_COLUMNS if self.words else TEXT_COLUMNS
        self.show(columns, rows, note, [as_json(n, score, self.words) for n, score in scored])

    def report_pairs(self, scored: Sequence[tuple[int, "TextScore"]]) -> None:
        """Print which sentence of each pair is likelier; a tie counts half."""
        right, rows, listed = 0.0, [], []
        for (number, one), (_, other) in zip(scored[::2], scored[1::2], strict=True):
            more = one.log_probability - other.log_probability
            likelier = "tie" if more == 0 else "first" if more > 0 else "second"
            right += {"first": 1.0, "tie": 0.5, "second": 0.0}[likelier]
            rows.append((number, likelier, more, one.text, other.text))
            both = (as_json(number, score, False) for score in (one, other))
            listed.append(dict(zip(PAIR_COLUMNS, (number, likelier, more, *both), strict=True)))
        share = right / len(rows)
        told = f"{right:g} of {len(rows):,} pairs have the likelier sentence first"
        data = {"accuracy": share, "method": self.method, "pairs": listed}
        self.show(PAIR_COLUMNS, rows, f"{told}: {100 * share:.1f}%", data)

    def show(self, columns: Sequence[str], rows: Sequence[Any], note: str, data: Any) -> None:
        """Print rows as a table for people, with a note, or as tab-separated values."""
        if self.tsv:
            lines = (dict(zip(columns, row, strict=True)) for row in rows)
            text = figures_csv(lines, delimiter="\t").rstrip("\n")
        else:
            heading = [column.replace("_", " ") for column in columns]
            cells = [heading, *[[cell(value) for value in row] for row in rows]]
            # Numbers stand to the right, texts to the left.
            left = [index for index, one in enumerate(rows[0]) if isinstance(one, str)]
            text = f"{table(cells, left)}\n{note} ({self.method})"
        self.answer(data, text)


def as_json(number: int, score: "TextScore", words: bool) -> dict[str, Any]:
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
