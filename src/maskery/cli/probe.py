"""`maskery probe`."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from maskery.cli.command import Command, table
from maskery.core.errors import ConfigError, MaskeryError
from maskery.core.system import quick_imports
from maskery.evaluation.intervals import LEAST_EXAMPLES, interval_note

if TYPE_CHECKING:
    from maskery.evaluation.intervals import Interval
    from maskery.evaluation.probe.probe import ProbeResult

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Probe(Command):
    """Measure how good an encoder's vectors are for your own task.

    The encoder stays as it is. Its vectors are pooled as the model's own sentence-transformers
    modules say, else averaged, and judged by the nearest neighbour and by a linear probe, beside
    counted words (TF-IDF) and chance: nobody should adapt where counting words does better.

    Examples:
      maskery probe runs/notes-minilm --against minilm --labels topics.csv
      maskery probe minilm --labels entities.conll --kind tokens
      maskery probe minilm --labels questions.jsonl --kind pairs --text-column question
        --label-column answer
    """

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """A run folder, a model folder, a hub name or minilm."""
    labels: Path
    """Labelled texts: .jsonl, .csv, .tsv or .parquet; CoNLL columns for --kind tokens."""
    against: str | None = None
    """Another model; differences are MODEL minus this one."""
    kind: Literal["labels", "tokens", "pairs"] = "labels"
    """labels: a class for each text; tokens: a class for each word; pairs: texts that belong
    together."""
    text_column: str = "text"
    """The column of the text, or of the first text of a pair."""
    label_column: str = ""
    """The column of the label, or of the second text of a pair. Default: label, or pair."""

    def __post_init__(self) -> None:
        if self.kind == "tokens" and (self.text_column != "text" or self.label_column):
            raise ConfigError("--kind tokens reads the first and the last column; name no columns")

    def execute(self) -> None:
        """Judge the vectors of one encoder, or of two."""
        with quick_imports():
            from maskery.evaluation.probe.encode import Encoder
            from maskery.evaluation.probe.labels import read_labelled
            from maskery.evaluation.probe.probe import probe

        labelled = read_labelled(
            self.labels, self.kind, text_column=self.text_column, label_column=self.label_column
        )
        result = probe(
            Encoder.open(self.model),
            labelled,
            None if self.against is None else Encoder.open(self.against),
            seen=trained_on(self.model),
            progress=not self.json and sys.stderr.isatty(),
        )
        self.answer(result.to_json(), describe(result))


def trained_on(model: str) -> Iterator[str]:
    """Yield the texts of the corpus that a run was trained on; none for other models."""
    from maskery.data.corpus.reader import Corpus
    from maskery.runs.frame.config_file import open_run

    try:
        config = open_run(model).config
        yield from (example.text for example in Corpus.open(config.corpus, config.reading))
    except (MaskeryError, AttributeError) as error:  # no run, none of text, or its corpus is gone
        log.info("labelled texts are not looked for in a corpus: %s", error)


def describe(result: ProbeResult) -> str:
    """Return the figures as a table, with a line for each note."""
    names = list(result.figures[0].models)
    both = len(names) == 2
    heading = [result.kind, "chance", "counted words", *names, *(["difference"] if both else [])]
    rows = [heading]
    for figure in result.figures:
        cells = [percent(interval) for interval in (figure.lexical, *figure.models.values())]
        row = [figure.name, f"{100 * figure.chance:.1f}%", *cells]
        if figure.difference is not None:
            row.append(percent(figure.difference, signed=True))
        rows.append(row)
    over = {"labels": "texts", "tokens": "words", "pairs": "pairs"}[result.kind]
    lines = [table(rows), f"{result.examples:,} {over}, "]
    lines[-1] += f"{result.classes:,} classes; " if result.classes else ""
    lines[-1] += interval_note(max(result.examples, LEAST_EXAMPLES), over)
    if both:
        lines.append(f"difference: {names[0]} minus {names[1]}, in points")
    return "\n".join([*lines, *result.notes])


def percent(interval: Interval, *, signed: bool = False) -> str:
    """Return a share, or a difference of shares, in percent with its interval."""
    # A difference that is exactly nothing has no sign.
    value, low, high = (f"{100 * n:{'+' if signed and n else ''}.1f}" for n in interval)
    shown = value if signed else f"{value}%"
    return f"{shown} [{low}, {high}]" if interval.known else shown
