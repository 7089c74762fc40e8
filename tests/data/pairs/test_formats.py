from __future__ import annotations

import json
from pathlib import Path

import pytest

from maskery.core.errors import DataError
from maskery.data.pairs.config import PairsConfig
from maskery.data.pairs.formats import expand
from maskery.data.pairs.pairs import Pairs


def jsonl(path: Path, caption: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"image": "a.png", "caption": caption}) + "\n")


def test_patterns_are_sorted(tmp_path: Path) -> None:
    for name in ("b", "a", "c"):
        jsonl(tmp_path / f"{name}.jsonl", name)
    assert [pair.captions[0] for pair in Pairs.open(str(tmp_path / "*.jsonl"))] == ["a", "b", "c"]


def test_ranges_keep_zeros_and_nest(tmp_path: Path) -> None:
    for folder in (1, 2):
        for number in (8, 9, 10):
            jsonl(tmp_path / str(folder) / f"{number:03d}.jsonl", f"{folder} {number}")
    paths = expand(str(tmp_path / "{1..2}" / "{008..010}.jsonl"))
    assert [p.relative_to(tmp_path).as_posix() for p in paths] == [
        f"{folder}/{number}.jsonl" for folder in (1, 2) for number in ("008", "009", "010")
    ]


def test_ranges_with_holes_are_refused(tmp_path: Path) -> None:
    jsonl(tmp_path / "0.jsonl", "x")
    with pytest.raises(DataError, match=r"1 of the 2 files .* are missing, first .*1\.jsonl"):
        Pairs.open(str(tmp_path / "{0..1}.jsonl"))
    with pytest.raises(DataError, match=r"the range \{3..1\} has 0 numbers"):
        Pairs.open(str(tmp_path / "{3..1}.jsonl"))
    with pytest.raises(DataError, match="numbers; give a rising one"):
        Pairs.open(str(tmp_path / "{0..99999999999}.jsonl"))


def test_a_name_with_brackets_is_a_file_first(tmp_path: Path) -> None:
    jsonl(tmp_path / "pairs[1].jsonl", "x")
    assert len(Pairs.open(tmp_path / "pairs[1].jsonl")) == 1


def test_nothing_there(tmp_path: Path) -> None:
    for name in ("nothing.jsonl", "*.jsonl", "x" * 5000):
        with pytest.raises(DataError, match="does not exist"):
            Pairs.open(tmp_path / name)
    with pytest.raises(DataError, match="null character"):
        Pairs.open("a\0b")
    jsonl(tmp_path / "pairs.jsonl", "x")
    with pytest.raises(DataError, match=r"it has backslashes.*did you mean .*/pairs\.jsonl\?"):
        Pairs.open(f"{tmp_path}\\pairs.jsonl")


def test_unknown_and_mixed_formats(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(DataError, match=r"has the ending '\.txt'; pairs are read from \.json"):
        Pairs.open(tmp_path / "a.txt")
    jsonl(tmp_path / "b.jsonl", "x")
    with pytest.raises(DataError, match=r"several formats \(\.jsonl, \.txt\)"):
        Pairs.open(tmp_path / "*")


def test_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no pairs: expected metadata\.jsonl or"):
        Pairs.open(tmp_path)


def test_two_kinds_of_metadata(tmp_path: Path) -> None:
    jsonl(tmp_path / "metadata.jsonl", "x")
    (tmp_path / "metadata.csv").write_text("file_name,text\na,b\n")
    with pytest.raises(DataError, match="has both metadata"):
        Pairs.open(tmp_path)


def test_paths_are_relative_to_the_table_that_names_them(tmp_path: Path) -> None:
    jsonl(tmp_path / "a" / "x.jsonl", "x")
    jsonl(tmp_path / "b" / "x.jsonl", "y")
    pattern = str(tmp_path / "*" / "x.jsonl")
    assert [pair.image.name for pair in Pairs.open(pattern)] == ["a/a.png", "b/a.png"]
    same = Pairs.open(pattern, PairsConfig(images=tmp_path))
    assert [pair.image.name for pair in same] == ["a.png", "a.png"]
