"""`maskery quickstart` and `maskery quickstart person-search`."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from maskery.cli.console import parse, print_json, set_up_logging, table
from maskery.cli.figures import retrieval_before_after, scores_table
from maskery.cli.probe import describe
from maskery.cli.train import finish_report
from maskery.core.errors import CheckpointError
from maskery.core.system import quick_imports


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
    """Run `maskery quickstart`."""
    wanted = parse(Quickstart, "quickstart", arguments)
    set_up_logging(quiet=wanted.json)
    clear_folder(wanted.output, overwrite=wanted.overwrite)
    with quick_imports():
        from maskery.runs.text.quickstart import run_quickstart

    outcome = run_quickstart(wanted.output, progress=not wanted.json)
    result = outcome.result
    if wanted.json:
        fills = [[asdict(before), asdict(after)] for before, after in outcome.fills]
        print_json({**result.to_json(), "as_loaded": asdict(outcome.as_loaded), "fills": fills})
    else:
        show(outcome)
    finish_report(result.folder)
    return 0


def show(outcome: Any) -> None:
    """Print the figures and fills of a `QuickstartResult`."""
    result = outcome.result
    columns = {"as loaded": outcome.as_loaded, "before": result.before, "after": result.after}
    print(scores_table(columns, result.difference))
    print(
        "as loaded: with a random prediction head; before: with the head that training starts "
        "from; difference: after minus before"
    )
    print(f"\n{describe(result.vectors)}\nverdict: {result.verdict}")
    for before, after in outcome.fills:
        rows = [["before", "", "after", ""]]
        for one, other in zip(before.masks[0], after.masks[0], strict=True):
            cells = ((fill.token, f"{100 * fill.probability:.1f}%") for fill in (one, other))
            rows.append([cell for pair in cells for cell in pair])
        print(f"\n{before.text}\n{table(rows)}")
    print(f"\nthe model is in {result.folder / 'model'}; try it:")
    print(f'  maskery fill {result.folder} "The [MASK] of a function is its name."')
    print(f"  maskery evaluate {result.folder}")


@dataclass(frozen=True, kw_only=True)
class QuickstartPersonSearch:
    """Draw people and learn to find them by their descriptions: ten minutes on two cores.

    Needs the `vision` extra and no network. Prints R@1 on people never seen in training, before
    and after, by similarity and ranked anew by matching, beside chance, and draws five searches.

    Examples:
      maskery quickstart person-search
      maskery quickstart person-search --output /tmp/people --overwrite
    """

    output: Path = Path("runs/quickstart-person-search")
    """Where the people and the run folder go."""
    overwrite: bool = False
    """Replace an earlier quickstart in that folder."""
    json: bool = False
    """Print the result as JSON on standard output."""


def person_search(arguments: Sequence[str]) -> int:
    """Run `maskery quickstart person-search`."""
    wanted = parse(QuickstartPersonSearch, "quickstart person-search", arguments)
    set_up_logging(quiet=wanted.json)
    clear_folder(wanted.output, overwrite=wanted.overwrite, mark="people/drawn_people.json")
    from tqdm import tqdm

    with quick_imports():
        from maskery.runs.person_search.quickstart import run_person_search_quickstart

    with tqdm(desc="drawing", unit="picture", leave=False, disable=wanted.json) as bar:

        def draw_progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)
            if done == total:
                bar.close()

        outcome = run_person_search_quickstart(
            wanted.output, draw_progress=draw_progress, progress=not wanted.json
        )
    before, after = outcome.before.figures, outcome.after.figures
    if wanted.json:
        document: dict[str, Any] = outcome.result.to_json()
        document |= {"before": asdict(before), "after": asdict(after)}
        print_json({**document, "picture": str(outcome.picture), "seconds": outcome.seconds})
        return 0
    print(retrieval_before_after(before, after))
    minutes = outcome.seconds / 60
    print(f"{minutes:.1f} minutes in all; five searches are drawn in {outcome.picture}")
    folder = outcome.result.folder
    print(f"the model is in {folder / 'model'}; try it:")
    print(
        f"  maskery search {folder} --gallery {wanted.output / 'people' / 'imgs'} "
        f'"a woman in a red coat"'
    )
    return 0


def clear_folder(output: Path, *, overwrite: bool, mark: str = "python_reference.txt") -> None:
    """Refuse a folder with something in it, or remove an earlier quickstart.

    Args:
        output: The folder.
        overwrite: Remove an earlier quickstart.
        mark: The file that an earlier quickstart left in it.

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
