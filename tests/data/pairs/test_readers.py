"""Readers of the user's own: `FILE.py:NAME`, iterables of records, `datasets` datasets."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_pairs import save_tiny_pairs

from maskery.core.errors import ConfigError, DataError, PluginError
from maskery.core.registry import FromFile
from maskery.data.pairs.config import ENDINGS, FORMATS, PairsConfig, register_format
from maskery.data.pairs.pairs import Pairs, group_ids

READER = """
import csv

def read(path):
    for line in path.read_text().splitlines():
        name, _, words = line.partition("|")
        yield {"image": name, "caption": words, "person": name[0]}

def broken(path):
    yield from list(read(path))[:1]
    raise KeyError("no\\nsuch key")

def not_records(path):
    return ["a"]

def no_caption(path):
    return [{"image": "imgs/0.png"}]

def nothing(path):
    return None

number = 3
"""


@pytest.fixture
def plugin(tmp_path: Path, root: Path) -> str:
    (tmp_path / "mine.py").write_text(READER)
    (root / "pairs.pipe").write_text("imgs/0.png|red\nimgs/./1.png|green\n")
    return f"{tmp_path / 'mine.py'}"


def test_a_reader_of_a_file(root: Path, plugin: str) -> None:
    pairs = Pairs.open(root / "pairs.pipe", PairsConfig(reader=f"{plugin}:read"))
    assert [pair.image.name for pair in pairs] == ["imgs/0.png", "imgs/1.png"]
    assert [pair.captions[0] for pair in pairs] == ["red", "green"]
    assert pairs.person_names == ("i",)
    assert pairs[1].image.load().getpixel((0, 0)) == (0, 250, 0)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("broken", r"fails after record 1 of .*pairs\.pipe: KeyError: .*it must be a callable"),
        ("not_records", "record 1 of .*pairs.pipe is 'a'; it must be a callable that takes a path"),
        ("nothing", "fails after record 0 .*TypeError.*; it must be a callable"),
        ("no_caption", "record 1 has no caption column .* it must be a callable that takes a path"),
        ("number", "is of type int; it must be a callable that takes a path and yields records"),
        ("absent", "has no 'absent'"),
    ],
)
def test_a_reader_that_breaks_the_contract_is_one_line(
    root: Path, plugin: str, name: str, message: str
) -> None:
    with pytest.raises(PluginError, match=message) as caught:
        Pairs.open(root / "pairs.pipe", PairsConfig(reader=f"{plugin}:{name}"))
    assert "mine.py" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_names_of_readers_are_checked_at_once_and_files_never_load_code(
    root: Path, plugin: str
) -> None:
    with pytest.raises(PluginError, match="--reader is 'xml': it must be json, csv, parquet"):
        PairsConfig(reader="xml")
    config = PairsConfig(reader=FromFile(f"{plugin}:read"))
    with pytest.raises(PluginError, match="add --reader"):
        Pairs.open(root / "pairs.pipe", config)
    relative = PairsConfig(reader="mine.py:read").anchored().reader
    assert relative == f"{Path('mine.py').absolute()}:read"


def test_a_format_of_ours_can_be_named_for_any_ending(root: Path) -> None:
    (root / "pairs.txt").write_text('{"image": "imgs/0.png", "caption": "red"}\n')
    assert len(Pairs.open(root / "pairs.txt", PairsConfig(reader="json"))) == 1
    with pytest.raises(DataError, match="add --reader FILE"):
        Pairs.open(root / "pairs.txt")


def test_formats_can_be_registered(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FORMATS, "_things", dict(FORMATS._things))
    monkeypatch.setitem(ENDINGS, ".words", "")

    def read(path: Path) -> Iterator[dict[str, Any]]:
        yield {"image": "0.png", "caption": path.read_text()}

    register_format("words", read, ".words")  # one ending, and not its letters
    (root / "imgs" / "x.words").write_text("red")
    pairs = Pairs.open(root / "imgs" / "x.words")
    assert (pairs[0].captions, pairs[0].image.load().size) == (("red",), (4, 3))
    with pytest.raises(PluginError, match="registered already"):
        register_format("json", read)


def test_records_with_bytes_wait_outside_the_memory(pictures: list[bytes]) -> None:
    # What follows a PNG's end is not read, and makes each a picture of its own.
    rows = (
        {"image": pictures[n % 3] + bytes([n]), "caption": [f"way {n}", "again"]} for n in range(30)
    )
    pairs = Pairs.open(rows)
    assert pairs[4].captions == ("way 4", "again")
    assert [pairs[n].image.load().getpixel((0, 0)) for n in (29, 0, 4)] == [
        (0, 0, 250), (250, 0, 0), (0, 250, 0)
    ]  # fmt: skip
    assert len(np.unique(group_ids(pairs))) == 30


def test_records_with_paths_groups_and_splits(root: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"image": root / "imgs" / f"{n}.png", "caption": "x y", "group": n // 2, "split": "train"}
        for n in range(3)
    ]
    pairs = Pairs.open(
        [*rows, {**rows[0], "split": "test"}], PairsConfig(images=root, split="train")
    )
    assert [pair.image.name for pair in pairs] == [f"imgs/{n}.png" for n in range(3)]
    groups = group_ids(pairs)
    assert groups[0] == groups[1] != groups[2]
    (root / "other").mkdir()
    with pytest.raises(DataError, match="is absolute"):
        Pairs.open(rows, PairsConfig(images=root / "other"))


def test_what_is_no_record_is_one_line() -> None:
    with pytest.raises(DataError, match="record 1 of the records is 'a'; they must be an"):
        Pairs.open(["a"])  # type: ignore[list-item]
    with pytest.raises(DataError, match="has the image 3; they must be"):
        Pairs.open([{"image": 3, "caption": "x"}])


def test_a_dataset_of_hugging_face(pictures: list[bytes]) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"photo": datasets.Image(), "caption": datasets.Value("string")})
    rows = [
        {"photo": {"bytes": p, "path": None}, "caption": f"n {n}"} for n, p in enumerate(pictures)
    ]
    dataset = datasets.Dataset.from_list(rows, features=features)
    config = PairsConfig(image_column="photo")
    for source in (dataset, dataset.to_iterable_dataset()):
        pairs = Pairs.open(source, config)
        assert [pair.captions[0] for pair in pairs] == ["n 0", "n 1", "n 2"]
        assert pairs[2].image.load().getpixel((0, 0)) == (0, 0, 250)
        assert len(np.unique(group_ids(pairs))) == 3


def test_equal_names_in_two_folders_are_two_pictures(tmp_path: Path, pictures: list[bytes]) -> None:
    for name, content in (("a", pictures[0]), ("b", pictures[2])):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.png").write_bytes(content)
        table = pa.table({"image": ["x.png"], "caption": ["one word"]})
        pq.write_table(table, tmp_path / name / "t.parquet")
        stored = pa.table({"image": [content], "caption": ["one word"]})
        pq.write_table(stored, tmp_path / name / "s.parquet")
    for source in (tmp_path / "*" / "t.parquet", tmp_path / "*" / "s.parquet"):
        pairs = Pairs.open(str(source))
        colours = [pair.image.load().getpixel((0, 0)) for pair in pairs]
        assert colours == [(250, 0, 0), (0, 0, 250)]
        assert len(np.unique(group_ids(pairs))) == len(np.unique(pairs.ids)) == 2


def test_one_file_is_one_picture_however_it_is_spelt(tmp_path: Path) -> None:
    rows = [
        {"image": f"{'./' * (way % 2)}{n}.png", "caption": f"way {way} of {n}"}
        for n in range(12)
        for way in range(5)
    ]
    pairs = Pairs.open(rows)
    assert len(np.unique(group_ids(pairs))) == 12


def test_an_id_numbers_captions_unless_it_is_said_to_name_persons(tmp_path: Path) -> None:
    rows = [
        {"image": f"{n}.png", "id": 100 + 5 * n + way, "caption": f"way {way} of {n}"}
        for n in range(12)
        for way in range(5)
    ]
    assert len(np.unique(group_ids(Pairs.open(rows)))) == 12
    named = [{**row, "image": f"{row['id']}.png"} for row in rows]
    assert len(np.unique(group_ids(Pairs.open(named, PairsConfig(person_column="id"))))) == 60


def test_splits_in_the_names_of_files_are_kept(tmp_path: Path, pictures: list[bytes]) -> None:
    for split in ("train", "test"):
        table = pa.table({"image": pictures, "caption": [f"{split} {n}" for n in range(3)]})
        pq.write_table(table, tmp_path / f"{split}-00000-of-00001.parquet")
    train, held = Pairs.open_splits(tmp_path)
    assert held is not None
    assert {pair.captions[0].split()[0] for pair in train} == {"train"}
    assert {pair.captions[0].split()[0] for pair in held} == {"test"}
    with pytest.raises(DataError, match=r"several splits .*choose one"):
        Pairs.open(tmp_path)
    assert len(Pairs.open(tmp_path, PairsConfig(split="test"))) == 3
    only, none = Pairs.open_splits(tmp_path, PairsConfig(split="train"))
    assert (len(only), none) == (3, None)


def test_splits_in_the_names_of_folders_are_kept(tmp_path: Path) -> None:
    save_tiny_pairs(tmp_path / "train", 8).rename(tmp_path / "train" / "metadata.jsonl")
    save_tiny_pairs(tmp_path / "validation", 4).rename(tmp_path / "validation" / "metadata.jsonl")
    train, held = Pairs.open_splits(tmp_path)
    assert held is not None
    assert (len(train), len(held)) == (8, 4)
    assert train[0].image.name == "train/000.png"


def test_what_is_no_file_is_passed_over_or_refused_and_never_waited_for(root: Path) -> None:
    os.mkfifo(root / "pairs.jsonl")
    with pytest.raises(DataError, match="is no regular file"):
        Pairs.open(root / "pairs.jsonl")
    (root / "loop.jsonl").symlink_to(root / "loop.jsonl")
    with pytest.raises(DataError, match="is no regular file"):
        Pairs.open(root / "loop.jsonl")
    os.mkfifo(root / "metadata.jsonl")
    os.mkfifo(root / "x.tar")
    (root / "loop").symlink_to(root)
    with pytest.raises(DataError, match="holds no pairs"):
        Pairs.open(root)


def test_a_person_column_must_be_there() -> None:
    with pytest.raises(DataError, match="has no column 'who'"):
        Pairs.open([{"image": "a", "caption": "b"}], PairsConfig(person_column="who"))
    with pytest.raises(ConfigError, match="on_bad_image"):
        PairsConfig(on_bad_image="stop")  # type: ignore[arg-type]
