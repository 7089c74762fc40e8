"""Every published layout, and everything that can be wrong with one."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_persons import draw_images, records, save_cuhk

from maskery.core.errors import ConfigError, DataError
from maskery.data.pairs.config import PairsConfig
from maskery.data.pairs.pairs import Pairs
from maskery.data.person_search.config import DatasetName, PersonSearchDataConfig
from maskery.data.person_search.dataset import PersonSearchData, open_person_search
from maskery.people.config import PeopleConfig
from maskery.people.dataset import draw_people

SPLITS = {"train": 4, "val": 2, "test": 2}


def opened(dataset: DatasetName, root: Path, **settings: Any) -> PersonSearchData:
    return open_person_search(PersonSearchDataConfig(dataset=dataset, root=root, **settings))


def sizes(data: PersonSearchData) -> list[int]:
    return [len(pairs) if pairs is not None else 0 for pairs in (data.train, data.val, data.test)]


def test_cuhk_pedes(tmp_path: Path) -> None:
    data = opened("cuhk-pedes", save_cuhk(tmp_path, SPLITS))
    assert sizes(data) == [8, 4, 4]
    assert data.notes == ()
    first = data.train[0]
    assert first.image.name == "cam_a/000_0.png"
    assert first.captions[0] == "a person in a red shirt and red trousers"
    assert first.image.load().size == (16, 16)
    assert data.train.persons.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert data.train.person_names == ("1", "2", "3", "4")


@pytest.mark.parametrize("name", ["ICFG-PEDES.json", "ICFG_PEDES.json", "ICFG-PDES.json"])
def test_icfg_pedes_holds_training_identities_out(tmp_path: Path, name: str) -> None:
    rows = records({"train": 20, "test": 3}, first_id=0)
    for row in rows:
        # Its folders are not its split.
        row["file_path"] = f"test/{row['file_path']}"
        row["captions"] = row["captions"][:1]
    draw_images(tmp_path / "imgs", rows)
    (tmp_path / name).write_text(json.dumps(rows), "utf-8")
    data = opened("icfg-pedes", tmp_path, val_share=0.3)
    assert len(data.val)
    train, val = set(data.train.person_names), set(data.val.person_names)
    assert not train & val
    assert len(train | val) == 20
    assert len(val) >= 2
    assert len(data.train) + len(data.val) == 40
    again = opened("icfg-pedes", tmp_path, val_share=0.3)
    assert again.val.person_names == data.val.person_names


def test_rstpreid(tmp_path: Path) -> None:
    rows = records(SPLITS, images=5, key="img_path", first_id=0)
    draw_images(tmp_path / "imgs", rows, "img_path")
    (tmp_path / "data_captions.json").write_text(json.dumps(rows), "utf-8")
    assert sizes(opened("rstpreid", tmp_path)) == [20, 10, 10]


@pytest.mark.parametrize("empty_val", [False, True])
def test_rasa_processed(tmp_path: Path, empty_val: bool) -> None:
    rows = records({"train": 8, "val": 2, "test": 2})
    draw_images(tmp_path / "imgs", rows)
    (tmp_path / "processed_data").mkdir()
    for split in ("train", "val", "test"):
        part = [row for row in rows if row["split"] == split]
        part = [] if empty_val and split == "val" else part
        (tmp_path / "processed_data" / f"{split}.json").write_text(json.dumps(part), "utf-8")
    data = opened("rasa", tmp_path, val_share=0.3)
    assert len(data.val)
    assert len(data.train) + len(data.val) == (16 if empty_val else 20)


def test_drawn_people_in_both_of_their_layouts(tmp_path: Path) -> None:
    config = PeopleConfig(
        num_people=10, images_per_person=2, width=16, height=32, splits=(0.6, 0.2, 0.2)
    )
    draw_people(tmp_path, config)
    annotated, lines = opened("drawn-people", tmp_path), opened("jsonl", tmp_path)
    assert sizes(annotated) == sizes(lines) == [12, 4, 4]
    assert [pair.captions for pair in annotated.train] == [pair.captions for pair in lines.train]


def test_one_file_of_lines_with_and_without_splits(tmp_path: Path) -> None:
    rows = records({"train": 8})
    draw_images(tmp_path, rows)
    lines = [
        {"image": row["file_path"], "caption": row["captions"][0], "person": f"p{row['id']}"}
        for row in rows
    ]
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)), "utf-8")
    data = opened("jsonl", path, val_share=0.3)
    assert data.test is None
    assert len(data.train) + len(data.val) == 16
    for index, line in enumerate(lines):
        line["split"] = "train" if index < 8 else "val" if index < 12 else "test"
    path.write_text("\n".join(map(json.dumps, lines)), "utf-8")
    assert sizes(opened("jsonl", path)) == [8, 4, 4]


@pytest.mark.parametrize("odd", [0, 5])
def test_lines_with_and_without_a_split_are_not_all_training(tmp_path: Path, odd: int) -> None:
    rows = records({"train": 4, "val": 2, "test": 2})
    draw_images(tmp_path, rows)
    lines = [
        {"image": r["file_path"], "caption": r["captions"], "person": r["id"], "split": r["split"]}
        for r in rows
    ]
    del lines[odd]["split"]
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)), "utf-8")
    # The first record sets what the others are held to.
    assert f"line {odd + 1 if odd else 2}: the record has" in refused("jsonl", path)


def test_uncleaned_captions_stay_as_they_are(tmp_path: Path) -> None:
    data = opened("cuhk-pedes", save_cuhk(tmp_path, SPLITS), clean_captions=False)
    assert data.train[0].captions[0] == "A person, in a red shirt and red trousers."


def rewritten(root: Path, change: Any) -> Path:
    rows = json.loads((root / "reid_raw.json").read_text("utf-8"))
    (root / "reid_raw.json").write_text(json.dumps(change(rows)), "utf-8")
    return root


def refused(dataset: DatasetName, root: Path, **settings: Any) -> str:
    with pytest.raises(DataError) as caught:
        opened(dataset, root, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_missing_annotations_say_which_dataset_lies_there(tmp_path: Path) -> None:
    assert "there is no folder" in refused("cuhk-pedes", tmp_path / "none")
    assert "holds no reid_raw.json" in refused("cuhk-pedes", tmp_path)
    root = save_cuhk(tmp_path, SPLITS)
    message = refused("rstpreid", root)
    assert "data_captions.json" in message
    assert "--dataset cuhk-pedes" in message
    (root / "reid_raw.json").rename(root / "data_captions.json")
    message = refused("rstpreid", root)
    assert "'file_path' as CUHK-PEDES does" in message
    assert "--dataset cuhk-pedes" in message


def test_a_published_dataset_has_all_its_splits(tmp_path: Path) -> None:
    root = rewritten(
        save_cuhk(tmp_path, SPLITS), lambda rows: [r for r in rows if r["split"] != "val"]
    )
    assert "have no val split, which CUHK-PEDES has" in refused("cuhk-pedes", root)
    assert len(opened("drawn-people", root).val)


def test_unknown_splits_and_persons_are_named_by_record(tmp_path: Path) -> None:
    root = save_cuhk(tmp_path, SPLITS)

    def odd(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [*rows[:3], rows[3] | {"split": "dev"}, *rows[4:]]

    message = refused("cuhk-pedes", rewritten(root, odd))
    assert "record 4: the split is 'dev'" in message
    nobody = rewritten(root, lambda rows: [rows[0] | {"id": None}, *rows[1:]])
    assert "no person is named" in refused("cuhk-pedes", nobody)


def test_an_image_in_two_splits_is_a_leak(tmp_path: Path) -> None:
    root = rewritten(save_cuhk(tmp_path, SPLITS), lambda rows: [*rows, rows[0] | {"split": "test"}])
    message = refused("cuhk-pedes", root)
    assert "in two splits: 1 image, first" in message
    assert "'cam_a/000_0.png' in train and test" in message


def test_a_picture_in_two_splits_under_two_names_is_left_out_and_counted(tmp_path: Path) -> None:
    images = save_cuhk(tmp_path, SPLITS) / "imgs" / "cam_a"
    (images / "000_0.png").write_bytes((images / "006_0.png").read_bytes())  # train and test
    (images / "001_1.png").unlink()
    (images / "001_1.png").symlink_to("007_1.png")
    (images / "004_0.png").write_bytes((images / "006_1.png").read_bytes())  # val and test
    data = opened("cuhk-pedes", tmp_path)
    assert sizes(data) == [6, 3, 4]
    assert [note.split(",")[0] for note in data.notes] == [
        "left out of the val split: 1 picture",
        "left out of the train split: 2 pictures",
    ]
    for name in ("002_0.png", "002_1.png", "003_0.png", "003_1.png", "000_1.png", "001_0.png"):
        (images / name).write_bytes((images / "006_0.png").read_bytes())
    with pytest.raises(DataError, match="without its 8 copies, the train split shows 0 different"):
        opened("cuhk-pedes", tmp_path)


def test_a_caption_of_several_persons_is_told_of_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = records(SPLITS)
    for row in rows:
        row["captions"] = [*row["captions"], "A person, on a Bridge."]
    draw_images(tmp_path / "imgs", rows)
    (tmp_path / "reid_raw.json").write_text(json.dumps(rows), "utf-8")
    (note,) = opened("cuhk-pedes", tmp_path).notes
    assert note.startswith("describe several persons word for word: 1 caption, first 'a person on")
    assert caplog.text.count("describe several persons") == 1


def test_absolute_paths_below_the_images(tmp_path: Path) -> None:
    rows = records(SPLITS)
    draw_images(tmp_path / "imgs", rows)
    for row in rows:
        row["file_path"] = str(tmp_path / "imgs" / row["file_path"])
    (tmp_path / "reid_raw.json").write_text(json.dumps(rows), "utf-8")
    data = opened("cuhk-pedes", tmp_path, images=tmp_path / "imgs")
    assert data.train[0].image.name == "cam_a/000_0.png"
    with pytest.raises(DataError, match=r"is absolute.* as --images"):
        opened("cuhk-pedes", tmp_path)


def test_an_id_in_two_splits_is_counted_and_is_two_persons(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = rewritten(
        save_cuhk(tmp_path, SPLITS),
        lambda rows: [r | {"id": r["id"] - 6} if r["split"] == "test" else r for r in rows],
    )
    with caplog.at_level(logging.WARNING):
        data = opened("cuhk-pedes", root)
    assert "in more than one split: 2 ids, first 1" in data.notes[0]
    assert data.notes[0] in caplog.text
    assert data.test is not None
    assert data.test.person_names == ("1", "2")


def test_missing_images_are_counted_and_may_be_left_out(tmp_path: Path) -> None:
    root = save_cuhk(tmp_path, SPLITS)
    for name in ("000_1.png", "002_0.png"):
        (root / "imgs" / "cam_a" / name).unlink()
    message = refused("cuhk-pedes", root)
    assert "2 of 16 annotated images are not in" in message
    assert "first 'cam_a/000_1.png'" in message
    assert "--missing-images skip" in message
    data = opened("cuhk-pedes", root, missing_images="skip")
    assert len(data.train) == 6
    assert "2 of 16" in data.notes[0]
    (root / "imgs").rename(root / "pictures")
    assert "there is no folder" in refused("cuhk-pedes", root)
    assert "name the folder" in refused("cuhk-pedes", root, images=tmp_path)
    named = opened("cuhk-pedes", root, images=root / "pictures", missing_images="skip")
    assert sizes(named) == sizes(data)


def test_one_person_alone_cannot_be_told_from_anyone(tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        root = save_cuhk(tmp_path / split, {"train": 4, "val": 2, "test": 2} | {split: 1})
        message = refused("cuhk-pedes", root)
        assert f"the {split} split of '{root}' shows 1 different person:" in message


@pytest.mark.parametrize(("split", "persons"), [("val", (4, 5)), ("test", (7,))])
def test_a_split_that_missing_pictures_leave_without_two_persons_is_refused(
    tmp_path: Path, split: str, persons: tuple[int, ...]
) -> None:
    root = save_cuhk(tmp_path, SPLITS)
    for person in persons:
        for number in (0, 1):
            (root / "imgs" / "cam_a" / f"{person:03d}_{number}.png").unlink()
    message = refused("drawn-people", root, missing_images="skip")
    assert f"the {split} split of '{root}' shows {2 - len(persons)} different" in message


def test_too_few_persons_to_hold_any_out(tmp_path: Path) -> None:
    root = save_cuhk(tmp_path, {"train": 3, "test": 2})
    assert "at least 4 are needed" in refused("drawn-people", root)


@pytest.mark.parametrize("path", ["../secret.png", "/etc/passwd", "C:\\x.png", "a/../../b.png"])
def test_image_paths_stay_below_their_folder(tmp_path: Path, path: str) -> None:
    root = rewritten(
        save_cuhk(tmp_path, SPLITS), lambda rows: [rows[0] | {"file_path": path}, *rows[1:]]
    )
    assert "image path" in refused("cuhk-pedes", root)


def test_captions_without_a_word_end_it_or_are_counted(tmp_path: Path) -> None:
    root = rewritten(
        save_cuhk(tmp_path, SPLITS), lambda rows: [rows[0] | {"captions": ["..."]}, *rows[1:]]
    )
    assert "record 1" in refused("cuhk-pedes", root)
    data = opened("cuhk-pedes", root, on_bad_caption="skip")
    assert len(data.train) == 7
    assert "1 caption skipped" in data.notes[0]
    good = "A person in white."
    mixed = rewritten(root, lambda rows: [rows[0] | {"captions": ["...", good]}, *rows[1:]])
    data = opened("cuhk-pedes", mixed, on_bad_caption="skip")
    assert len(data.train) == 8
    assert data.train[0].captions == ("a person in white",)
    assert "1 caption skipped" in data.notes[0]
    broken = rewritten(root, lambda rows: [rows[1] | {"captions": 7}, *rows[1:]])
    assert "the caption is 7" in refused("cuhk-pedes", broken)


def test_files_that_are_no_annotations(tmp_path: Path) -> None:
    root = save_cuhk(tmp_path, SPLITS)
    (root / "reid_raw.json").write_text('{"a": 1}', "utf-8")
    assert "has no column" in refused("cuhk-pedes", root) or "no image column" in refused(
        "cuhk-pedes", root
    )
    (root / "reid_raw.json").write_text("[1, 2]", "utf-8")
    assert "where an object" in refused("cuhk-pedes", root)
    (root / "reid_raw.json").write_text("[{", "utf-8")
    assert "not valid JSON" in refused("cuhk-pedes", root)


def test_settings_out_of_range() -> None:
    for settings, message in (({"val_share": 0.0}, "val_share"), ({"max_words": 0}, "max_words")):
        with pytest.raises(ConfigError, match=message):
            PersonSearchDataConfig(dataset="jsonl", root=Path(), **settings)  # type: ignore[arg-type]


def test_a_noise_file_exchanges_training_captions_in_the_order_of_the_annotations(
    tmp_path: Path,
) -> None:
    root, path = save_cuhk(tmp_path / "data", SPLITS), tmp_path / "noise.npy"
    clean = opened("cuhk-pedes", root)
    captions = [caption for pair in clean.train for caption in pair.captions]
    index = np.random.default_rng(0).permutation(len(captions))
    np.save(path, index)
    noisy = opened("cuhk-pedes", root, noise_file=path)
    found = [caption for pair in noisy.train for caption in pair.captions]
    assert found == [captions[i] for i in index]
    assert noisy.train.persons.tolist() == clean.train.persons.tolist()
    assert [pair.captions for pair in noisy.val] == [pair.captions for pair in clean.val]
    moved = int((index != np.arange(len(index))).sum())
    assert f"exchanged by '{path}': {moved} of {len(captions)} training captions" in noisy.notes


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (np.arange(3), "has the shape (3,) of int64: it must hold a number from 0 to 15 for each"),
        (np.zeros(16), "has the shape (16,) of float64"),
        (
            np.arange(1, 17),
            "it must hold a number from 0 to 15 for each of the 16 training captions",
        ),
        (None, "is no .npy that can be read"),
        (b"not an array", "is no .npy that can be read"),
    ],
)
def test_a_noise_file_of_something_else_is_told_in_one_line(
    content: Any, told: str, tmp_path: Path
) -> None:
    path = tmp_path / "noise.npy"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        np.save(path, content)
    with pytest.raises(DataError) as caught:
        opened("cuhk-pedes", save_cuhk(tmp_path / "data", SPLITS), noise_file=path)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def start_set(dataset: str, root: Path) -> dict[str, list[str]]:
    """Write a large set's layout with a few pictures; returns the captions of each picture."""
    rows = records({"train": 8}, images=1)
    if dataset == "luperson-mllm":  # pictures in one folder, named by paths elsewhere
        rows = [row | {"file_path": Path(row["file_path"]).name} for row in rows]
    captions = {row["file_path"]: row["captions"] for row in rows}
    folder = {"luperson-mllm": "LUPerson-MLLM", "webperson": "images"}.get(dataset, "")
    draw_images(root / folder, rows)
    files: dict[str, Any]
    if dataset == "synth-pedes":
        more = {"attributes": ["man,black hair"], "prompt_caption": ["A man."]}
        kept = [{key: row[key] for key in ("id", "file_path", "captions")} for row in rows]
        files = {"synthpedes-dataset.json": [row | more for row in kept]}
    elif dataset == "mals":
        captions = {name: words[:1] for name, words in captions.items()}
        lines = [
            {"image": name, "caption": words[0], "image_id": f"c_{n}", "label": [1, 0]}
            for n, (name, words) in enumerate(captions.items())
        ]
        files = {f"gene_attrs/g_{half}_attrs.json": lines[half::2] for half in (0, 1)}
    elif dataset == "luperson-mllm":
        files = {
            f"captions/T{kind}-qwen.json": {f"/a/b/{name}": w[n] for name, w in captions.items()}
            for n, kind in enumerate("ds")
        }
    else:
        two = ("caption1", "caption2")
        both = [dict(zip(two, words, strict=True)) for words in captions.values()]
        files = {"100w.json": [{name: value} for name, value in zip(captions, both, strict=True)]}
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(json.dumps(content), "utf-8")
    return captions


@pytest.mark.parametrize("dataset", ["luperson-mllm", "webperson"])
def test_annotations_that_cannot_be_read_are_one_line(
    dataset: DatasetName, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start_set(dataset, tmp_path)

    def denied(_: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", denied)
    assert ".json cannot be read (Permission denied)" in refused(dataset, tmp_path)


@pytest.mark.parametrize("dataset", ["luperson-mllm", "webperson"])
def test_no_entry_of_annotations_is_passed_over(dataset: DatasetName, tmp_path: Path) -> None:
    captions = start_set(dataset, tmp_path)
    for path in tmp_path.rglob("*.json"):
        path.write_text(json.dumps(["a.jpg", captions]), "utf-8")
    assert "holds 'a.jpg' where an object from pictures to" in refused(dataset, tmp_path)


@pytest.mark.parametrize("dataset", ["synth-pedes", "mals", "luperson-mllm", "webperson"])
def test_larger_sets_are_read_as_they_are_published(dataset: DatasetName, tmp_path: Path) -> None:
    expected = start_set(dataset, tmp_path)
    found = opened(dataset, tmp_path, clean_captions=False, val_share=0.3)
    assert len(found.val)
    assert found.test is None
    pairs = [*found.train, *found.val]
    assert {pair.image.name: list(pair.captions) for pair in pairs} == expected
    persons = [*found.train.person_names, *found.val.person_names]
    assert len(set(persons)) == len(expected)  # every picture shows somebody else
    assert not set(found.train.person_names) & set(found.val.person_names)
    if dataset in ("synth-pedes", "mals"):  # what train pairs reads, too
        files = {"mals": "gene_attrs/*.json", "synth-pedes": "synthpedes-dataset.json"}
        read = Pairs.open(str(tmp_path / files[dataset]), PairsConfig(images=tmp_path))
        assert {pair.image.name: list(pair.captions) for pair in read} == expected
