from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskery.core.errors import ConfigError, DataError
from maskery.people.attributes import identity_at
from maskery.people.config import PeopleConfig
from maskery.people.dataset import draw_people
from maskery.people.drawing import render
from maskery.people.grammar import captions_of

CONFIG = PeopleConfig(num_people=10, images_per_person=3, seed=4, image_format="png")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn") / "people"
    draw_people(folder, CONFIG)
    return folder


def test_summary_counts_what_is_there(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    summary = draw_people(tmp_path / "new", CONFIG, lambda done, of: calls.append((done, of)))
    assert summary.num_people == {"train": 8, "val": 1, "test": 1}
    assert summary.num_images == {"train": 24, "val": 3, "test": 3}
    assert summary.num_captions == {"train": 48, "val": 6, "test": 6}
    assert summary.num_drawn == len(list((tmp_path / "new" / "imgs").rglob("*.png"))) == 30
    assert calls == [(done, 30) for done in range(1, 31)]


def test_cuhk_layout(folder: Path) -> None:
    records = json.loads((folder / "reid_raw.json").read_text())
    assert len(records) == 30
    for record in records:
        assert set(record) == {"split", "captions", "file_path", "processed_tokens", "id"}
        assert (folder / "imgs" / record["file_path"]).is_file()
        assert len(record["captions"]) == len(record["processed_tokens"]) == 2
        for caption, tokens in zip(record["captions"], record["processed_tokens"], strict=True):
            assert " ".join(tokens) == caption.lower().replace(",", "").replace(".", "")
    assert [record["id"] for record in records] == [n for n in range(1, 11) for _ in range(3)]


def test_people_are_in_one_split(folder: Path) -> None:
    records = json.loads((folder / "reid_raw.json").read_text())
    people = {
        split: {record["id"] for record in records if record["split"] == split}
        for split in ("train", "val", "test")
    }
    assert sum(map(len, people.values())) == len(set.union(*people.values())) == 10


def test_pairs_agree_with_the_annotations(folder: Path) -> None:
    records = json.loads((folder / "reid_raw.json").read_text())
    for split in ("train", "val", "test"):
        lines = (folder / f"pairs_{split}.jsonl").read_text().splitlines()
        assert [json.loads(line) for line in lines] == [
            {
                "image": f"imgs/{record['file_path']}",
                "caption": record["captions"],
                "person": record["id"],
            }
            for record in records
            if record["split"] == split
        ]


def test_files_hold_the_drawn_pictures_and_captions(folder: Path) -> None:
    records = json.loads((folder / "reid_raw.json").read_text())
    for position in (0, 13, 29):
        person, index = identity_at(4, position // 3), position % 3
        with Image.open(folder / "imgs" / records[position]["file_path"]) as image:
            np.testing.assert_array_equal(
                np.asarray(image), np.asarray(render(person, index, (64, 128)))
            )
        assert tuple(records[position]["captions"]) == captions_of(person, index)


def test_more_people_do_not_change_the_first(folder: Path, tmp_path: Path) -> None:
    draw_people(tmp_path / "more", PeopleConfig(num_people=20, images_per_person=4, seed=4,
                                                image_format="png"))  # fmt: skip
    for path in (folder / "imgs").rglob("*.png"):
        other = tmp_path / "more" / "imgs" / path.relative_to(folder / "imgs")
        assert other.read_bytes() == path.read_bytes()


def test_an_interrupted_call_is_continued(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "again"

    def interrupt(done: int, of: int) -> None:
        if done == 11:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        draw_people(target, CONFIG, interrupt)
    assert not (target / "reid_raw.json").exists()
    assert draw_people(target, CONFIG).num_drawn == 19
    assert draw_people(target, CONFIG).num_drawn == 0
    expected = sorted(p.relative_to(folder) for p in folder.rglob("*"))
    assert sorted(p.relative_to(target) for p in target.rglob("*")) == expected
    for path in filter(lambda p: (folder / p).is_file(), expected):
        assert (target / path).read_bytes() == (folder / path).read_bytes()


def test_foreign_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("important")
    with pytest.raises(DataError, match=r"is not empty and holds no drawn_people\.json"):
        draw_people(tmp_path, CONFIG)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(DataError, match="is a file"):
        draw_people(tmp_path / "thesis.tex", CONFIG)


def test_other_settings_are_refused(folder: Path) -> None:
    with pytest.raises(DataError, match=r"other settings \(seed 4 there, 5 asked for\)"):
        draw_people(folder, PeopleConfig(num_people=10, images_per_person=3, seed=5,
                                         image_format="png"))  # fmt: skip


@pytest.mark.parametrize("content", ["", "[]", "{", "null", '{"seed": 1}'])
def test_damaged_manifest_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "drawn_people.json").write_text(content)
    with pytest.raises(DataError, match="name another folder"):
        draw_people(tmp_path, CONFIG)


def test_too_many_people_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="num_people is 10000000: at most"):
        draw_people(tmp_path / "many", PeopleConfig(num_people=10**7))
    assert not (tmp_path / "many").exists()


def test_jpeg_is_the_default(tmp_path: Path) -> None:
    draw_people(tmp_path / "jpg", PeopleConfig(num_people=1, images_per_person=1, splits=(1, 0, 0)))
    (path,) = (tmp_path / "jpg" / "imgs").rglob("*.jpg")
    with Image.open(path) as image:
        drawn = np.asarray(render(identity_at(0, 0), 0, (64, 128))).astype(int)
        assert np.abs(np.asarray(image).astype(int) - drawn).mean() < 6
    assert not (tmp_path / "jpg" / "pairs_val.jsonl").exists()


def test_captions_are_swapped_between_persons_and_the_truth_lies_beside(
    folder: Path, tmp_path: Path
) -> None:
    draw_people(tmp_path / "noisy", replace(CONFIG, swap_captions=0.25))
    index = np.load(tmp_path / "noisy" / "swapped_captions.npy")
    assert sorted(index.tolist()) == list(range(48))
    moved = np.flatnonzero(index != np.arange(48))
    assert len(moved) == 12
    assert (moved // 6 != index[moved] // 6).all()  # three pictures of two captions a person
    clean, noisy = (
        json.loads((path / "reid_raw.json").read_text()) for path in (folder, tmp_path / "noisy")
    )
    written = [c for r in clean if r["split"] == "train" for c in r["captions"]]
    found = [c for r in noisy if r["split"] == "train" for c in r["captions"]]
    assert found == [written[i] for i in index.tolist()]
    assert [r for r in clean if r["split"] != "train"] == [
        r for r in noisy if r["split"] != "train"
    ]
    few = replace(CONFIG, num_people=4, splits=(0.5, 0.25, 0.25), swap_captions=0.9)
    with pytest.raises(ConfigError, match=r"swap_captions is 0\.9: .* draw more people"):
        draw_people(tmp_path / "few", replace(few, images_per_person=1, splits=(0.25, 0.25, 0.5)))
    assert not (tmp_path / "few").exists()


def test_the_second_camera_shows_the_same_person_differently() -> None:
    person = identity_at(4, 1)
    one, two = (np.asarray(render(person, 0, (64, 128), style)).astype(int) for style in (1, 2))
    np.testing.assert_array_equal(two, np.asarray(render(person, 0, (64, 128), 2)))
    # Places become dark, colours paler.
    assert np.median(two[:10]) < np.median(one[:10]) - 60
    spread = [np.ptp(each[40:90, 20:44], axis=2).mean() for each in (one, two)]
    assert np.abs(one - two).mean() > 20, spread
