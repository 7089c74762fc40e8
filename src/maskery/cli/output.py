"""What commands print and write: JSON, tables as text, and the files that flags name."""

import csv
import io
import json
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maskery.core.errors import ConfigError, explained

if TYPE_CHECKING:
    from maskery.evaluation.tables import Table


def print_json(data: Any) -> None:
    """Print one JSON document; numbers that JSON lacks become null."""
    from maskery.runs.frame.run_folder import without_nan

    def plain(value: Any) -> Any:
        return shown(value) if isinstance(value, Path) else value.tolist()

    print(json.dumps(without_nan(data), indent=1, ensure_ascii=False, default=plain))


def table(rows: Sequence[Sequence[str]], left: Collection[int] = (0,)) -> str:
    """Return rows with aligned columns: some to the left, as texts are, the others to the right."""
    columns = []
    # Names of files may hold line ends, and a row is a line.
    lines = [[" ".join(cell.splitlines()) for cell in row] for row in rows]
    for index, column in enumerate(zip(*lines, strict=True)):
        align = str.ljust if index in left else str.rjust
        columns.append([align(cell, max(map(len, column))) for cell in column])
    return "\n".join("  ".join(cells).rstrip() for cells in zip(*columns, strict=True))


def as_text(shown: "Table", *, titled: bool = False) -> str:
    """Return a table of figures with its notes below, and if wanted with its title above."""
    heading = [shown.title] if titled and shown.title else []
    return "\n".join([*heading, table(shown.lines()), *shown.notes])


def as_texts(tables: Iterable["Table"]) -> str:
    """Return several tables with their titles."""
    return "\n\n".join(as_text(one, titled=True) for one in tables)


def figures_csv(lines: Iterable[Mapping[str, Any]], delimiter: str = ",") -> str:
    """Return figures as CSV, an interval in three columns; what is not known is empty."""
    rows = []
    for line in lines:
        row: dict[str, Any] = {}
        for name, value in line.items():
            ends = value if hasattr(value, "_fields") else (value,)
            row |= zip((name, f"{name}_low", f"{name}_high"), ends, strict=False)
        rows.append({name: "" if value != value else value for name, value in row.items()})
    stream = io.StringIO()
    names = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(stream, names, delimiter=delimiter, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def percent(share: float | None) -> str:
    """Return a share in percent; nothing where it is not known."""
    return "" if share is None else f"{100 * share:.1f}%"


def prepare_outputs(**paths: Path | None) -> None:
    """Make the folders of files that flags name, by flag, and check that each can be written."""
    for flag, path in paths.items():
        if path is None:
            continue
        problem = f"--{flag} is '{path}', and no file can be written there"
        with explained(problem, "name another", kind=ConfigError):
            path.parent.mkdir(parents=True, exist_ok=True)
            there = path.exists()
            path.open("ab").close()
            if not there:
                path.unlink()


def check_ending(path: Path | None, flag: str, *endings: str) -> None:
    """Refuse a file that would be written, if one is named, with another ending."""
    if path is not None and path.suffix.lower() not in endings:
        raise ConfigError(f"{flag} is '{path}': end it with {' or '.join(endings)}")


def shown(path: Path) -> str:
    """Return a path for print and JSON, with bytes that are no UTF-8 escaped."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")
