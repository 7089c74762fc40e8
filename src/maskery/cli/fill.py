"""`maskery fill`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from maskery.cli.main import Command, percent, table
from maskery.core.errors import ConfigError
from maskery.core.ranges import Count, check_ranges
from maskery.core.system import quick_imports

if TYPE_CHECKING:
    from maskery.evaluation.text.fill import Filling


@dataclass(frozen=True, kw_only=True)
class Fill(Command):
    """Fill the [MASK]s of a sentence.

    Examples:
      maskery fill runs/meditations-minilm "The [MASK] of the universe is change."
      maskery fill bert-base-uncased "Paris is the [MASK] of France." --words capital heart
      maskery fill runs/a "He [MASK] the [MASK]." --top-k 10 --json
      maskery fill runs/people "A woman in a [MASK] coat." --image people/imgs/000/000001_00.jpg
    """

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """A run folder, a model folder or a hub name."""
    text: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="SENTENCE ...")]
    """Sentences with one or more [MASK] each."""
    image: Path | None = None
    """A picture to look at, for a model that maskery train pairs or convert has written."""
    top_k: Count = 5
    """Candidates for each mask, and joint completions."""
    words: tuple[str, ...] = ()
    """Words whose probability as they would stand at the first mask is wanted."""
    pieces: bool = False
    """Also offer tokens that cannot stand alone there, such as ##ef."""
    beams: Count = 10
    """Partial fillings that the joint search of several masks keeps."""

    def __post_init__(self) -> None:
        if not self.text:
            raise ConfigError('no sentence is given: add one, such as "The [MASK] is red."')
        check_ranges(self)

    def execute(self) -> None:
        """Fill every sentence."""
        with quick_imports():
            from maskery.runs.shortcuts import open_filler

        filler = open_filler(self.model, self.image)
        fillings = [
            filler.fill(
                text, top_k=self.top_k, words=self.words, beams=self.beams, pieces=self.pieces
            )
            for text in self.text
        ]
        self.answer(fillings, "\n\n".join(map(describe, fillings)))


def describe(filling: Filling) -> str:
    """Return a filling for people."""
    blocks = [filling.text]
    for number, candidates in enumerate(filling.masks, 1):
        rows = [[c.token, percent(c.probability)] for c in candidates]
        heading = f"mask {number}:\n" if len(filling.masks) > 1 else ""
        blocks.append(heading + table(rows))
    if filling.completions:
        rows = [[c.text, f"{100 * math.exp(c.log_probability):.2f}%"] for c in filling.completions]
        blocks.append("together:\n" + table(rows))
    if filling.words:
        rows = [[w.word, f"{100 * w.probability:.3g}%", " ".join(w.pieces)] for w in filling.words]
        blocks.append("asked for:\n" + table(rows))
    return "\n".join(blocks)
