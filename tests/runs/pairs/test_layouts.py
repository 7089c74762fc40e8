"""Every layout of pairs has every property that docs/image_text_mlm.md says it has."""

from __future__ import annotations

import csv
import io
import json
import re
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from odd_pictures import raw_png, swapped_profile
from PIL import Image

from maskery.core.errors import DataError
from maskery.data.pairs.config import PairsConfig
from maskery.data.pairs.pairs import Pairs, group_ids, split_pairs
from maskery.runs.pairs.run import not_held_out

Row = dict[str, Any]
RED, GREEN, BLUE = (250, 0, 0), (0, 250, 0), (0, 0, 250)
# How each layout's file is called; a folder where there is none.
ENDINGS = {
    "CSV": ".csv",
    "JSONL": ".jsonl",
    "Parquet, paths": ".parquet",
    "Parquet, bytes": ".parquet",
    "imagefolder": "",
    "webdataset": ".tar",
}
FILES = ("CSV", "JSONL", "Parquet, paths", "imagefolder")  # pictures are files of their own
HERE = Path(__file__).parent


def png(colour: tuple[int, int, int], kind: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (4, 3), colour).save(out, kind, **options)
    return out.getvalue()


def shade(number: int) -> bytes:
    """A picture like no other."""
    return png((number, 255 - number, 7 * number % 256))


def save(layout: str, folder: Path, rows: list[Row], stem: str = "t") -> Path:
    """Write rows of image (a name), content (its bytes), caption and others; returns the source."""
    folder.mkdir(parents=True, exist_ok=True)
    plain = [{key: value for key, value in row.items() if key != "content"} for row in rows]
    if layout == "webdataset":
        return save_shard(folder / f"{stem}.tar", rows)
    if layout == "Parquet, bytes":
        plain = [{**row, "image": full["content"]} for row, full in zip(plain, rows, strict=True)]
    else:
        for row in rows:
            if row.get("content") is not None:
                (folder / row["image"]).parent.mkdir(parents=True, exist_ok=True)
                (folder / row["image"]).write_bytes(row["content"])
    if layout.startswith("Parquet"):
        pq.write_table(pa.Table.from_pylist(plain), folder / f"{stem}.parquet")
        return folder / f"{stem}.parquet"
    if layout == "JSONL":
        (folder / f"{stem}.jsonl").write_text("\n".join(map(json.dumps, plain)), "utf-8")
        return folder / f"{stem}.jsonl"
    path = folder / ("metadata.csv" if layout == "imagefolder" else f"{stem}.csv")
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow("file_name" if key == "image" else key for key in plain[0])
        writer.writerows(row.values() for row in plain)
    return folder if layout == "imagefolder" else path


def save_shard(path: Path, rows: list[Row]) -> Path:
    with tarfile.open(path, "w") as tar:
        for number, row in enumerate(rows):
            suffix = Path(row["image"]).suffix or ".png"
            others = {k: v for k, v in row.items() if k not in ("image", "content")}
            members = {suffix: row["content"], ".json": json.dumps(others).encode()}
            for ending, content in members.items():
                info = tarfile.TarInfo(f"{number:05d}{ending}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return path


def colours(pairs: Pairs) -> list[Any]:
    return [pair.image.load().getpixel((0, 0)) for pair in pairs]


def words(pairs: Pairs) -> list[str]:
    return [pair.captions[0] for pair in pairs]


def picture_rows(count: int, ways: int = 1, **more: Callable[[int, int], Any]) -> list[Row]:
    """Rows of `count` pictures with `ways` captions each, one a row; `more` columns."""
    return [
        {
            "image": ("./" if way % 2 else "") + f"{number}.png",
            "content": shade(number),
            "caption": f"way {way} of {number}",
            **{name: column(number, way) for name, column in more.items()},
        }
        for number in range(count)
        for way in range(ways)
    ]


def equal_names_in_two_folders_are_two_pictures(layout: str, folder: Path) -> None:
    for name, colour in (("a", RED), ("b", BLUE)):
        row = {"image": "x.png", "content": png(colour), "caption": f"of {name}"}
        save(layout, folder / name, [row])
    ending = ENDINGS[layout]
    pairs = Pairs.open(str(folder / "*" / f"t{ending}") if ending else folder)
    assert words(pairs) == ["of a", "of b"]
    assert colours(pairs) == [RED, BLUE]
    assert len({pair.image.name for pair in pairs}) == len(np.unique(group_ids(pairs))) == 2


def splits_in_names_of_files_are_kept(layout: str, folder: Path) -> None:
    for split, first, count in (("train", 0, 6), ("test", 6, 3), ("validation", 9, 2)):
        rows = [{**row, "caption": f"{split} words"} for row in picture_rows(20)[first:][:count]]
        where = folder / split if layout == "imagefolder" else folder
        save(layout, where, rows, f"set-{split}-00000-of-00001")
    ending = ENDINGS[layout]
    train, held = Pairs.open_splits(str(folder / f"*{ending}") if ending else folder)
    assert held is not None
    assert (set(words(train)), len(train)) == ({"train words"}, 6)
    assert (set(words(held)), len(held)) == ({"test words"}, 3)


def splits_in_a_column_are_kept(layout: str, folder: Path) -> None:
    names = ["train"] * 2 + ["val", "test", "train", "test", "test", "test"]
    source = save(layout, folder, picture_rows(8, split=lambda n, _: names[n]))
    train, held = Pairs.open_splits(source)
    assert held is not None
    assert words(train) == [f"way 0 of {n}" for n in (0, 1, 4)]
    assert words(held) == [f"way 0 of {n}" for n in (3, 5, 6, 7)]
    assert colours(held)[0] == (3, 252, 21)
    assert words(Pairs.open(source, PairsConfig(split="val"))) == ["way 0 of 2"]


def a_numeric_id_is_no_person(layout: str, folder: Path) -> None:
    source = save(layout, folder, picture_rows(6, 5, id=lambda n, way: 100 + 5 * n + way))
    pairs = Pairs.open(source)
    assert pairs.person_names == ()
    assert len(np.unique(group_ids(pairs))) == 6
    assert len(Pairs.open(source, PairsConfig(person_column="id")).person_names) == 30


def captions_of_one_picture_are_on_one_side(layout: str, folder: Path) -> None:
    pairs = Pairs.open(save(layout, folder, picture_rows(12, 5)))
    train, held = split_pairs(group_ids(pairs), 0.4)
    shown = [{words(pairs)[i].split()[-1] for i in side} for side in (train, held)]
    assert not shown[0] & shown[1]
    assert len(shown[0]) + len(shown[1]) == 12


def a_picture_of_two_persons_keeps_both_on_one_side(layout: str, folder: Path) -> None:
    source = save(layout, folder, picture_rows(8, 2, person=lambda n, way: n + way))
    assert len(np.unique(group_ids(Pairs.open(source)))) == 1


def a_group_is_on_one_side(layout: str, folder: Path) -> None:
    source = save(layout, folder, picture_rows(20, patient=lambda n, _: n % 5))
    groups = group_ids(Pairs.open(source, PairsConfig(group_column="patient")))
    assert [len(np.unique(groups[n::5])) for n in range(5)] == [1] * 5
    with pytest.raises(DataError, match="no column 'doctor'"):
        Pairs.open(source, PairsConfig(group_column="doctor"))


def held_out_pictures_are_not_trained_on(layout: str, folder: Path) -> None:
    pairs = Pairs.open(save(layout, folder / "a", picture_rows(6)))
    rows = [{**row, "image": f"as-{row['image']}"} for row in picture_rows(9)[4:]]
    held = Pairs.open(save(layout, folder / "b", rows))
    assert not_held_out(pairs, held, PairsConfig()).tolist() == [0, 1, 2, 3]
    with pytest.raises(DataError, match="nothing is left to train on"):
        not_held_out(held, held, PairsConfig())
    assert not_held_out(held, pairs, PairsConfig()).tolist() == [2, 3, 4]


def bad_captions_are_skipped_and_counted(layout: str, folder: Path) -> None:
    bad = {1: "?!", 3: "", 4: " ", 6: "y" * 20_000}
    source = save(layout, folder, [
        {**row, "caption": bad.get(n, row["caption"])} for n, row in enumerate(picture_rows(8))
    ])  # fmt: skip
    pairs = Pairs.open(source, PairsConfig(on_bad_caption="skip"))
    assert words(pairs) == [f"way 0 of {n}" for n in (0, 2, 5, 7)]
    assert pairs.skipped_captions.count == 4
    with pytest.raises(DataError, match="holds no word"):
        Pairs.open(source)


def captions_in_five_scripts_come_back(layout: str, folder: Path) -> None:
    said = ["a red hat", "красная шляпа", "قبعة حمراء", "红色的帽子", "लाल टोपी"]
    rows = [{**row, "caption": said[n]} for n, row in enumerate(picture_rows(5))]
    assert words(Pairs.open(save(layout, folder, rows))) == said


def rare_endings_are_pictures(layout: str, folder: Path) -> None:
    names = ["a.jfif", "b.apng", "c.JPE", *(["f00dcafe"] if layout in FILES else [])]
    kinds = ["JPEG", "PNG", "JPEG", "PNG"]
    rows = [
        {"image": name, "content": png(GREEN, kind), "caption": name}
        for name, kind in zip(names, kinds, strict=False)
    ]
    found = colours(Pairs.open(save(layout, folder, rows)))
    assert np.abs(np.array(found) - GREEN).max() < 4


def deep(dtype: Any, kind: str = "TIFF") -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.full((3, 4), 200, dtype)).save(out, kind)
    return out.getvalue()


def deep_with_key() -> bytes:
    """A PNG of 16-bit grey whose level of 200 is transparent."""
    row = b"\0" + struct.pack(">4H", *[200] * 4)
    return raw_png((4, 3), row * 3, depth=16, colour=0, key=struct.pack(">H", 200))


def odd_pictures_are_right_or_refused_with_the_reason(layout: str, folder: Path) -> None:
    right = {
        "grey of 16 bits": (deep(np.uint16), (1, 1, 1)),
        "with a colour key": (deep_with_key(), (255, 255, 255)),
        "with a profile": (png(RED, icc_profile=swapped_profile()), BLUE),
    }
    refused = {
        "integers of 32 bits": (deep(np.int32), "32-bit grey levels"),
        "floating point": (deep(np.float32), "floating-point"),
        "empty": (b"", "is empty"),
        "text": (b"not a picture", "not a picture of a known format"),
    }
    rows = [
        {"image": f"{number}.tiff", "content": content, "caption": name}
        for number, (name, (content, _)) in enumerate({**right, **refused}.items())
    ]
    for pair in Pairs.open(save(layout, folder, rows)):
        if pair.captions[0] in right:
            found = np.array(pair.image.load().getpixel((0, 0)))
            assert np.abs(found - right[pair.captions[0]][1]).max() <= 1
        else:
            with pytest.raises(DataError, match=refused[pair.captions[0]][1]) as caught:
                pair.image.load()
            assert "\n" not in str(caught.value)


def paths_below_the_root_may_be_written_in_any_way(layout: str, folder: Path) -> None:
    root = folder / "imgs"
    for name, colour in (("x", RED), ("y", BLUE)):
        (root / name).mkdir(parents=True)
        (root / name / "0.png").write_bytes(png(colour))
    ways = [f"{root}/x/0.png", "y\\0.png", "C:\\data\\imgs\\x\\0.png", "./y/0.png"]
    source = save(layout, folder / "t", [{"image": way, "caption": "one word"} for way in ways])
    pairs = Pairs.open(source, PairsConfig(images=root))
    assert [pair.image.name for pair in pairs] == ["x/0.png", "y/0.png"] * 2
    assert colours(pairs) == [RED, BLUE] * 2
    for way in (f"{folder}/t.png", "D:\\other\\x\\0.png"):
        source = save(layout, folder / "u", [{"image": way, "caption": "one word"}])
        with pytest.raises(DataError, match=r"is absolute; .* lies under as --images") as caught:
            Pairs.open(source, PairsConfig(images=root))
        assert "\n" not in str(caught.value)


def pictures_outside_the_root_are_refused(layout: str, folder: Path) -> None:
    (folder / "secret.png").write_bytes(png(RED))
    for way in ("../secret.png", "a/../../secret.png", "..\\secret.png"):
        source = save(layout, folder / "t", [{"image": way, "caption": "one word"}])
        with pytest.raises(DataError, match="climbs out"):
            Pairs.open(source)


def links_are_followed_under_the_root_alone(layout: str, folder: Path) -> None:
    cache = folder / "datasets--me--pets"
    here = cache / "snapshots" / "abc"
    for path, colour in ((cache / "blobs" / "f00d", RED), (folder / "secret.png", BLUE)):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(colour))
    rows = [{"image": name, "caption": name} for name in ("in.png", "out.png")]
    source = save(layout, here, rows)
    (here / "in.png").symlink_to("../../blobs/f00d")
    (here / "out.png").symlink_to("../../../secret.png")
    inside, outside = Pairs.open(source)
    assert inside.image.load().getpixel((0, 0)) == RED
    with pytest.raises(DataError, match=r"leads out of the image folder.* as --images"):
        outside.image.load()
    # A root that holds both, and the table names its pictures below it.
    wider = [{"image": "datasets--me--pets/snapshots/abc/out.png", "caption": "one word"}]
    pairs = Pairs.open(save(layout, folder / "t", wider), PairsConfig(images=folder))
    assert colours(pairs) == [BLUE]


EVERYWHERE = [
    equal_names_in_two_folders_are_two_pictures,
    splits_in_names_of_files_are_kept,
    splits_in_a_column_are_kept,
    a_numeric_id_is_no_person,
    captions_of_one_picture_are_on_one_side,
    a_picture_of_two_persons_keeps_both_on_one_side,
    a_group_is_on_one_side,
    held_out_pictures_are_not_trained_on,
    bad_captions_are_skipped_and_counted,
    captions_in_five_scripts_come_back,
    rare_endings_are_pictures,
    odd_pictures_are_right_or_refused_with_the_reason,
]
OF_FILES = [
    paths_below_the_root_may_be_written_in_any_way,
    pictures_outside_the_root_are_refused,
    links_are_followed_under_the_root_alone,
]
CASES = [(layout, check) for layout in ENDINGS for check in EVERYWHERE]
CASES += [(layout, check) for layout in FILES for check in OF_FILES]


@pytest.mark.parametrize(
    ("layout", "check"), CASES, ids=[f"{layout}-{check.__name__}" for layout, check in CASES]
)
def test_a_layout_has_a_property(
    layout: str, check: Callable[[str, Path], None], tmp_path: Path
) -> None:
    check(layout, tmp_path)


def test_the_table_of_the_docs_names_every_property_and_layout() -> None:
    page = (HERE.parents[2] / "docs" / "image_text_mlm.md").read_text("utf-8")
    table = re.search(r"\| a property .*?\n\n", page, re.DOTALL)
    assert table is not None
    lines = [line.strip("| ") for line in table[0].strip().splitlines()]
    head, _, *rows = [[cell.strip() for cell in line.split("|")] for line in lines]
    assert head[1:] == list(ENDINGS)
    expected = [(check.__name__, list(ENDINGS)) for check in EVERYWHERE]
    expected += [(check.__name__, list(FILES)) for check in OF_FILES]
    found = []
    for name, *cells in rows:
        yes = [layout for layout, cell in zip(head[1:], cells, strict=True) if cell == "yes"]
        found.append((re.sub(r"\W+", "_", name), yes))
    assert found == expected
