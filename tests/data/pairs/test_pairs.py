"""Every format gives the same three pairs back; every kind of bad input gives one line."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_pairs import save_tiny_pairs

from maskery.core.errors import DataError
from maskery.data.pairs.config import PairsConfig
from maskery.data.pairs.pairs import NOBODY, Pairs, group_ids, split_pairs, wrong_pairs
from maskery.data.pairs.records import pair_id

COLOURS = [(250, 0, 0), (0, 250, 0), (0, 0, 250)]
CAPTIONS = ["a red square", "a green, leafy square", 'a "blue" square']
PERSONS = ["ann", "bob", "ann"]
ROWS = [{"image": f"imgs/{n}.png", "caption": CAPTIONS[n], "person": PERSONS[n]} for n in range(3)]


def write_json(root: Path, rows: list[dict[str, Any]], name: str = "pairs.json") -> Path:
    (root / name).write_text(json.dumps(rows, indent=2))
    return root / name


def write_jsonl(root: Path, rows: list[dict[str, Any]], name: str = "pairs.jsonl") -> Path:
    (root / name).write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return root / name


def write_table(root: Path, rows: list[dict[str, Any]], name: str, separator: str) -> Path:
    with (root / name).open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=separator)
        writer.writeheader()
        writer.writerows(rows)
    return root / name


def renamed(**names: str) -> list[dict[str, Any]]:
    return [{names.get(key, key): value for key, value in row.items()} for row in ROWS]


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def bytes_of(root: Path, number: int) -> bytes:
    return (root / "imgs" / f"{number}.png").read_bytes()


def as_json(root: Path) -> Path:
    return write_json(root, ROWS)


def as_jsonl(root: Path) -> Path:
    return write_jsonl(root, ROWS)


def as_json_lines_called_json(root: Path) -> Path:
    return write_jsonl(root, ROWS, "pairs.json")


def as_list_called_jsonl(root: Path) -> Path:
    return write_json(root, ROWS, "pairs.jsonl")


def as_jsonl_with_mark(root: Path) -> Path:
    path = write_jsonl(root, ROWS)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n\r\n"))
    return path


def as_csv(root: Path) -> Path:
    return write_table(root, ROWS, "pairs.csv", ",")


def as_open_clip_csv(root: Path) -> Path:
    return write_table(root, renamed(image="filepath", caption="title"), "pairs.csv", "\t")


def as_tsv(root: Path) -> Path:
    return write_table(root, ROWS, "pairs.tsv", "\t")


def as_imagefolder(root: Path) -> Path:
    rows = [{**row, "file_name": Path(row["image"]).name} for row in ROWS]
    rows = [{key: row[key] for key in ("file_name", "caption", "person")} for row in rows]
    write_jsonl(root / "imgs", rows, "metadata.jsonl")
    return root


def as_imagefolder_csv(root: Path) -> Path:
    write_table(root, renamed(image="file_name", caption="text"), "metadata.csv", ",")
    return root


def as_parquet_paths(root: Path) -> Path:
    pq.write_table(pa.Table.from_pylist(ROWS), root / "pairs.parquet")
    return root / "pairs.parquet"


def as_parquet_structs(root: Path) -> Path:
    rows = [
        {**row, "image": {"bytes": bytes_of(root, n), "path": f"{n}.png"}}
        for n, row in enumerate(ROWS)
    ]
    pq.write_table(pa.Table.from_pylist(rows), root / "pairs.parquet", row_group_size=2)
    return root / "pairs.parquet"


def as_parquet_structs_of_paths(root: Path) -> Path:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    images = pa.array([{"bytes": None, "path": row["image"]} for row in ROWS], kind)
    pq.write_table(
        pa.table({"image": images, "caption": CAPTIONS, "person": PERSONS}),
        root / "pairs.parquet",
    )
    return root / "pairs.parquet"


def as_parquet_bytes(root: Path) -> Path:
    folder = root / "data"
    folder.mkdir()
    for n, row in enumerate(ROWS):
        table = pa.Table.from_pylist([{**row, "image": bytes_of(root, n)}])
        pq.write_table(table, folder / f"train-{n:05d}-of-00003.parquet")
    return root


def as_huggingface_dataset(root: Path) -> Path:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "caption": datasets.Value("string"),
            "person": datasets.Value("string"),
        }
    )
    images = [{"bytes": bytes_of(root, n), "path": None} for n in range(3)]
    rows = [{**row, "image": image} for row, image in zip(ROWS, images, strict=True)]
    dataset = datasets.Dataset.from_list(rows, features=features)
    dataset.to_parquet(str(root / "hf.parquet"))
    return root / "hf.parquet"


def as_shard_with_text(root: Path) -> Path:
    members = []
    for n, row in enumerate(ROWS):
        members.append((f"a/{n}.png", bytes_of(root, n)))
        members.append((f"a/{n}.txt", f"{row['caption']}\n".encode()))
        members.append((f"a/{n}.json", json.dumps({"person": row["person"]}).encode()))
    return write_tar(root / "pairs.tar", members)


def as_shards_with_json(root: Path) -> str:
    for n, row in enumerate(ROWS):
        annotation = json.dumps({"caption": row["caption"], "person": row["person"]}).encode()
        members = [("0.json", annotation), ("0.png", bytes_of(root, n))]
        write_tar(root / f"shard-{n:03d}.tar", members)
    return str(root / "shard-{000..002}.tar")


FORMATS: list[Callable[[Path], Path | str]] = [
    as_json,
    as_jsonl,
    as_json_lines_called_json,
    as_list_called_jsonl,
    as_jsonl_with_mark,
    as_csv,
    as_open_clip_csv,
    as_tsv,
    as_imagefolder,
    as_imagefolder_csv,
    as_parquet_paths,
    as_parquet_structs,
    as_parquet_structs_of_paths,
    as_parquet_bytes,
    as_huggingface_dataset,
    as_shard_with_text,
    as_shards_with_json,
]


@pytest.mark.parametrize("write", FORMATS, ids=lambda write: write.__name__)
def test_every_format_gives_the_pairs_back(root: Path, write: Callable[[Path], Path | str]) -> None:
    pairs = Pairs.open(write(root))
    assert len(pairs) == 3
    assert [pair.captions for pair in pairs] == [(caption,) for caption in CAPTIONS]
    assert pairs.person_names == ("ann", "bob")
    assert pairs.persons.tolist() == [0, 1, 0]
    # Backwards: nothing depends on reading in order.
    for index in (2, 1, 0, -1):
        image = pairs[index].image.load()
        assert (image.size, image.mode) == ((4, 3), "RGB")
        assert image.getpixel((1, 1)) == COLOURS[index]
    assert len(set(pairs.ids.tolist())) == 3
    for pair, number in zip(pairs, pairs.ids, strict=True):
        assert number == pair_id(pair.image.name, pair.captions)


@pytest.mark.parametrize("write", FORMATS, ids=lambda write: write.__name__)
def test_ids_do_not_depend_on_where_the_data_lies(
    root: Path, tmp_path: Path, write: Callable[[Path], Path | str]
) -> None:
    source = write(root)
    before = Pairs.open(source).ids
    root.rename(tmp_path / "moved")
    moved = str(source).replace(str(root), str(tmp_path / "moved"))
    np.testing.assert_array_equal(Pairs.open(moved).ids, before)


def test_several_captions_and_no_person(root: Path) -> None:
    pairs = Pairs.open(
        write_jsonl(
            root,
            [
                {"image": "imgs/0.png", "caption": ["a square", "something red"]},
                {"image": "imgs/1.png", "caption": "green"},
            ],
        )
    )
    assert pairs[0].captions == ("a square", "something red")
    assert pairs.persons.tolist() == [NOBODY, NOBODY]
    assert pairs.person_names == ()


def test_many_pairs_cross_the_chunks(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maskery.data.pairs.pairs.CHUNK", 7)
    rows = [{"image": f"{n}.png", "caption": f"number {n}", "person": n * 10} for n in range(50)]
    pairs = Pairs.open(write_jsonl(root, rows))
    assert [pair.captions[0] for pair in pairs] == [f"number {n}" for n in range(50)]
    assert pairs.person_names == tuple(str(n * 10) for n in range(50))


def test_index_outside(root: Path) -> None:
    pairs = Pairs.open(as_jsonl(root))
    for index in (3, -4):
        with pytest.raises(IndexError, match=f"pair {index} of 3"):
            pairs[index]


def test_images_of_another_folder(root: Path, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path, [{"image": "1.png", "caption": "green"}])
    pairs = Pairs.open(path, PairsConfig(images=root / "imgs"))
    assert pairs[0].image.load().getpixel((0, 0)) == COLOURS[1]
    with pytest.raises(DataError, match=r"the image folder .* does not exist"):
        Pairs.open(path, PairsConfig(images=root / "nowhere"))


def test_nested_metadata(root: Path) -> None:
    for folder, number in (("day", 0), ("night", 1)):
        (root / folder).mkdir()
        (root / folder / "x.png").write_bytes(bytes_of(root, number))
        write_jsonl(root / folder, [{"file_name": "x.png", "text": folder}], "metadata.jsonl")
    pairs = Pairs.open(root)
    by_caption = {pair.captions[0]: pair.image.load().getpixel((0, 0)) for pair in pairs}
    assert by_caption == {"day": COLOURS[0], "night": COLOURS[1]}


def test_splits_are_not_mixed_unasked(root: Path) -> None:
    splits = ("train", "test", "train")
    rows = [{**row, "split": split} for row, split in zip(ROWS, splits, strict=True)]
    path = write_jsonl(root, rows)
    with pytest.raises(DataError, match=r"holds several splits \('train', 'test'\)"):
        Pairs.open(path)
    assert len(Pairs.open(path, PairsConfig(split="train"))) == 2
    with pytest.raises(DataError, match="has no split 'val', only 'train', 'test'"):
        Pairs.open(path, PairsConfig(split="val"))
    with pytest.raises(DataError, match="so split 'val' cannot be chosen"):
        Pairs.open(write_jsonl(root, ROWS), PairsConfig(split="val"))


@pytest.mark.parametrize("first", ["named", "absent", "null"])
@pytest.mark.parametrize("write", [write_json, write_jsonl])
def test_a_split_is_named_in_all_records_or_in_none(
    root: Path, write: Callable[[Path, list[dict[str, Any]]], Path], first: str
) -> None:
    named, absent = {**ROWS[0], "split": "test"}, ROWS[1]
    others = {"absent": absent, "null": {**absent, "split": None}}
    rows = [others[first], named] if first in others else [named, absent]
    place = "(line|record) 2: the record has (no split|a split as 'split') and the first one (no|a)"
    with pytest.raises(DataError, match=place) as caught:
        Pairs.open(write(root, [*rows, ROWS[2]]))
    assert "\n" not in str(caught.value)
    nulls = [{**row, "split": None} for row in ROWS]
    assert len(Pairs.open(write(root, [*nulls, ROWS[0]]))) == 4


@pytest.mark.parametrize("order", ["ab", "ba"])
def test_a_split_is_named_in_all_files_or_in_none(root: Path, order: str) -> None:
    write_jsonl(root, ROWS, f"{order[0]}.jsonl")
    write_jsonl(root, [{**row, "split": "test"} for row in ROWS], f"{order[1]}.jsonl")
    with pytest.raises(DataError, match=r"b.jsonl, line 1: .* holds records with a 'split' and"):
        Pairs.open(str(root / "*.jsonl"))


@pytest.mark.parametrize("key", ["person", "who"])
def test_a_person_is_named_in_all_records_or_in_none(root: Path, key: str) -> None:
    row = {name: value for name, value in ROWS[0].items() if name != "person"}
    config = PairsConfig(person_column=None if key == "person" else key)
    for rows, message in (
        ([row, {**row, key: "ann"}], f"a person as '{key}' and the first one no person"),
        ([{**row, key: "ann"}, row], f"no person and the first one a person as '{key}'"),
    ):
        if key != "person" and key not in rows[0]:
            message = f"line 1 has no column '{key}'"
        with pytest.raises(DataError, match=message):
            Pairs.open(write_jsonl(root, rows), config)
    # null is a value: this picture shows nobody who is known.
    assert len(Pairs.open(write_jsonl(root, [ROWS[0], {**row, "person": None}]))) == 2


BAD_RECORDS: list[tuple[dict[str, Any], str]] = [
    ({"image": "../x.png", "caption": "x"}, "climbs out"),
    ({"image": "/etc/passwd", "caption": "x"}, "is absolute"),
    ({"image": 5, "caption": "x"}, "the image is 5"),
    ({"caption": "x"}, "the image is None"),
    ({"image": "imgs/0.png"}, "the caption is None"),
    ({"image": "imgs/0.png", "caption": ""}, "holds no word"),
    ({"image": "imgs/0.png", "caption": 12}, "the caption is 12"),
    ({"image": "imgs/0.png", "caption": []}, "list of captions is empty"),
    ({"image": "imgs/0.png", "caption": "y" * 3_000_000}, "3000000 characters"),
    ({"image": "imgs/0.png", "caption": "x", "person": 1.5}, "the person is 1.5"),
]


@pytest.mark.parametrize(("record", "message"), BAD_RECORDS)
def test_bad_records_are_named_by_line(root: Path, record: dict[str, Any], message: str) -> None:
    record = {"person": "bob", **record}
    path = write_jsonl(root, [ROWS[0], record, ROWS[2]])
    with pytest.raises(DataError, match=f"jsonl, line 2: .*{message}"):
        Pairs.open(path)
    path = write_json(root, [ROWS[0], record, ROWS[2]])
    with pytest.raises(DataError, match=f"json, record 2: .*{message}"):
        Pairs.open(path)


def test_a_bad_caption_does_not_take_the_good_ones_of_its_picture_along(root: Path) -> None:
    rows = [{**ROWS[0], "caption": ["?!", CAPTIONS[0], 7, "red"]}, {**ROWS[1], "caption": ["?!"]}]
    pairs = Pairs.open(write_jsonl(root, rows), PairsConfig(on_bad_caption="skip"))
    assert [pair.captions for pair in pairs] == [(CAPTIONS[0], "red")]
    assert pairs.skipped_captions.count == 3
    same = Pairs.open(write_json(root, [{**ROWS[0], "caption": [CAPTIONS[0], "red"]}]))
    assert pairs.ids.tolist() == same.ids.tolist()


def test_bad_captions_can_be_skipped_and_are_counted(root: Path) -> None:
    bad = {"image": "imgs/1.png", "caption": "?!", "person": "carl"}
    path = write_jsonl(root, [ROWS[0], bad, ROWS[2], {**bad, "caption": 3}])
    pairs = Pairs.open(path, PairsConfig(on_bad_caption="skip"))
    assert [pair.captions[0] for pair in pairs] == [CAPTIONS[0], CAPTIONS[2]]
    assert pairs.person_names == ("ann",)
    assert pairs.skipped_captions.count == 2
    assert "line 2" in str(pairs.skipped_captions)
    path = write_jsonl(root, [bad])
    with pytest.raises(DataError, match=r"holds no pairs \(1 caption skipped; the first: .*line 1"):
        Pairs.open(path, PairsConfig(on_bad_caption="skip"))
    climbing = {"image": "../1.png", "caption": "x"}
    with pytest.raises(DataError, match="climbs out"):
        Pairs.open(write_jsonl(root, [climbing]), PairsConfig(on_bad_caption="skip"))


def test_a_person_is_on_one_side_only(tmp_path: Path) -> None:
    pairs = Pairs.open(save_tiny_pairs(tmp_path, 60, persons=True))
    train, held = split_pairs(group_ids(pairs), 0.3)
    assert sorted([*train, *held]) == list(range(60))
    assert not set(pairs.persons[train]) & set(pairs.persons[held])


def test_records_of_one_picture_stay_together(tmp_path: Path) -> None:
    rows = [{"image": f"{n % 10}.png", "caption": f"words number {n}"} for n in range(30)]
    path = tmp_path / "flat.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows), "utf-8")
    train, held = split_pairs(group_ids(Pairs.open(path)), 0.3)
    assert len(train)
    assert len(held) >= 6
    assert not {n % 10 for n in train.tolist()} & {n % 10 for n in held.tolist()}


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_pairs_of_one_value_in_a_column_stay_together(tmp_path: Path, kind: str) -> None:
    rows = [{"image": f"{n}.png", "caption": f"words {n}", "patient": n % 10} for n in range(30)]
    path = tmp_path / f"flat.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif kind == "csv":
        cells = [list(rows[0]), *(list(map(str, row.values())) for row in rows)]
        path.write_text("\n".join(",".join(row) for row in cells), "utf-8")
    else:
        path.write_text("\n".join(json.dumps(row) for row in rows), "utf-8")
    config = PairsConfig(group_column="patient")
    train, held = split_pairs(group_ids(Pairs.open(path, config)), 0.3)
    assert len(train)
    assert len(held) >= 6
    assert not {n % 10 for n in train.tolist()} & {n % 10 for n in held.tolist()}


def test_groups_that_decide_nothing_are_refused_in_one_line(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"image": f"{n}.png", "caption": f"words {n}", "patient": "" if n in (3, 5) else n}
        for n in range(8)
    ]
    path = tmp_path / "flat.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows), "utf-8")
    with pytest.raises(DataError, match="--group-column patient is empty for 2 pairs"):
        Pairs.open(path, PairsConfig(group_column="patient"))
    with pytest.raises(DataError, match=r"no column 'doctor'.*name one of them as group_column"):
        Pairs.open(path, PairsConfig(group_column="doctor"))
    path.write_text("\n".join(json.dumps({**row, "person": 1}) for row in rows), "utf-8")
    with pytest.raises(DataError, match=r"names a person, .*leave out --group-column patient"):
        Pairs.open(path, PairsConfig(group_column="patient"))


def test_the_choice_does_not_depend_on_the_other_pairs() -> None:
    groups = np.random.default_rng(0).integers(0, 2**63, 5000).astype(np.uint64)
    _, held = split_pairs(groups, 0.1)
    _, fewer = split_pairs(groups[:2000], 0.1)
    assert set(fewer.tolist()) == {i for i in held.tolist() if i < 2000}
    # Binomial: five standard deviations around 500.
    assert abs(len(held) - 500) < 5 * np.sqrt(5000 * 0.1 * 0.9)


def test_a_tiny_share_still_leaves_two_groups_to_compare() -> None:
    groups = np.arange(10, dtype=np.uint64)
    train, held = split_pairs(groups, 1e-9)
    assert (len(train), len(held)) == (8, 2)


def test_two_pictures_are_too_few() -> None:
    with pytest.raises(DataError, match="at least 3"):
        split_pairs(np.array([1, 1, 2], np.uint64), 0.5)


def test_a_wrong_picture_is_always_of_another_group() -> None:
    groups = np.repeat(np.arange(7, dtype=np.uint64), [1, 4, 2, 3, 1, 1, 2])
    among = np.arange(len(groups))
    wrong = wrong_pairs(groups, among)
    assert (groups[wrong] != groups).all()
    with pytest.raises(DataError, match="no wrong picture"):
        wrong_pairs(groups, among[1:5])
