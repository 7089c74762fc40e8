from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from maskery.core.errors import DataError
from maskery.data.pairs.config import PairsConfig
from maskery.data.pairs.pairs import Pairs


def write(path: Path, images: object, captions: object = None, **options: object) -> Path:
    images = images if isinstance(images, pa.Array) else pa.array(images)
    captions = captions if captions is not None else ["word"] * len(images)
    pq.write_table(pa.table({"image": images, "caption": captions}), path, **options)
    return path


def test_rows_of_many_groups_in_any_order_and_from_threads(
    tmp_path: Path, pictures: list[bytes]
) -> None:
    images = [pictures[n % 3] for n in range(60)]
    captions = [f"row {n}" for n in range(60)]
    pairs = Pairs.open(write(tmp_path / "p.parquet", images, captions, row_group_size=7))
    order = [(n * 37) % 60 for n in range(60)]
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda n: pairs[n].image.load().getpixel((0, 0)), order))
    assert got == [[(250, 0, 0), (0, 250, 0), (0, 0, 250)][n % 3] for n in order]
    assert [pairs[n].captions[0] for n in order] == [captions[n] for n in order]


def test_lists_of_captions(tmp_path: Path, pictures: list[bytes]) -> None:
    pairs = Pairs.open(write(tmp_path / "p.parquet", pictures[:1], [["one", "two"]]))
    assert pairs[0].captions == ("one", "two")


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([1, 2], "column 'image' is of type int64"),
        ([{"pixels": b"x"}], "is of type struct"),
        (["../x.png"], r"row 0: .*climbs out"),
        (["/x.png"], "row 0: .*is absolute"),
    ],
)
def test_bad_columns(tmp_path: Path, images: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Pairs.open(write(tmp_path / "p.parquet", images))


def test_bad_captions_are_named_by_row(tmp_path: Path, pictures: list[bytes]) -> None:
    with pytest.raises(DataError, match=r"p\.parquet, row 1: the caption is None"):
        Pairs.open(write(tmp_path / "p.parquet", pictures[:2], ["a", None]))
    with pytest.raises(DataError, match="row 0: the caption is 1"):
        Pairs.open(write(tmp_path / "p.parquet", pictures[:2], [1, 2]))


def test_null_images_and_paths_out_of_the_root_are_found_when_loaded(tmp_path: Path) -> None:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = [None, {"bytes": None, "path": None}, {"bytes": None, "path": "../x.png"}]
    pairs = Pairs.open(write(tmp_path / "p.parquet", pa.array(rows, kind)))
    for index, message in ((0, "image is null"), (1, "image is null"), (2, "climbs out")):
        with pytest.raises(DataError, match=f"row {index}: .*{message}"):
            pairs[index].image.load()


def test_no_parquet(tmp_path: Path) -> None:
    (tmp_path / "p.parquet").write_bytes(b"PAR1 not really PAR1")
    with pytest.raises(DataError, match="not a sound Parquet file"):
        Pairs.open(tmp_path / "p.parquet")


def test_images_option_moves_the_root_of_paths(
    tmp_path: Path, root: Path, pictures: list[bytes]
) -> None:
    path = write(tmp_path / "p.parquet", ["2.png"])
    pairs = Pairs.open(path, PairsConfig(images=root / "imgs"))
    assert pairs[0].image.load().getpixel((0, 0)) == (0, 0, 250)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=4))
@example([(280, 0)])  # a row group that turns out shorter than its metadata says
def test_flipped_bytes_give_pairs_or_one_line(
    tmp_path: Path, changes: list[tuple[int, int]]
) -> None:
    path = write(tmp_path / "p.parquet", [b"x" * 30, b"y" * 30])
    broken = bytearray(path.read_bytes())
    for position, value in changes:
        broken[position % len(broken)] = value
    path.write_bytes(bytes(broken))
    message = ""
    try:
        for pair in Pairs.open(path):
            assert isinstance(pair.image.load(), Image.Image)
    except DataError as error:
        message = str(error)
    assert "\n" not in message
