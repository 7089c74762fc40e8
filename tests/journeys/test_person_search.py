"""A person-search dataset as published: train on it, measure, find people by words, look why."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tiny_persons import save_cuhk

from maskery.cli.main import main
from maskery.models.image_text.sizes import ImageTextSizes
from maskery.runs.image_text import config as pairs_config

DATA = ("--dataset", "cuhk-pedes", "--root", "CUHK-PEDES")
SMALL = (
    *("--model", "scratch:tiny", "--vocab-size", "200", "--height", "16", "--width", "16"),
    *("--epochs", "25", "--batch-pairs", "16", "--itm-weight", "0.5", "--rerank", "6"),
)


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shape = {"image_size": (16, 16), "patch_size": 8, "image_layers": 1, "fusion_layers": 2}
    widths = {"width": 32, "num_heads": 2, "embed_dim": 16, "max_length": 24}
    monkeypatch.setitem(pairs_config.SIZES, "tiny", ImageTextSizes(**shape, **widths))


def test_people_are_found_by_their_descriptions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Shirts and trousers in six colours make 36 persons that differ.
    save_cuhk(tmp_path / "CUHK-PEDES", {"train": 24, "val": 6, "test": 6})

    def told(*command: str) -> Any:
        """Return what a command answers."""
        assert main([*command, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    told("train", "person-search", *DATA, *SMALL, "--output", "runs/people")
    (measured,) = told("evaluate", "runs/people")["figures"].values()
    # Chance is one in six; the colours of shirts are learnt first.
    assert measured["contrastive"]["r1"][0] > 0.5

    # Somebody of the training is described, and found among all: person 1, green above, red below.
    caption = "A person, in a green shirt and red trousers."
    found = told("search", "runs/people", "--gallery", "CUHK-PEDES/imgs", "--top", "6", caption)
    pictures = [hit["path"] for hit in found["results"][0]["hits"]]
    assert any(path.startswith("cam_a/001_") for path in pictures), pictures

    # Why: one map over the picture for each word.
    picture = ("--image", "CUHK-PEDES/imgs/cam_a/001_0.png", "--output", "why.png")
    explained = told("explain", "runs/people", caption, *picture)
    assert 0 <= explained["match"] <= 1
    assert len(explained["words"]) == len(caption.split())
    with Image.open(tmp_path / "why.png") as strip:
        assert strip.width > strip.height


def test_a_start_learnt_from_tar_shards_is_fine_tuned(tmp_path: Path) -> None:
    root = save_cuhk(tmp_path / "CUHK-PEDES", {"train": 8, "val": 2, "test": 2})
    rows = json.loads((root / "reid_raw.json").read_text("utf-8"))
    with tarfile.open("persons-000.tar", "w") as shard:
        for number, row in enumerate(rows):
            if row["split"] == "train":
                shard.add(root / "imgs" / row["file_path"], f"{number}.png")
                Path("caption.txt").write_text(row["captions"][0], "utf-8")
                shard.add("caption.txt", f"{number}.txt")
    small = (*SMALL[: SMALL.index("--epochs")], "--max-steps", "2")
    pairs = ["train", "pairs", "persons-*.tar", *small, "--itc-weight", "1"]
    assert main([*pairs, "--output", "start"]) == 0
    tuned = ["train", "person-search", *DATA, "--model", "start", "--max-steps", "1"]
    assert main([*tuned, "--output", "tuned"]) == 0
    # Its words are the start's.
    words = Path("tuned/model/tokenizer.json").read_bytes()
    assert words == Path("start/model/tokenizer.json").read_bytes()
