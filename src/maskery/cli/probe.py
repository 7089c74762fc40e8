"""`maskery probe`."""

import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Annotated, Literal

import tyro

from maskery.cli.main import Command
from maskery.cli.output import as_text
from maskery.core.errors import ConfigError, MaskeryError
from maskery.core.system import quick_imports
from maskery.evaluation.tables import vectors_table

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Probe(Command):
    """Measure how good an encoder's vectors are for your own task.

    The encoder stays as it is. Its vectors are pooled as the model's own sentence-transformers
    modules say, else averaged, and judged by the nearest neighbour and by a linear probe, beside
    counted words (TF-IDF) and chance: nobody should adapt where counting words does better.

    Examples:
      maskery probe runs/notes-minilm --against minilm --labels topics.csv
      maskery probe runs/notes-minilm --against minilm --labels topics.csv --tune
      maskery probe minilm --labels entities.conll --kind tokens
      maskery probe minilm --labels questions.jsonl --kind pairs --text-column question
        --label-column answer
    """

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """A run folder, a model folder, a hub name or minilm."""
    labels: str
    """Labelled texts: .jsonl, .csv, .tsv or .parquet, here or at an address; CoNLL columns for
    --kind tokens."""
    against: str | None = None
    """Another model; differences are MODEL minus this one."""
    kind: Literal["labels", "tokens", "pairs"] = "labels"
    """labels: a class for each text; tokens: a class for each word; pairs: texts that belong
    together."""
    text_column: str = "text"
    """The column of the text, or of the first text of a pair."""
    label_column: str = ""
    """The column of the label, or of the second text of a pair. Default: label, or pair."""

    tune: Annotated[tuple[int, ...] | None, tyro.conf.arg(metavar="[SEED ...]")] = None
    """Also fine-tune encoder and head on three quarters of the texts, once for each seed, and judge
    the last; alone, with seeds 0, 1 and 2. Some minutes on a CPU."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tune is not None and self.kind != "labels":
            raise ConfigError(f"--tune and --kind {self.kind} do not go together; leave out --tune")
        if self.tune and (len(set(self.tune)) < len(self.tune) or min(self.tune) < 0):
            seeds = " ".join(map(str, self.tune))
            raise ConfigError(f"--tune {seeds}: seeds are different numbers from 0 on")
        if self.kind == "tokens" and (self.text_column != "text" or self.label_column):
            raise ConfigError("--kind tokens reads the first and the last column; name no columns")

    def execute(self) -> None:
        """Judge the vectors of one encoder, or of two."""
        with quick_imports():
            from maskery.evaluation.probe.encode import SEEDS, Encoder
            from maskery.evaluation.probe.labels import read_labelled
            from maskery.evaluation.probe.probe import probe

        columns = {"text_column": self.text_column, "label_column": self.label_column}
        labelled = read_labelled(self.labels, self.kind, **columns)
        result = probe(
            Encoder.open(self.model),
            labelled,
            None if self.against is None else Encoder.open(self.against),
            seen=trained_on(self.model),
            seeds=() if self.tune is None else self.tune or SEEDS,
            progress=not self.json,
        )
        found = asdict(result)
        self.answer(found, as_text(vectors_table(found)))


def trained_on(model: str) -> Iterator[str]:
    """Yield the texts of the corpus that a run was trained on; none for other models."""
    from maskery.data.corpus.reader import Corpus
    from maskery.runs.frame.config_file import open_run

    try:
        config = open_run(model).config
        yield from (example.text for example in Corpus.open(config.corpus, config.reading))
    except (MaskeryError, AttributeError) as error:  # no run, none of text, or its corpus is gone
        log.info("labelled texts are not looked for in a corpus: %s", error)
