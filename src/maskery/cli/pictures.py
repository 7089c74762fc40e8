"""`maskery search` and `maskery explain`: commands that look at pictures."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from maskery.cli.main import Command
from maskery.cli.output import check_ending, percent, prepare_outputs, shown, table
from maskery.core.errors import ConfigError, counted
from maskery.core.ranges import Count, Range
from maskery.core.system import quick_imports

if TYPE_CHECKING:
    from PIL.Image import Image

    from maskery.evaluation.image_text.explain import Explanation
    from maskery.evaluation.retrieval.search import Hit

    Found = tuple[str, Sequence[Hit]]  # A query and its pictures

HEIGHT = 256  # pixels of each picture of a strip
WHOLE = "all words"  # stands in a word's place where a caption is explained as a whole


@dataclass(frozen=True, kw_only=True)
class Search(Command):
    """Find pictures in a folder by describing them, or by a picture that they should be like.

    The folder is indexed first, which is kept: later searches encode only what is new or changed.

    Examples:
      maskery search runs/people --gallery photos "a woman in a red coat"
      maskery search runs/people --gallery photos "a man with a backpack" --sheet found.png
      maskery search runs/people --gallery photos "a red coat" "a blue hat" --top 5 --json
      maskery search runs/people --gallery photos "in the rain" --like person.jpg
    """

    quiet = False
    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """A run or model folder of an image-text model, or a CLIP or SigLIP (folder or hub name)."""
    text: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="QUERY ...")] = ()
    """Descriptions of what is looked for, each in quotes."""
    gallery: Path
    """The folder of pictures; folders inside it count, names that start with a dot do not."""
    like: Path | None = None
    """Find what is most like this picture, and with descriptions what is like both."""
    top: Count = 10
    """Pictures to show for each query."""
    rerank: Annotated[int | None, Range(0)] = None
    """The most similar pictures, which the matching head looks at again with the words; 0: none.
    Time grows with it. Default: the model's own setting, or 128."""
    sheet: Path | None = None
    """Also draw the pictures found on a contact sheet, into this PNG file."""
    rehash: bool = False
    """Read every file again, rather than trust those whose size and time are as they were."""
    batch_images: Count = 32
    """Pictures encoded at once."""
    cache_dir: Path | None = None
    """The folder of the index. Default: $MASKERY_CACHE, or ~/.cache/maskery."""

    def __post_init__(self) -> None:
        if not self.text and self.like is None:
            fix = 'add one, such as "a woman in a red coat", or --like FILE'
            raise ConfigError(f"no query is given: {fix}")
        if self.like is not None and self.rerank:
            problem = f"--rerank {self.rerank} looks at words alone, and --like at a picture"
            raise ConfigError(f"{problem}; leave out one of them")
        super().__post_init__()
        check_ending(self.sheet, "--sheet", ".png")

    def execute(self) -> None:
        """Index the folder, search it, and draw the sheet."""
        with quick_imports():
            from maskery.data.tokenise import default_cache_dir
            from maskery.evaluation.retrieval.search import open_gallery, picture_features, search
            from maskery.runs.person_search.evaluate import open_for_retrieval

        opened = open_for_retrieval(self.model)
        for text in self.text:
            opened.encode_query(text)  # what is wrong with one is said before an hour of indexing
        like = None if self.like is None else picture_features(opened, self.like)
        prepare_outputs(sheet=self.sheet)
        gallery = open_gallery(
            opened,
            self.gallery,
            cache_dir=self.cache_dir or default_cache_dir(),
            batch_images=self.batch_images,
            rehash=self.rehash,
            progress=not self.json,
        )
        results = search(opened, gallery, self.text, like=like, top=self.top, rerank=self.rerank)
        picture = "" if self.like is None else f"like {shown(self.like)}"
        asked = [", ".join(filter(None, (text, picture))) for text in self.text or ("",)]
        found = list(zip(asked, results, strict=True))  # pairs: a query may be given twice
        changes, parts = gallery.changes, [counted(len(gallery), "picture")]
        counts = {"newly encoded": changes.encoded, "gone": changes.removed}
        parts += [f"{count:,} {what}" for what, count in counts.items() if count]
        if gallery.troubles:
            parts.append(f"{len(gallery.troubles):,} skipped; the first: {gallery.troubles[0]}")
        blocks = [", ".join(parts)]
        for text, hits in found:
            rows = [["", "score", "match", "similarity", "picture"]]
            for number, hit in enumerate(hits, 1):
                score = "" if hit.score is None else f"{hit.score:.2f}"
                row = [score, percent(hit.match), f"{hit.similarity:.3f}", hit.path]
                rows.append([f"{number}", *row])
            if all(hit.score is None for hit in hits):
                rows = [row[:1] + row[3:] for row in rows]
            blocks.append(f"{text}\n{table(rows, left=(0, len(rows[0]) - 1))}")
        if self.sheet is not None:
            save_sheet(self.sheet, self.gallery, found)
            blocks.append(f"contact sheet: {shown(self.sheet)}")
        data = {
            "gallery": self.gallery,
            "pictures": len(gallery),
            "changes": changes,
            "skipped": list(gallery.troubles),
            "results": [{"query": text, "hits": hits} for text, hits in found],
            "sheet": self.sheet,
        }
        self.answer(data, "\n\n".join(blocks))


def save_sheet(path: Path, folder: Path, found: Sequence["Found"]) -> None:
    """Draw the pictures found, a row for each query."""
    from maskery.data.gallery import read_picture
    from maskery.data.images.drawing import Cell, SheetRow, draw_sheet

    rows = []
    for text, hits in found:
        cells = []
        for number, hit in enumerate(hits, 1):
            # What they are sorted by, so that the order explains itself.
            score = f"{hit.similarity:.3f}"
            if hit.score is not None:
                score = f"{hit.score:.2f} ({percent(hit.match)})"
            image = read_picture(folder, hit.path).load()
            cells.append(Cell(image=image, label=(f"{number}.  {score}", hit.path)))
        rows.append(SheetRow(heading=text, cells=cells))
    draw_sheet(rows).save(path)


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
    strength: Annotated[float, Range(0, 1)] = 0.65
    """How much of the picture the colour covers at its hottest place: from 0, none, to 1, all."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.caption.strip():
            raise ConfigError('the caption is empty: describe the picture, as "a red coat"')
        check_ending(self.output, "--output", ".png")

    def execute(self) -> None:
        """Write the strip, and print the places."""
        with quick_imports():
            from maskery.evaluation.image_text.explain import explain
            from maskery.evaluation.image_text.opening import load_picture
            from maskery.runs.person_search.evaluate import open_for_retrieval

        opened = open_for_retrieval(self.model)
        image = load_picture(self.image)
        prepare_outputs(output=self.output)
        target = None if self.target == "auto" else self.target
        explanation = explain(opened, image, self.caption, target=target, layer=self.layer)
        draw(explanation, image, self.strength).save(self.output)
        data = {**asdict(explanation), "strip": self.output}
        self.answer(data, f"{places(explanation)}\nstrip: {shown(self.output)}")


def draw(explanation: "Explanation", image: "Image", strength: float) -> "Image":
    """Draw the picture, and again for each word with its heat."""
    from maskery.data.images.drawing import Cell, SheetRow, draw_sheet, heat_over, scaled

    small = image.resize(scaled(image, HEIGHT))
    note = "" if explanation.match is None else f"match {percent(explanation.match)}"
    cells = [Cell(image=small, label=(note,))]
    for word in explanation.words:
        said = "" if word.probability is None else f"  {100 * word.probability:.0f}%"
        name = WHOLE if explanation.whole else word.word
        cells.append(Cell(image=heat_over(small, word.heat, strength), label=(f"{name}{said}",)))
    return draw_sheet([SheetRow(heading=explanation.caption, cells=cells)], height=HEIGHT)


def places(explanation: "Explanation") -> str:
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
