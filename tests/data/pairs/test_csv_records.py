from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from maskery.core.errors import DataError
from maskery.data.pairs.pairs import Pairs

FUZZ = settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def opened(path: Path, content: bytes) -> Pairs:
    path.write_bytes(content)
    return Pairs.open(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has no image column"),
        (b"image,caption\n", "holds no pairs"),
        (b"a,b\n1,2\n", "line 1 has no image column .* only 'a', 'b'"),
        (b"image,caption,caption\nx,y,z\n", "line 1: a column name occurs twice"),
        (b"image,caption\nx.png,a man, walking\n", "line 2: 3 fields where the header has 2"),
        (b"image,caption\nx.png\n", "line 2: 1 fields"),
        (b'image,caption\nx.png,"a man\n', "line 2: unexpected end of data"),
        (b'image,caption\nx.png,"a" man\n', "line 2: .*mend the quoting"),
        (b"image,caption\nx.png,\xff\n", "is not valid UTF-8"),
        (b"image,caption\nx.png,\n", "line 2: the caption '' holds no word"),
        (b"image,caption\nx.png,a\n../y.png,b\n", "line 3: .*climbs out"),
        (b"image,caption\nx.png," + b"a" * 200_000 + b"\n", "line 2: "),
        (b"image,caption\nx\0.png,a\n", "line 2"),
    ],
)
def test_bad_files(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        opened(tmp_path / "pairs.csv", content)
    assert "\n" not in str(caught.value)


@FUZZ
@given(
    content=st.binary(max_size=200) | st.binary(max_size=100).map(lambda b: b"image,caption\n" + b),
    name=st.sampled_from(["pairs.csv", "pairs.tsv"]),
)
def test_arbitrary_bytes_give_pairs_or_one_line(tmp_path: Path, content: bytes, name: str) -> None:
    message = ""
    try:
        opened(tmp_path / name, content)
    except DataError as error:
        message = str(error)
    assert "\n" not in message


@FUZZ
@given(
    captions=st.lists(
        st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20).map(
            lambda text: f"a{text}b"
        ),
        min_size=1,
        max_size=5,
    ),
    separator=st.sampled_from([",", "\t"]),
)
def test_quoted_captions_come_back(tmp_path: Path, captions: list[str], separator: str) -> None:
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, delimiter=separator)
    writer.writerow(["image", "caption"])
    writer.writerows(["a.png", caption] for caption in captions)
    pairs = opened(tmp_path / "pairs.csv", buffer.getvalue().encode())
    assert [pair.captions[0] for pair in pairs] == captions
