"""Pictures of one colour, with captions that name it, written as JSONL beside the images."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo
from transformers import BertTokenizer

COLOURS = {
    "red": (220, 20, 20),
    "green": (20, 200, 20),
    "blue": (20, 20, 220),
    "white": (250, 250, 250),
}


def save_tiny_pairs(
    folder: Path, count: int = 24, *, persons: bool = False, first: int = 0
) -> Path:
    """Write `count` pictures, two captions each; with persons, three pictures show each.

    No two files of a folder have the same bytes; those of two folders have, unless `first` differs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(count):
        name, colour = list(COLOURS.items())[number % len(COLOURS)]
        shade = tuple(max(0, value - number % 7) for value in colour)
        own = PngInfo()
        own.add_text("number", str(first + number))
        Image.new("RGB", (16, 16), shade).save(folder / f"{number:03d}.png", pnginfo=own)
        row: dict[str, object] = {
            "image": f"{number:03d}.png",
            "caption": [f"this is a {name} square of paper", f"the sheet of paper is all {name}"],
        }
        if persons:
            row["person"] = number // 3
        rows.append(json.dumps(row))
    path = folder / "pairs.jsonl"
    path.write_text("\n".join(rows) + "\n", "utf-8")
    return path


def new_tokenizer() -> BertTokenizer:
    """One token for each word of the captions."""
    words = ["this", "is", "a", "square", "of", "paper", "the", "sheet", "all", *COLOURS]
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    return BertTokenizer(vocab={piece: n for n, piece in enumerate(pieces)}, model_max_length=64)
