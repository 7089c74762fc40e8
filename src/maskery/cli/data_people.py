"""`maskery data draw-people`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from maskery.cli.console import parse, print_json, set_up_logging
from maskery.people.config import PeopleConfig


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


def main(arguments: Sequence[str]) -> int:
    """Parse, draw, report."""
    wanted = parse(DrawPeople, "data draw-people", arguments)
    set_up_logging(quiet=wanted.json)
    from tqdm import tqdm

    from maskery.people.dataset import draw_people

    with tqdm(desc="drawing", unit="picture", leave=False, disable=wanted.json) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        summary = draw_people(wanted.out, wanted.people, show)
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
