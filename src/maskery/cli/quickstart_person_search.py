"""`maskery quickstart person-search`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from maskery.cli.console import parse, print_json, set_up_logging
from maskery.cli.figures import retrieval_before_after
from maskery.cli.quickstart import make_room
from maskery.core.startup import quick_imports


@dataclass(frozen=True, kw_only=True)
class QuickstartPersonSearch:
    """Draw people and learn to find them by what is said of them: ten minutes on two cores.

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


def main(arguments: Sequence[str]) -> int:
    """Parse, train, report."""
    wanted = parse(QuickstartPersonSearch, "quickstart person-search", arguments)
    set_up_logging(quiet=wanted.json)
    make_room(wanted.output, overwrite=wanted.overwrite, mark="people/drawn_people.json")
    from tqdm import tqdm

    with quick_imports():
        from maskery.runs.person_search.quickstart import run_person_search_quickstart

    with tqdm(desc="drawing", unit="picture", leave=False, disable=wanted.json) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)
            if done == total:
                bar.close()

        outcome = run_person_search_quickstart(
            wanted.output, draw_progress=show, progress=not wanted.json
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
