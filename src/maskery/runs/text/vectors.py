"""Are the vectors still good? A run's own check, before, while and after it trains."""

import logging
from collections.abc import Iterable, Sequence
from typing import Any, Self, cast

import numpy as np

from maskery.core.errors import MissingExtraError
from maskery.data.batching import TextSource
from maskery.data.split import texts_of
from maskery.evaluation.probe.encode import Encoder, Vectors
from maskery.evaluation.probe.labels import Labelled, read_labelled
from maskery.evaluation.probe.probe import ClassTask, ProbeResult, Task, halves, probe
from maskery.models.pooling import Pooling
from maskery.runs.text.config import TextRunConfig
from maskery.runs.text.prepare import TextRun

log = logging.getLogger(__name__)

MOST_HALVES = 1000  # more texts tell nothing more, and each is encoded at every evaluation
MOST_READ = 200_000  # training texts that labelled ones are looked for in


class Remembered(Encoder):
    """An encoder that keeps the vectors it has made, until it is told that its weights moved."""

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self.kept: dict[Sequence[str], Vectors] = {}

    def encode(self, texts: Sequence[str], *, progress: bool = False) -> Vectors:
        """Return the vectors that were made first."""
        key = tuple(texts)
        if key not in self.kept:
            self.kept[key] = super().encode(texts, progress=progress)
        return self.kept[key]


class VectorCheck:
    """Compares the run's encoder with the one that it started from, on one task."""

    def __init__(self, run: TextRun, labelled: Labelled) -> None:
        self.run, self.labelled = run, labelled
        parts = (run.loaded.model, run.loaded.tokenizer, pooling_of(run))
        self.after = Remembered(*parts, "after")
        self.before = Remembered(*parts, "before")
        self.task = Task.of(labelled, ())
        self.task.linear = False  # it takes most of the time
        self.task.encode(self.before, progress=False)  # now, before the run's first step

    @classmethod
    def of(cls, run: TextRun) -> Self | None:
        """Check a `--probe` file or, for sentence encoders, halves of held-out texts; else None."""
        config = run.config
        if config.probe is not None:
            return cls(run, labels_of(config))
        if not pooling_of(run).own:
            return None
        documents = np.unique(run.held_out.windows.documents)
        held_out = texts_of(run.held_out.store, run.loaded.tokenizer, documents)
        labelled = halves(list(held_out)[:MOST_HALVES])
        if len(set(labelled.labels)) < 2:
            return None
        try:
            return cls(run, labelled)
        except MissingExtraError as error:
            log.info("vectors are not judged: %s", error)
            return None

    def result(self) -> ProbeResult:
        """Return the figures after and before, and their paired differences."""
        train, seen = self.run.train, cast(Iterable[str], ())
        asked = self.run.config.probe is not None
        # Not of shards, or of so many that reading them takes long.
        if asked and isinstance(train, TextSource) and train.store.num_documents <= MOST_READ:
            documents = np.unique(train.windows.documents)
            seen = texts_of(train.store, self.run.loaded.tokenizer, documents)
        return probe(self.after, self.labelled, self.before, linear=False, seen=seen)

    def figure(self, step: int) -> float:
        """Return the first figure of the encoder as it is at a step, for the log."""
        # Until its head is trained, the encoder is the start's to the bit.
        self.after.kept = dict(self.before.kept) if step <= self.run.head_steps else {}
        judged = self.task.judge(self.task.encode(self.after, progress=False))
        return float(next(iter(judged.values())).scores.mean())


def labels_of(config: TextRunConfig) -> Labelled:
    """Read the label file of a run."""
    assert config.probe is not None
    text, label = config.probe_text, config.probe_label
    labelled = read_labelled(config.probe, text_column=text, label_column=label)
    ClassTask(labelled, [])
    return labelled


def pooling_of(run: TextRun) -> Pooling:
    """Return the pooling of the model that a run starts from; the mean where it says nothing."""
    folder = run.sentence_encoder
    return Pooling() if folder is None else Pooling.of(folder)
