"""Labelled texts, labelled words and pairs of texts, from the files people keep them in."""

import csv
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any, Literal, Self

import fsspec

from maskery.core.errors import DataError, explained
from maskery.data.corpus.files import asked, one_file

Kind = Literal["labels", "tokens", "pairs"]
SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".conll", ".conllu", ".txt")
JSON_STARTS = ('{"', '{ "', "[{")  # no word begins so


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """The examples of a probe."""

    kind: Kind  # A class for each text, a class for each word, or pairs that belong together
    texts: tuple[str, ...]  # Or the first of each pair; for `tokens`, the words joined by spaces
    labels: tuple[str, ...] = ()  # One a text; the second of each pair; empty for `tokens`
    words: tuple[tuple[str, ...], ...] = ()  # For `tokens`, each sentence's words
    tags: tuple[tuple[str, ...], ...] = ()  # For `tokens`, a label for each of these words
    skipped: Mapping[str, int]  # Rows that were left out, by reason

    def take(self, places: Sequence[int]) -> Self:
        """Return some of the examples."""
        columns = {name: getattr(self, name) for name in ("texts", "labels", "words", "tags")}
        some: Any = {n: tuple(c[place] for place in places) for n, c in columns.items() if c}
        return replace(self, **some)


def read_labelled(
    path: Path | str, kind: Kind = "labels", *, text_column: str = "text", label_column: str = ""
) -> Labelled:
    """Read `.jsonl`, `.csv`, `.tsv` or `.parquet`, also compressed, or CoNLL columns for `tokens`.

    The file may lie here or at an address. The columns are by default `text`, with `label` or, for
    the second text of a pair, `pair`. Labels that are no classes are a DataError.
    """
    path = one_file(path, "a text and a label in each row")
    if kind == "tokens":
        return _read_conll(path)
    label_column = label_column or ("pair" if kind == "pairs" else "label")
    texts, labels, numbers = [], [], 0
    skipped: Counter[str] = Counter()
    for row in _rows(path):
        for name, flag in ((text_column, "--text-column"), (label_column, "--label-column")):
            if name not in row:
                problem = f"'{path}' has no column '{name}' (it has {', '.join(map(str, row))})"
                raise DataError(f"{problem}; name the right one by {flag}")
        text, label = _cell(row[text_column]), _cell(row[label_column])
        if not text:
            skipped["without a text"] += 1
        elif not label:
            skipped["without a label" if kind == "labels" else "without a second text"] += 1
        else:
            numbers += _is_fraction(row[label_column])
            texts.append(text)
            labels.append(label)
    if kind == "labels" and numbers > len(labels) / 2:
        problem = f"the labels in column '{label_column}' of '{path}' are numbers on a scale"
        why = f"(such as {labels[0]}), and a probe asks for classes"
        raise DataError(f"{problem} {why}; cut them into ranges first")
    return Labelled(kind=kind, texts=tuple(texts), labels=tuple(labels), skipped=dict(skipped))


def _rows(path: Path) -> Iterator[Mapping[str, Any]]:
    kind = next((suffix for suffix in PurePath(path.name).suffixes[::-1] if suffix in SUFFIXES), "")
    if kind == ".parquet":
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile

        problem = f"'{path}' is no readable Parquet file"
        with explained(problem, "", OSError, ArrowException), path.open("rb") as file:
            for batch in ParquetFile(file).iter_batches():
                yield from batch.to_pylist()
        return
    with _opened(path) as file:
        if kind in (".jsonl", ".json"):
            yield from _json_rows(path, file)
        elif kind in (".csv", ".tsv"):
            yield from _table_rows(path, file, "\t" if kind == ".tsv" else ",")
        else:
            known = ".jsonl, .csv, .tsv and .parquet files"
            raise DataError(f"'{path}' is of no known kind; labels are read from {known}")


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a file as text, unpacked if its suffix says so; `csv` wants line ends as they stand."""
    how = {"encoding": "utf-8-sig", "compression": "infer", "newline": ""}
    with asked(path):
        try:
            with fsspec.open(str(path), "rt", **how) as file:
                yield file
        except UnicodeDecodeError as error:
            raise DataError(f"'{path}' is not UTF-8 ({error.reason}); convert it first") from error


def _json_rows(path: Path, file: Any) -> Iterator[Mapping[str, Any]]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            problem = f"'{path}': line {number} is no JSON object of its own"
            raise DataError(f"{problem}; write one object a line") from error
        if not isinstance(row, dict):
            raise DataError(f"'{path}': line {number} is no JSON object with named columns")
        yield row


def _table_rows(path: Path, file: Any, delimiter: str) -> Iterator[Mapping[str, Any]]:
    # Tab-separated files as published have no quoting.
    quoting: Any = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
    rows = csv.reader(file, delimiter=delimiter, quoting=quoting)
    try:
        header = next(rows, [])
        for row in filter(any, rows):
            if len(row) != len(header):
                problem = f"'{path}': line {rows.line_num} has {len(row)} fields"
                raise DataError(f"{problem}, the heading has {len(header)}")
            yield dict(zip(header, row, strict=True))
    except csv.Error as error:
        raise DataError(f"'{path}': line {rows.line_num} is damaged ({error})") from error


def _cell(value: Any) -> str:
    """Return a value as text; empty where there is none."""
    return "" if value is None or value != value else str(value).strip()  # NaN is not itself


def _is_fraction(value: Any) -> bool:
    """Return True for a number that is not whole, as a scale has them and classes do not."""
    try:
        return not float(value).is_integer()
    except (TypeError, ValueError, OverflowError):
        return False


def _read_conll(path: Path) -> Labelled:
    """Read columns: a word first, its label last, a blank line between sentences."""
    sentences: list[list[tuple[str, str]]] = [[]]
    width = 0
    with _opened(path) as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                sentences.append([])
                continue
            # Comments of CoNLL-U ("#" alone may be a word), and the marks of CoNLL-2003
            if line.startswith(("# ", "#\t", "-DOCSTART-")):
                continue
            if line.startswith(JSON_STARTS):
                problem = f"'{path}': line {number} is JSON, and --kind tokens reads columns"
                fix = "write a word and its label on each line, and a blank line between sentences"
                raise DataError(f"{problem}; {fix}")
            columns = line.rstrip("\r\n").split("\t") if "\t" in line else line.split()
            width = width or len(columns)
            if len(columns) != width or width < 2:
                before = f"where the lines before it have {width}" if width > 1 else "not 2 or more"
                problem = f"'{path}': line {number} has {len(columns)} columns, {before}"
                rule = "each line needs a word first and its label last"
                raise DataError(f"{problem}; {rule}, and all lines as many columns")
            sentences[-1].append((columns[0], columns[-1]))
    kept = list(filter(None, sentences))
    words = tuple(tuple(word for word, _ in sentence) for sentence in kept)
    tags = tuple(tuple(tag for _, tag in sentence) for sentence in kept)
    texts = tuple(map(" ".join, words))
    return Labelled(kind="tokens", texts=texts, words=words, tags=tags, skipped={})
