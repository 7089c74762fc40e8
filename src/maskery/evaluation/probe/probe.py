"""The probe: one model, or two beside each other, on labelled texts, words or pairs of texts.

Shapes: N examples, D width.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from maskery.core.batch import Floats, Ints
from maskery.core.errors import DataError, counted
from maskery.core.registry import require
from maskery.data.split import as_read
from maskery.evaluation.intervals import Interval, grouped_interval
from maskery.evaluation.probe import classify
from maskery.evaluation.probe.encode import Encoder, Vectors, tuned_hits
from maskery.evaluation.probe.labels import Labelled

MOST_WORDS = 20_000  # of more, a linear probe takes minutes; sentences are drawn by their hash


@dataclass(frozen=True, kw_only=True)
class ProbeFigure:
    """One figure of a probe."""

    name: str  # `nearest neighbour`, `linear probe`, `fine-tuned`, `R@1` or `MRR`
    chance: float  # Knowing nothing: two texts that meet, the commonest class, pairs in any order
    lexical: Interval  # The same with counted words (TF-IDF) in place of vectors
    models: Mapping[str, Interval]  # By model name
    difference: Interval | None = None  # The first model minus the second, paired
    spread: Mapping[str, float] | None = None  # Standard deviation over seeds, of fine-tuning


@dataclass(frozen=True, kw_only=True)
class ProbeResult:
    """The figures of a probe."""

    kind: str  # `labels`, `tokens` or `pairs`
    examples: int  # N
    classes: int  # 0 for pairs
    figures: tuple[ProbeFigure, ...]
    notes: tuple[str, ...] = ()  # One line for each thing that was left out or is to be known


@dataclass(frozen=True, kw_only=True)
class Judged:
    """One figure's scores of every example under one representation."""

    scores: Floats  # (N,) from 0 to 1
    neighbours: Ints | None = None  # (N,) the example that judged each, where one did


def probe(
    model: Encoder,
    labelled: Labelled,
    against: Encoder | None = None,
    *,
    seen: Iterable[str] = (),  # texts of the training corpus; labelled ones among them are counted
    linear: bool = True,  # also fit linear probes to classes of texts: most of the time
    seeds: Sequence[int] = (),  # also fine-tune encoder and head on classes of texts, once for each
    progress: bool = False,
) -> ProbeResult:
    """Judge an encoder by a task from `read_labelled`, beside another where one is given."""
    task = Task.of(labelled, seen)
    task.linear = linear
    encoders = {model.name: model}
    if against is not None:
        name = against.name if against.name != model.name else f"{against.name} (against)"
        encoders[name] = against
    features = {name: task.encode(one, progress) for name, one in encoders.items()}
    judged = {name: task.judge(vectors) for name, vectors in features.items()}
    lexical = task.judge(task.lexical())
    task.same = len(features) == 2 and np.array_equal(*features.values())
    figures = [
        task.figure(name, {one: found[name] for one, found in judged.items()}, of_words)
        for name, of_words in lexical.items()
    ]
    if seeds:
        if not isinstance(task, ClassTask):
            raise DataError("--tune needs a class for each text: leave it out, or --kind labels")
        figures.append(task.tuned(encoders, lexical, seeds, progress))
    return ProbeResult(
        kind=labelled.kind,
        examples=task.size,
        classes=task.num_classes,
        figures=tuple(figures),
        notes=tuple(task.notes),
    )


class Task:
    """A task that each representation is judged by; made by `Task.of`."""

    num_classes = 0  # C; 0 for pairs
    linear = True  # False to fit no linear probes to classes of texts
    same = False  # True if the two models made the same vectors

    def __init__(self, labelled: Labelled, notes: list[str]) -> None:
        self.labelled, self.notes, self.size = labelled, notes, len(labelled.texts)
        self.inputs: tuple[str, ...] = labelled.texts  # the texts that vectors are made of
        self.apart = np.arange(self.size)  # groups of examples that depend on each other
        self.chances: dict[str, float] = {}  # by figure, of a model that knows nothing

    @staticmethod
    def of(labelled: Labelled, seen: Iterable[str]) -> "Task":
        """Choose the task of a kind, and note what is left out or was seen in training."""
        require("sklearn", extra="probe", purpose="fit a linear probe")
        skipped, size = labelled.skipped.items(), len(labelled.texts)
        notes = [f"left out: {counted(count, 'row')} {why}" for why, count in skipped]
        if not size:
            problem = "the label file has no row with a text and a label"
            raise DataError("; ".join((problem, *notes)))
        known = set(map(as_read, seen))
        if count := sum(as_read(text) in known for text in labelled.texts if known):
            note = f"{count:,} of {size:,} labelled texts stand in the training corpus"
            all_seen = ": the figures say nothing about texts that the model has not read"
            notes.append(note + all_seen * (count == size))
        kinds = {"labels": ClassTask, "tokens": WordTask, "pairs": PairTask}
        return kinds[labelled.kind](labelled, notes)

    def set_classes(self, labels: Sequence[str], texts: Sequence[str]) -> None:
        """Give every example its class, and the text that it stands in."""
        names, self.classes = np.unique(np.array(labels), return_inverse=True)
        self.texts, self.num_classes = texts, len(names)
        self.chances["linear probe"] = float(np.bincount(self.classes).max() / self.size)

    def encode(self, encoder: Encoder, progress: bool) -> Any:
        """Return the features of every example."""
        return encoder.encode(self.inputs, progress=progress)

    def lexical(self) -> Any:
        """Return features that count words."""
        return classify.lexical_vectors(self.inputs)

    def judge(self, features: Any) -> dict[str, Judged]:
        """Score every example, by figure: here, by the linear probe of its class."""
        hits = classify.probe_hits(features, self.classes, self.texts)
        return {"linear probe": Judged(scores=hits.astype(float))}

    def figure(self, name: str, judged: Mapping[str, Judged], lexical: Judged) -> ProbeFigure:
        """Put one figure of all models together."""
        groups = self._groups(*judged.values())
        difference = Interval(0.0, 0.0, 0.0) if self.same else None  # no doubt is left
        if len(judged) == 2 and not self.same:
            first, second = (found.scores for found in judged.values())
            difference = grouped_interval(first - second, groups, "difference of shares")
        models = {one: grouped_interval(found.scores, groups) for one, found in judged.items()}
        chance, words = self.chances[name], grouped_interval(lexical.scores, self._groups(lexical))
        return ProbeFigure(
            name=name, chance=chance, lexical=words, models=models, difference=difference
        )

    def _groups(self, *judged: Judged) -> Ints:
        neighbours = [found.neighbours for found in judged if found.neighbours is not None]
        return classify.mutual_groups(*neighbours) if neighbours else self.apart


class ClassTask(Task):
    """A class for each text: nearest neighbour and linear probe.

    Texts that stand in the file twice are judged once, with their first label.
    """

    def __init__(self, labelled: Labelled, notes: list[str]) -> None:
        first: dict[str, int] = {}
        for place, text in enumerate(labelled.texts):
            # Punctuation stays: it may be what a label is about ("Great." and "Great?").
            first.setdefault(" ".join(text.split()).casefold(), place)
        counts = Counter(labelled.labels[place] for place in first.values())
        kept = [place for place in first.values() if counts[labelled.labels[place]] > 1]
        alone = sum(count == 1 for count in counts.values())
        if repeated := len(labelled.texts) - len(first):
            notes.append(f"{repeated:,} repeated texts are judged once")
        if alone:
            left_out = counted(alone, "class", "classes")
            notes.append(f"{left_out} with one text are left out: it has no neighbour")
        if (judged := len(counts) - alone) < 2:
            problem = f"the label file has {counted(judged, 'class', 'classes')} with two texts"
            rule = "a probe needs at least two such classes"
            raise DataError(f"{problem} or more, of {len(counts):,} in all: {rule}")
        chosen = labelled.take(kept)
        super().__init__(chosen, notes)
        self.set_classes(chosen.labels, chosen.texts)
        if self.num_classes > (most := classify.MOST_PROBE_CLASSES):
            notes.append(f"no linear probe: {self.num_classes:,} classes are more than {most:,}")
        sizes = np.bincount(self.classes)
        meet = (sizes * (sizes - 1)).sum() / (self.size * (self.size - 1))
        self.chances["nearest neighbour"] = float(meet)

    def judge(self, features: Any) -> dict[str, Judged]:
        """Score every text by its neighbour and by the linear probe."""
        neighbours = classify.nearest(features)
        hits = (self.classes[neighbours] == self.classes).astype(float)
        judged = {"nearest neighbour": Judged(scores=hits, neighbours=neighbours)}
        if self.linear and self.num_classes <= classify.MOST_PROBE_CLASSES:
            judged |= super().judge(features)
        return judged

    def tuned(
        self,
        encoders: Mapping[str, Encoder],
        lexical: Mapping[str, Judged],
        seeds: Sequence[int],
        progress: bool,
    ) -> ProbeFigure:
        """Fine-tune every encoder, and judge the quarter that was held out."""
        if "linear probe" not in lexical:
            most = classify.MOST_PROBE_CLASSES
            raise DataError(f"--tune is for at most {most:,} classes; leave it out")
        texts, classes = self.texts, self.classes
        held_out = classify.folds_of(texts, classify.NUM_FOLDS) == 0
        if not held_out.any() or len(np.unique(classes[~held_out])) < 2:
            raise DataError(f"{len(texts):,} texts are too few for --tune; leave it out")
        hits: dict[str, Floats] = {}
        for name, one in encoders.items():
            if hits and self.same:  # equal vectors: nothing would come out otherwise
                hits[name] = next(iter(hits.values()))
            else:
                hits[name] = tuned_hits(one, texts, classes, held_out, seeds, progress=progress)
        number = int(held_out.sum())
        judged_on = f"{number:,} texts, a quarter by hash, are judged and the others trained on"
        self.notes.append(f"fine-tuned: {judged_on}; the mean of {counted(len(seeds), 'seed')}")
        commonest = np.bincount(classes[held_out]).max()
        self.chances["fine-tuned"], self.apart = float(commonest / number), np.arange(number)
        judged = {name: Judged(scores=found.mean(axis=0)) for name, found in hits.items()}
        words = Judged(scores=lexical["linear probe"].scores[held_out])
        figure = self.figure("fine-tuned", judged, words)
        if len(seeds) < 2:
            return figure
        spread = {name: float(found.mean(axis=1).std(ddof=1)) for name, found in hits.items()}
        shown = ", ".join(f"{100 * value:.1f} points ({name})" for name, value in spread.items())
        self.notes.append(f"fine-tuned: standard deviation over the seeds {shown}")
        return replace(figure, spread=spread)


class WordTask(Task):
    """A class for each word: linear probe over the vector of a word's first piece."""

    def __init__(self, labelled: Labelled, notes: list[str]) -> None:
        # By a hash of the text: the same sentences in whatever order the file has them.
        order = classify.folds_of(labelled.texts, 1 << 62, salt="sample ").argsort(kind="stable")
        words = np.cumsum([len(labelled.words[place]) for place in order])
        count = max(1, int(np.searchsorted(words, MOST_WORDS, side="right")))
        chosen = labelled.take(sorted(order[:count].tolist()))
        super().__init__(chosen, notes)
        self.size = int(words[count - 1])
        if count < len(words):
            notes.append(f"{self.size:,} words of {count:,} sentences, drawn by a hash, are judged")
        self.apart = np.repeat(np.arange(count), [len(w) for w in chosen.words])
        tags = [tag for sentence in chosen.tags for tag in sentence]
        self.set_classes(tags, [chosen.texts[place] for place in self.apart])
        if self.num_classes < 2:
            raise DataError("all words have one label, so there is nothing to tell apart")

    def encode(self, encoder: Encoder, progress: bool) -> Vectors:
        """Return the vector of each word's first piece; zeros past the model's limit."""
        return encoder.encode_words(self.labelled.words, progress=progress)

    def lexical(self) -> Any:
        """Return one feature a word: which word it is."""
        from sklearn.feature_extraction.text import CountVectorizer

        words = [word for sentence in self.labelled.words for word in sentence]
        return CountVectorizer(analyzer=lambda word: [word.casefold()]).fit_transform(words)


class PairTask(Task):
    """Texts that belong together: does a text find its partner among all partners?"""

    def __init__(self, labelled: Labelled, notes: list[str]) -> None:
        partners = len(set(labelled.labels))
        if partners < 2:
            raise DataError("a ranking needs at least two different partners to choose from")
        super().__init__(labelled, notes)
        self.inputs = (*labelled.texts, *labelled.labels)
        reciprocals = 1.0 / np.arange(1, partners + 1)
        self.chances = {"R@1": 1.0 / partners, "MRR": float(reciprocals.mean())}

    def judge(self, features: Any) -> dict[str, Judged]:
        """Rank all partners for each text; the features (2N, D) are of both sides."""
        rows, size = classify.unit_rows(features), self.size
        found, reciprocal = classify.pair_scores(rows[:size], rows[size:], self.labelled.labels)
        return {"R@1": Judged(scores=found), "MRR": Judged(scores=reciprocal)}


def halves(texts: Sequence[str], *, least_words: int = 12) -> Labelled:
    """Cut texts of enough words in two, each once, as pairs: does a half find its other half?"""
    first, second = [], []
    for text in dict.fromkeys(" ".join(text.split()) for text in texts):
        words = text.split(" ")
        if len(words) >= least_words:
            first.append(" ".join(words[: len(words) // 2]))
            second.append(" ".join(words[len(words) // 2 :]))
        # In scripts without spaces, four letters count as a word.
        elif len(words) * 25 < len(text) and len(text) >= 4 * least_words:
            first.append(text[: len(text) // 2])
            second.append(text[len(text) // 2 :])
    return Labelled(kind="pairs", texts=tuple(first), labels=tuple(second), skipped={})
