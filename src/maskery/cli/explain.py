"""`maskery explain`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from maskery.cli.main import Command, check_png, percent, prepare_output, shown, table
from maskery.core.errors import ConfigError
from maskery.core.system import quick_imports

if TYPE_CHECKING:
    from PIL.Image import Image

    from maskery.evaluation.image_text.explain import Explanation

HEIGHT = 256
# Stands in a word's place where a caption is explained as a whole.
WHOLE = "all words"


@dataclass(frozen=True, kw_only=True)
class Explain(Command):
    """Show where a model looks for each word of a caption.

    Writes a strip of pictures, one for each word, with the places coloured that speak for the word:
    gradients of cross-attention, as ALBEF shows them.

    Examples:
      maskery explain runs/people --image photo.jpg "a woman in a red coat"
      maskery explain runs/people --image photo.jpg "a red coat" --output coat.png --target words
    """

    quiet = False
    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """A run folder or a model folder, of an image-text model."""
    caption: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="CAPTION")]
    """The description of the picture, in quotes."""
    image: Path
    """The picture."""
    output: Path = Path("explain.png")
    """The PNG file to write."""
    target: Literal["auto", "matching", "words"] = "auto"
    """matching: explain the match of words and picture; words: explain each word, masked, in its
    place; auto: matching, where its head was trained. With one fusion layer, matching is explained
    by one picture for all words; words needs a model trained with --mlm-weight."""
    layer: int | None = None
    """The fusion layer whose attention is taken, counted from 0. Default: the middle one."""

    def __post_init__(self) -> None:
        if not self.caption.strip():
            raise ConfigError('the caption is empty: describe the picture, as "a red coat"')
        check_png(self.output, "--output")

    def execute(self) -> None:
        """Write the strip, and print the places."""
        with quick_imports():
            from maskery.evaluation.image_text.explain import explain
            from maskery.evaluation.image_text.opening import load_picture
            from maskery.runs.person_search.settings import open_for_retrieval

        opened = open_for_retrieval(self.model)
        image = load_picture(self.image)
        prepare_output(self.output, "--output")
        target = None if self.target == "auto" else self.target
        explanation = explain(opened, image, self.caption, target=target, layer=self.layer)
        draw(explanation, image).save(self.output)
        self.answer(
            {**asdict(explanation), "strip": self.output},
            f"{describe(explanation)}\nstrip: {shown(self.output)}",
        )


def draw(explanation: Explanation, image: Image) -> Image:
    """Draw the picture, and again for each word with its heat."""
    from maskery.data.images.drawing import Cell, SheetRow, draw_sheet, heat_over

    small = image.resize((max(1, round(image.width * HEIGHT / image.height)), HEIGHT))
    note = "" if explanation.match is None else f"match {percent(explanation.match)}"
    cells = [Cell(image=small, label=(note,))]
    for word in explanation.words:
        said = "" if word.probability is None else f"  {100 * word.probability:.0f}%"
        name = WHOLE if explanation.whole else word.word
        cells.append(Cell(image=heat_over(small, word.heat), label=(f"{name}{said}",)))
    return draw_sheet([SheetRow(heading=explanation.caption, cells=cells)], height=HEIGHT)


def describe(explanation: Explanation) -> str:
    """Return what was explained, and the place of each word's heat."""
    lines = []
    if explanation.match is not None:
        lines.append(f"words and picture match: {percent(explanation.match)}")
    rows = [["word", "probability", "hottest, from left, from top"]]
    for word in explanation.words:
        # The middle of the hottest patch, as shares of width and height.
        down, across = divmod(int(word.heat.argmax()), word.heat.shape[1])
        left, top = (across + 0.5) / word.heat.shape[1], (down + 0.5) / word.heat.shape[0]
        name = WHOLE if explanation.whole else word.word
        rows.append([name, percent(word.probability), f"{100 * left:.0f}%, {100 * top:.0f}%"])
    return "\n".join([*lines, table(rows)])
