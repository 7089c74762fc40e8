"""One caption a line, a record listed twice, and one record a picture are the same dataset."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_persons import draw_images, person_tokenizer, records, save_cuhk

from maskery.core.errors import DataError
from maskery.data.images.config import HALF_MEAN, HALF_STD, ViewConfig
from maskery.data.images.loading import Skipped
from maskery.data.pairs.batches import Pictures, ReadPairs, tokenise_captions
from maskery.data.person_search.batches import PersonSource
from maskery.data.person_search.config import PersonSearchDataConfig
from maskery.data.person_search.dataset import PersonSearchData, open_person_search
from maskery.evaluation.retrieval.retrieval_set import RetrievalSet

SPLITS = {"train": 4, "val": 2, "test": 2}
VIEW = ViewConfig(height=16, width=16, mean=HALF_MEAN, std=HALF_STD)


def lines_of(rows: list[dict[str, Any]], *, apart: bool) -> list[dict[str, Any]]:
    """The records as lines with image, caption and person; `apart`: one caption each."""
    return [
        {"image": row["file_path"], "caption": caption, "person": row["id"], "split": row["split"]}
        for row in rows
        for caption in (row["captions"] if apart else [row["captions"]])
    ]


def opened(root: Path, lines: list[dict[str, Any]]) -> PersonSearchData:
    path = root / "mine.jsonl"
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines), "utf-8")
    return open_person_search(PersonSearchDataConfig(dataset="jsonl", root=path))


def batches(data: PersonSearchData) -> list[dict[str, list[Any]]]:
    """Everything that two epochs of training read."""
    tokens = tokenise_captions(
        data.train, person_tokenizer(), Skipped("caption", "fail"), max_length=32
    )
    pictures = Pictures(data.train, "fail", near=(16, 16))
    source = PersonSource(
        ReadPairs(data.train, tokens, pictures, VIEW),
        batch_pairs=4,
        weak_pair_probability=0.5,
        seed=3,
    )
    return [
        {
            "image1": batch.image1.tolist(),
            "image2": batch.image2.tolist(),
            "text1": batch.text1.input_ids.tolist(),
            "text2": batch.text2.input_ids.tolist(),
            "ids": batch.text1.example_ids.tolist(),
            "persons": batch.person_ids.tolist(),
        }
        for epoch in range(2)
        for step in range(source.num_steps(epoch))
        for batch in source.micro_batches(epoch, step)
    ]


def test_one_caption_a_line_is_the_same_gallery_and_the_same_training(tmp_path: Path) -> None:
    rows = records(SPLITS)
    draw_images(tmp_path, rows)
    whole = opened(tmp_path, lines_of(rows, apart=False))
    apart = opened(tmp_path, lines_of(rows, apart=True))
    assert whole.notes == ()
    assert [len(part) for part in (apart.train, apart.val, apart.test or ())] == [8, 4, 4]
    assert "train: records that name the picture of an earlier one: 8;" in apart.notes[0]
    for split in ("train", "val", "test"):
        one, other = getattr(whole, split), getattr(apart, split)
        assert np.array_equal(one.ids, other.ids)
        assert np.array_equal(one.persons, other.persons)
        assert [pair.captions for pair in one] == [pair.captions for pair in other]
    assert batches(whole) == batches(apart)


def test_each_picture_is_in_the_gallery_once_however_its_path_is_written(tmp_path: Path) -> None:
    rows = records(SPLITS)
    draw_images(tmp_path, rows)
    lines = lines_of(rows, apart=True)
    for line in lines[1::2]:
        line["image"] = f"./{line['image']}".replace("cam_a/", "cam_a//./")
    # All first captions, then all second ones: the records of a picture do not follow each other.
    data = opened(tmp_path, lines[::2] + lines[1::2])
    tokens = tokenise_captions(
        data.val, person_tokenizer(), Skipped("caption", "fail"), max_length=32
    )
    pictures = Pictures(data.val, "fail", near=(16, 16))
    held_out = RetrievalSet(ReadPairs(data.val, tokens, pictures, VIEW))
    names = [data.val[index].image.name for index in held_out.gallery.tolist()]
    assert names == ["cam_a/004_0.png", "cam_a/004_1.png", "cam_a/005_0.png", "cam_a/005_1.png"]
    assert held_out.image_persons.tolist() == [0, 0, 1, 1]
    assert held_out.text_persons.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]


def test_a_record_listed_twice_counts_once(tmp_path: Path) -> None:
    root = save_cuhk(tmp_path, SPLITS)
    rows = json.loads((root / "reid_raw.json").read_text("utf-8"))
    again = rows[-1] | {"captions": [rows[-1]["captions"][1], "A person in white."]}
    (root / "reid_raw.json").write_text(json.dumps([*rows, rows[0], again]), "utf-8")
    data = open_person_search(PersonSearchDataConfig(dataset="cuhk-pedes", root=root))
    assert data.test is not None
    assert [len(data.train), len(data.test)] == [8, 4]
    assert len(data.train[0].captions) == 2
    assert data.test[3].captions[2:] == ("a person in white",)
    assert data.notes == (
        "train: records that name the picture of an earlier one: 1; each picture counts once, "
        "with the captions of all its records; captions left out that it had already: 2",
        "test: records that name the picture of an earlier one: 1; each picture counts once, "
        "with the captions of all its records; captions left out that it had already: 1",
    )


def test_what_one_record_lists_twice_stays(tmp_path: Path) -> None:
    root = save_cuhk(tmp_path, SPLITS)
    rows = json.loads((root / "reid_raw.json").read_text("utf-8"))
    rows[0]["captions"] = [rows[0]["captions"][0]] * 2
    (root / "reid_raw.json").write_text(json.dumps(rows), "utf-8")
    data = open_person_search(PersonSearchDataConfig(dataset="cuhk-pedes", root=root))
    assert len(data.train[0].captions) == 2
    assert data.notes == ()


def test_a_picture_of_two_persons_is_refused(tmp_path: Path) -> None:
    rows = records(SPLITS)
    draw_images(tmp_path, rows)
    lines = lines_of(rows, apart=True)
    lines[1] |= {"person": 77, "image": f"./{lines[1]['image']}"}
    with pytest.raises(DataError) as caught:
        opened(tmp_path, lines)
    message = str(caught.value)
    assert "'cam_a/000_0.png' is said to show person 1" in message
    assert "line 1) and person 77 (" in message
    assert "\n" not in message


def test_missing_pictures_are_counted_and_not_their_lines(tmp_path: Path) -> None:
    rows = records(SPLITS)
    draw_images(tmp_path, rows)
    (tmp_path / "cam_a" / "000_1.png").unlink()
    with pytest.raises(DataError, match=r"^1 of 16 annotated images are not in"):
        opened(tmp_path, lines_of(rows, apart=True))
