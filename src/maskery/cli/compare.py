"""`maskery compare`."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from maskery.cli.figures import figure
from maskery.cli.main import parse, prepare_output, print_json, set_up_logging, table
from maskery.core.system import quick_imports
from maskery.evaluation.intervals import interval_note
from maskery.runs.frame.run_folder import write_text

if TYPE_CHECKING:
    from maskery.evaluation.text.comparison import Row

SHOWN = {"loss": "loss (nats)", "top1": "top-1", "top5": "top-5"}


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """The forms of a comparison."""

    csv: Path | None = None
    """Also write the figures into this file, one line a row of the table."""
    page: Path | None = None
    """Also write one self-contained page, with the runs' held-out curves over one another."""
    json: bool = False
    """Print JSON on standard output."""

    def check(self) -> None:
        """Refuse files that cannot be written, before anything is computed."""
        for flag, path in (("--csv", self.csv), ("--page", self.page)):
            if path is not None:
                prepare_output(path, flag)


@dataclass(frozen=True, kw_only=True)
class Compare(Outputs):
    """Compare text runs that were measured on the same held-out text and masks.

    Shows the settings that differ, held-out figures with 95% intervals, and each run's difference
    to the best one, paired by example. Runs that differ in the seed alone become one row: mean and
    standard deviation over seeds.

    Examples:
      maskery compare runs/notes-minilm runs/notes-minilm-2
      maskery compare runs/notes-* --against runs/notes-minilm --page compared.html
    """

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN ...")]
    """Folders of finished text runs."""
    against: Path | None = None
    """The run that the others are compared with. Default: that of the lowest held-out loss."""


def main(arguments: Sequence[str]) -> int:
    """Parse, compare, report."""
    wanted = parse(Compare, "compare", arguments)
    set_up_logging(quiet=True)
    wanted.check()
    with quick_imports():
        from maskery.runs.text.compare import compare_folders
    show(compare_folders(wanted.runs, wanted.against), wanted)
    return 0


def show(rows: Sequence[Row], outputs: Outputs) -> None:
    """Print a comparison, and write it into the files that were named."""
    notes = notes_of(rows)
    if outputs.csv is not None:
        write_text(outputs.csv, as_csv(rows))
    if outputs.page is not None:
        from maskery.report.comparison import comparison_page

        write_text(outputs.page, comparison_page(rows, notes))
    if outputs.json:
        print_json({"against": reference(rows).name, "rows": [asdict(row) for row in rows]})
        return
    print("\n".join([table([heading(rows), *(cells(row) for row in rows)]), *notes]))


def reference(rows: Sequence[Row]) -> Row:
    """Return the row that the others are compared with."""
    return next(row for row in rows if not row.difference)


def notes_of(rows: Sequence[Row]) -> list[str]:
    """Return what a reader must know of the table, a line each."""
    scores = rows[0].scores
    notes = [
        f"{scores.masked_tokens:,} masked tokens of {scores.examples:,} examples; "
        f"{interval_note(scores.examples)}",
        f"difference: each row minus {reference(rows).name}, paired by example",
    ]
    if any(row.deviation for row in rows):
        notes.append("(+N) and ±: mean and standard deviation over seeds, N+1 of them")
    return notes


def heading(rows: Sequence[Row]) -> list[str]:
    """Return the headings of `cells`."""
    changes = [f"difference in {label}" for label in ("loss", "top-1")]
    return ["run", *rows[0].settings, "seed", *SHOWN.values(), *changes]


def cells(row: Row) -> list[str]:
    """Return one line of the table."""
    own = [figure(name, getattr(row.scores, name)) for name in SHOWN]
    for i, (name, deviation) in enumerate(row.deviation.items()):
        own[i] += f" ±{deviation:.3f}" if name == "loss" else f" ±{100 * deviation:.1f}"
    change = [figure(n, row.difference[n], signed=True) for n in ("loss", "top1") if row.difference]
    settings = [setting(value) for value in row.settings.values()]
    return [row.name, *settings, " ".join(map(str, row.seeds)), *own, *(change or ["", ""])]


def setting(value: Any) -> str:
    """Return the value of a setting for people: of paths their last part."""
    if isinstance(value, list):
        return ", ".join(map(setting, value))
    return "-" if value is None else str(value).rpartition("/")[2] or str(value)


def as_csv(rows: Sequence[Row]) -> str:
    """Return all figures as CSV; unknown ends of intervals are empty."""
    lines = []
    for row in rows:
        line = {"run": " ".join(row.runs), "seed": " ".join(map(str, row.seeds)), **row.settings}
        found = {name: getattr(row.scores, name) for name in (*SHOWN, "perplexity")}
        found |= {f"difference_{name}": value for name, value in row.difference.items()}
        for name, (value, low, high) in found.items():
            line |= {name: value, f"{name}_low": low, f"{name}_high": high}
        line |= {f"{name}_deviation": value for name, value in row.deviation.items()}
        lines.append({key: "" if value != value else value for key, value in line.items()})
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(dict.fromkeys(key for line in lines for key in line)))
    writer.writeheader()
    writer.writerows(lines)
    return stream.getvalue()
