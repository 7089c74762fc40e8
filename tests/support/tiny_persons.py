"""Small person-search datasets in their published layouts: a few plain pictures of persons."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image
from transformers import BertTokenizer

COLOURS = {
    "red": (220, 20, 20),
    "green": (20, 200, 20),
    "blue": (20, 20, 220),
    "white": (250, 250, 250),
    "black": (10, 10, 10),
    "yellow": (230, 220, 20),
}


def records(
    splits: dict[str, int], *, images: int = 2, key: str = "file_path", first_id: int = 1
) -> list[dict[str, Any]]:
    """Annotations of `images` pictures of each person, two captions each."""
    rows, person = [], 0
    names = list(COLOURS)
    for split, count in splits.items():
        for _ in range(count):
            above, below = names[person % 6], names[person // 6 % 6]
            rows += [
                {
                    "split": split,
                    key: f"cam_a/{person:03d}_{number}.png",
                    "id": person + first_id,
                    "captions": [
                        f"A person, in a {above} shirt and {below} trousers.",
                        f"The {below} trousers go with shirt no {number} ({above})!",
                    ],
                    "processed_tokens": [["a"], ["b"]],
                }
                for number in range(images)
            ]
            person += 1
    return rows


def draw_images(folder: Path, rows: list[dict[str, Any]], key: str = "file_path") -> None:
    """A picture for each record: the upper half in one colour, the lower in another."""
    for number, row in enumerate(rows):
        words = row["captions"][0].split()
        above, below = COLOURS[words[4]], COLOURS[words[7]]
        image = Image.new("RGB", (16, 16), tuple(max(0, c - number % 5) for c in above))
        image.paste(below, (0, 8, 16, 16))
        image.paste((120, 120, 120), (0, 0, 4, 4))  # a picture differs from its mirror image
        path = folder / row[key]
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)


def save_cuhk(root: Path, splits: dict[str, int] | None = None, *, images: int = 2) -> Path:
    """A dataset in the layout of CUHK-PEDES."""
    rows = records(splits or {"train": 6, "val": 3, "test": 3}, images=images)
    draw_images(root / "imgs", rows)
    (root / "reid_raw.json").write_text(json.dumps(rows), "utf-8")
    return root


def person_tokenizer() -> BertTokenizer:
    """One token for each word of the cleaned captions."""
    words = [
        "a",
        "person",
        "in",
        "shirt",
        "and",
        "trousers",
        "the",
        "go",
        "with",
        "no",
        "0",
        "1",
        "2",
        "3",
        "4",
    ]
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words, *"01234", *COLOURS]
    return BertTokenizer(vocab={piece: n for n, piece in enumerate(pieces)}, model_max_length=64)
