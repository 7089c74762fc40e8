from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from maskery.core.errors import DataError
from maskery.data.pairs.config import PairsConfig
from maskery.data.pairs.pairs import Pairs

FUZZ = settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def opened(path: Path, content: bytes) -> Pairs:
    path.write_bytes(content)
    return Pairs.open(path, PairsConfig())


@pytest.mark.parametrize("name", ["pairs.json", "pairs.jsonl"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no pairs"),
        (b"\n \n", "holds no pairs"),
        (b"[]", "holds no pairs"),
        (b"[1]", "record 1: found 1 where an object"),
        (b"3\n", "line 1: found 3 where an object"),
        (b'"text"', "line 1: found 'text'"),
        (b'{"image": "a"', "line 1: not valid JSON"),
        (b'[{"image": "a", "caption": "b"}', "not valid JSON"),
        (b'{\n "images": [],\n "annotations": []\n}', "line 1: an object over several lines"),
        (b'{"image": "a", "caption": "\xff"}', "line 1: byte 27 is not valid UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"image": "a", "caption": "b", "id": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b"\x89PNG\r\n\x1a\n", "line 1: byte 0 is not valid UTF-8"),
        (b'{"a": 1}', "has no image column .* only 'a'"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        opened(tmp_path / name, content)
    assert "\n" not in str(caught.value)


def test_a_folder_that_looks_like_a_file(tmp_path: Path) -> None:
    (tmp_path / "pairs.json").mkdir()
    with pytest.raises(DataError, match="holds no pairs: expected metadata"):
        Pairs.open(tmp_path / "pairs.json")


@FUZZ
@given(content=st.binary(max_size=200), name=st.sampled_from(["pairs.json", "pairs.jsonl"]))
def test_arbitrary_bytes_give_one_line(tmp_path: Path, content: bytes, name: str) -> None:
    with pytest.raises(DataError) as caught:
        opened(tmp_path / name, content)
    assert "\n" not in str(caught.value)


VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=5,
)


@FUZZ
@given(
    rows=st.lists(
        st.fixed_dictionaries(
            {"image": VALUES, "caption": VALUES}, optional={"person": VALUES, "split": VALUES}
        ),
        min_size=1,
        max_size=4,
    ),
    as_list=st.booleans(),
)
def test_arbitrary_values_give_pairs_or_one_line(
    tmp_path: Path, rows: list[dict[str, Any]], as_list: bool
) -> None:
    text = json.dumps(rows) if as_list else "\n".join(json.dumps(row) for row in rows)
    try:
        pairs = opened(tmp_path / "pairs.json", text.encode())
    except DataError as error:
        message = str(error)
    else:
        message = ""
        assert len(pairs) == len(rows)
        assert all(all(pair.captions) for pair in pairs)
    assert "\n" not in message


TEXT = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20
)


@FUZZ
@given(captions=st.lists(TEXT.map(lambda text: f"a{text}b"), min_size=1, max_size=5))
def test_captions_come_back_as_they_were(tmp_path: Path, captions: list[str]) -> None:
    lines = [json.dumps({"image": "a.png", "caption": caption}) for caption in captions]
    pairs = opened(tmp_path / "pairs.jsonl", "\n".join(lines).encode())
    assert [pair.captions[0] for pair in pairs] == captions
