"""Held-out figures as tables of text, for the terminal and for the page.

Figures come as plain data: as `evaluation.json` and `--json` have them.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from maskery.core.errors import counted
from maskery.evaluation.intervals import LEAST_EXAMPLES, interval_note
from maskery.evaluation.retrieval.config import LABELS as RANKINGS

SCORES = {"loss": "loss (nats)", "perplexity": "perplexity", "top1": "top-1", "top5": "top-5"}
SIGHTS = {"right": "right picture", "wrong": "wrong picture", "none": "no picture"}
CHOSEN = "the epoch was chosen by R@1 on validation"  # said beside figures of a run's model
PEOPLE_FOUND = "Are the right people found?"
RANKED_BY = {"contrastive": "by similarity", "reranked": "by matching"}
SHARES = ("top1", "top5", "accuracy", *RANKINGS)  # shown in percent; better the more they are
SPLITS = {"test": "test split", "val": "validation"}
LEFT_OUT = {  # shown elsewhere in the report
    *("run", "model", "as_loaded", "before", "after", "heads", "difference", "scores", "training"),
    *("others", "skipped", "notes", "best_step", "vectors", "verdict", "words", "mrtd_auc"),
    *SPLITS,
}
Data = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A value with its interval, as text."""

    value: str  # The figure
    interval: str = ""  # Its ends with " to " between them; empty if none is known
    better: bool | None = None  # True for a difference for the better; None if its interval holds 0


# A label and one figure a column, or None; None may be left out at the end of a row
Row: TypeAlias = tuple[str, tuple[Figure | None, ...]]


@dataclass(frozen=True, kw_only=True)
class Table:
    """Figures in columns."""

    title: str = ""  # The question that the table answers
    corner: str = ""  # The heading of the labels, such as "held out"
    columns: tuple[str, ...]  # The other headings
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()  # The first: how many things the figures are averages over

    def lines(self) -> list[list[str]]:
        """Return the heading and the rows as texts, all equally long."""
        lines = [[self.corner, *self.columns]]
        for label, cells in self.rows:
            texts = ["" if cell is None else cell.value for cell in cells]
            for index, cell in enumerate(cells):
                if cell is not None and cell.interval:
                    texts[index] += f" [{cell.interval.replace(' to ', ', ')}]"
            lines.append([label, *texts, *[""] * (len(self.columns) - len(texts))])
        return lines


def run_tables(evaluation: Data) -> list[Table]:
    """Return the tables of a finished run: before and after, the sights, or a split's rankings."""
    if "before" in evaluation and "after" in evaluation:
        difference, heads, auc = map(evaluation.get, ("difference", "heads", "mrtd_auc"))
        aucs = None if auc is None else {"after": auc}
        table = scores_table(_in_time(evaluation), difference, heads=heads, mrtd_auc=aucs)
        more = (("others", others_table), ("vectors", vectors_table))
        return [table, *(made(found) for name, made in more if (found := evaluation.get(name)))]
    if "scores" in evaluation:
        return [sights_table(evaluation)]
    return [rankings_table(evaluation[s], name) for s, name in SPLITS.items() if evaluation.get(s)]


def _in_time(measured: Data) -> dict[str, Any]:
    """Return scores of one text by heading, in order of time."""
    names = {"as loaded": "as_loaded", "before": "before", "after": "after"}
    # Runs of earlier versions, and those whose head was not trained alone, have two.
    return {name: measured[key] for name, key in names.items() if measured.get(key)}


def other_figures(evaluation: Data) -> list[tuple[str, Figure]]:
    """Return whatever else was measured, each with its path of names."""
    return [
        (" · ".join(SCORES.get(name, name.replace("_", " ")) for name in path), value)
        for path, value in _flatten(evaluation, ())
        if path[0] not in LEFT_OUT
    ]


def figure(
    value: Any,
    *,
    share: bool,
    signed: bool = False,
    lower_is_better: bool = False,
    digits: int = 3,  # after the point, of what is no share and below 100
) -> Figure:
    """Return a number, or (value, low, high), as text."""
    numbers = value if isinstance(value, list | tuple) else [value]
    scale, unit = (100.0, "%") if share else (1.0, "")
    first, *ends = (math.nan if number is None else scale * float(number) for number in numbers)
    digits = 1 if share or abs(first) >= 100 else digits
    # A difference that is exactly nothing has no sign.
    shown, *limits = (f"{n:{'+' if signed and n else ''},.{digits}f}" for n in (first, *ends))
    if not ends or math.isnan(ends[0]):  # too few examples for an interval
        return Figure(value=f"{shown}{unit}")
    better = None if not signed or ends[0] <= 0 <= ends[1] else (first < 0) == lower_is_better
    return Figure(value=f"{shown}{unit}", interval=" to ".join(limits), better=better)


def named_figure(name: str, value: Any, *, signed: bool = False, digits: int = 3) -> Figure:
    """Return a figure in percent if it is a share by its name, which is better the more it is."""
    share = name in SHARES
    return figure(value, share=share, signed=signed, lower_is_better=not share, digits=digits)


def _row(label: str, name: str, values: Iterable[Any], *changes: Any) -> Row:
    """Return a row of one figure: its values, then differences."""
    values = list(values)
    firsts = (one[0] if isinstance(one, list | tuple) else one for one in values)
    # In one row all have as many digits as the largest.
    digits = 1 if any(abs(first or 0.0) >= 100 for first in firsts) else 3
    cells = [named_figure(name, value, digits=digits) for value in values]
    cells += [named_figure(name, change, signed=True) for change in changes]
    return label, tuple(cells)


def scores_table(
    columns: Data,  # scores by heading
    difference: Data | None = None,
    *,
    over: str = "examples",  # in plain words
    last: str = "difference",  # its heading
    heads: Data | None = None,  # the prediction head of each column, in words
    mrtd_auc: Data | None = None,  # by heading: how well replaced words are told from original ones
) -> Table:
    """Return a column for each `MaskedScores`, and their paired difference last."""
    first = next(iter(columns.values()))
    rows: list[Row] = []
    if heads:
        rows.append(("head", tuple(Figure(value=head) for head in heads.values())))
    for name, label in SCORES.items():
        changes = [difference[name]] if difference and name in difference else []
        rows.append(_row(label, name, (scores[name] for scores in columns.values()), *changes))
    if mrtd_auc:
        found = (mrtd_auc.get(name) for name in columns)
        aucs = tuple(None if one is None else figure(one, share=False) for one in found)
        rows.append(("MRTD AUC", aucs))
    title, headings = "Did it get better?", (*columns, *((last,) if difference else ()))
    averaged = f"{first['masked_tokens']:,} masked tokens of {first['examples']:,} {over}"
    notes = (f"{averaged}; {interval_note(first['examples'], over)}",)
    return Table(title=title, corner="held out", columns=headings, rows=tuple(rows), notes=notes)


def others_table(others: Data) -> Table:
    """Return loss and top-1 on each other held-out text, which a run may have forgotten."""
    rows, notes = [], []
    for text, measured in others.items():
        columns = _in_time(measured)
        for name in ("loss", "top1"):
            values = (scores[name] for scores in columns.values())
            rows.append(_row(f"{text}: {SCORES[name]}", name, values, measured["difference"][name]))
        tokens, examples = measured["after"]["masked_tokens"], measured["after"]["examples"]
        averaged = f"{counted(tokens, 'masked token')} of {counted(examples, 'example')}"
        notes.append(f"{text}: {averaged}; {interval_note(examples)}")
    title, corner, headings = "Was other text forgotten?", "other text", (*columns, "difference")
    return Table(title=title, corner=corner, columns=headings, rows=(*rows,), notes=(*notes,))


def sights_table(evaluation: Data) -> Table:
    """Return a `PairsEvaluation`: the model with the right picture, a wrong one and none."""
    columns = {SIGHTS[sight]: scores for sight, scores in evaluation["scores"].items()}
    change = (evaluation.get("difference") or {}).get("wrong")
    table = scores_table(columns, change, over="pictures or persons", last="right − wrong")
    rows, notes, words = table.rows, table.notes, evaluation.get("words")
    if words is not None:
        shares, change = words["accuracy"].values(), words["difference"]["wrong"]
        rows += (_row("chosen words", "accuracy", shares, change),)
        notes += (f"chosen words: {words['words']:,}, masked one at a time; synonyms count",)
    if evaluation.get("mrtd_auc") is not None:
        notes += (f"replaced against original words: AUC {evaluation['mrtd_auc']:.3f}",)
    return replace(table, rows=rows, notes=notes)


def models_tables(models: Mapping[str, Data], difference: Mapping[str, Data]) -> list[Table]:
    """Return a table for each of two image-text models, and what the last has over the first."""
    first, last = models
    paired = difference.values()
    known = {n: label for n, label in SCORES.items() if all(n in one for one in paired)}
    rows = tuple(_row(label, n, (), *(one[n] for one in paired)) for n, label in known.items())
    title, headings = f"{last} minus {first}, paired", tuple(SIGHTS[sight] for sight in difference)
    change = Table(title=title, corner="difference", columns=headings, rows=rows)
    tables = [replace(sights_table(found), title=name) for name, found in models.items()]
    return [*tables, change]


def suite_table(figures: Sequence[Data], models: Sequence[str]) -> Table:
    """Return how often one or two models prefer the good sentence, by phenomenon and over all."""
    rows: list[Row] = []
    for one in figures:
        if one["level"] != "paradigm":
            values = [one[name] for name in ("accuracy", "against") if name in one]
            changes = [one["difference"]] if "difference" in one else []
            label, cells = _row(one["name"], "accuracy", values, *changes)
            rows.append((label, (Figure(value=f"{one['pairs']:,}"), *cells)))
    title, corner = "Is the good sentence likelier?", "phenomenon"
    headings = ("pairs", *models, *["difference"] * (len(models) - 1))
    notes = (f"{interval_note(figures[-1]['pairs'], 'pairs')}; ties count half",)
    return Table(title=title, corner=corner, columns=headings, rows=tuple(rows), notes=notes)


def vectors_table(probe: Data) -> Table:
    """Return a `ProbeResult`: how good vectors are, beside counted words and chance."""
    over = {"labels": "texts", "tokens": "words", "pairs": "pairs"}[probe["kind"]]
    rows = []
    for found in probe["figures"]:
        # What it is compared with stands first, as "before" does elsewhere.
        values = (found["chance"], found["lexical"], *reversed(found["models"].values()))
        cells = [figure(value, share=True) for value in values]
        if found["difference"] is not None:
            change = figure(found["difference"], share=True, signed=True)
            cells.append(replace(change, value=change.value.removesuffix("%")))
        rows.append((found["name"], tuple(cells)))
    names = list(probe["figures"][0]["models"])
    classes = f"{counted(probe['classes'], 'class', 'classes')}; " if probe["classes"] else ""
    # Each figure says by itself where it has no interval.
    note = interval_note(max(probe["examples"], LEAST_EXAMPLES), over)
    notes = [f"{probe['examples']:,} {over}, {classes}{note}", *probe["notes"]]
    if len(names) == 2:
        notes.insert(1, f"difference: {names[0]} minus {names[1]}, in points")
    title, corner = "Are its vectors still good?", probe["kind"]
    headings = ("chance", "counted words", *names[::-1], *["difference"] * (len(names) == 2))
    return Table(title=title, corner=corner, columns=headings, rows=(*rows,), notes=(*notes,))


def rankings_table(figures: Data, corner: str = "held out", *notes: str) -> Table:
    """Return `RetrievalFigures`: by chance and by every ranking, with more notes."""
    found = _rankings(figures)
    if figures["image_to_text"] is not None:
        found["pictures to captions"] = figures["image_to_text"]
    rows = []
    for name, label in RANKINGS.items():
        chance = _chance(figures) if name == "r1" else None
        rows.append((label, (chance, *(named_figure(name, one[name]) for one in found.values()))))
    headings, notes = ("chance", *found), (_searched(figures), *notes)
    return Table(title=PEOPLE_FOUND, corner=corner, columns=headings, rows=(*rows,), notes=notes)


def transfer_table(found: Data) -> Table:
    """Return R@1 and mAP of each model on each dataset, of `evaluate_transfer`."""
    kinds = [given.partition(":")[0] for given in found["splits"]]
    short = [g if kinds.count(k) > 1 else k for k, g in zip(kinds, found["splits"], strict=True)]
    rows, keys = [], ("r1", "map")
    for name, by_data in found["figures"].items():
        last = [one["reranked"] or one["contrastive"] for one in by_data.values()]
        cells = (named_figure(key, ranking[key]) for ranking in last for key in keys)
        rows.append((seeded(name, found["seeds"][name]), tuple(cells)))
    told = zip(short, found["splits"].values(), by_data.values(), strict=True)
    notes = tuple(f"{name}, {SPLITS[split]}: {_searched(one)}" for name, split, one in told)
    headings = tuple(f"{name} {RANKINGS[key]}" for name in short for key in keys)
    title = "Are the right people found in other datasets?"
    return Table(title=title, corner="run", columns=headings, rows=tuple(rows), notes=notes)


def seeded(name: str, seed: int | None) -> str:
    """Return a run's name with its seed, where that is known."""
    return name if seed is None else f"{name} (seed {seed})"


def before_after_table(before: Data, after: Data) -> Table:
    """Return R@1, R@5 and mAP from `RetrievalFigures` before and after, by both rankings."""
    names = ("r1", "r5", "map")
    rows: list[Row] = [("chance", (_chance(after),))]
    for when, figures in (("before", before), ("after", after)):
        for ranking, found in _rankings(figures).items():
            cells = tuple(named_figure(name, found[name]) for name in names)
            rows.append((f"{when}, {ranking}", cells))
    headings = tuple(RANKINGS[name] for name in names)
    notes = (_searched(after, " never seen in training"),)
    return Table(title=PEOPLE_FOUND, columns=headings, rows=tuple(rows), notes=notes)


def spread_table(spread: Mapping[str, Data], seeds: Sequence[int | None]) -> Table:
    """Return mean and standard deviation over runs, from a `Spread` by ranking and figure."""
    rows = []
    for name, label in RANKINGS.items():
        found = (figures[name] for figures in spread.values())
        values = (f"{100 * f['mean']:.1f}% +- {100 * f['deviation']:.1f}" for f in found)
        rows.append((label, tuple(Figure(value=value) for value in values)))
    known = ", ".join("unknown" if seed is None else str(seed) for seed in seeds)
    notes = (f"+- one standard deviation over the runs; their seeds: {known}",)
    corner, headings = f"mean of {len(seeds)} runs", tuple(RANKED_BY[name] for name in spread)
    return Table(corner=corner, columns=headings, rows=tuple(rows), notes=notes)


def _rankings(figures: Data) -> dict[str, Any]:
    found = {"by similarity": figures["contrastive"]}
    if figures["reranked"] is not None:
        found[f"best {figures['rerank']} by matching"] = figures["reranked"]
    return found


def _chance(figures: Data) -> Figure:
    return Figure(value=f"{100 * figures['chance']:.2f}%")


def _searched(figures: Data, seen: str = "") -> str:
    persons, pictures = figures["num_persons"], counted(figures["num_images"], "picture")
    # Where each has one picture, a group is a picture, and nobody needs to be a person.
    whose = "" if persons == figures["num_images"] else f" of {counted(persons, 'person')}"
    captions = f"{counted(figures['num_texts'], 'caption')}{whose}{seen}"
    note = interval_note(persons, "persons" if whose else "pictures")
    return f"{captions} against {pictures}; {note}"


def _flatten(value: Any, path: tuple[str, ...]) -> list[tuple[tuple[str, ...], Figure]]:
    """Return every number and interval within plain data, by its path of names."""
    if isinstance(value, Mapping):
        return [one for name, item in value.items() for one in _flatten(item, (*path, str(name)))]
    if isinstance(value, int) and not isinstance(value, bool):
        return [(path, Figure(value=f"{value:,}"))]
    number, *ends = value if isinstance(value, list | tuple) and len(value) == 3 else [value]
    known = all(isinstance(end, float | int | None) for end in ends)
    if not known or isinstance(number, bool) or not isinstance(number, float | int):
        return []
    share = any(part in SHARES for part in path)
    return [(path, figure(value, share=share, signed="difference" in path))]
