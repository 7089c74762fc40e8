from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskery.core.errors import DataError
from maskery.data.shards.manifest import FileEntry, LengthCounts, Manifest, ShardEntry

SHA = "0" * 64


def manifest(**changes: Any) -> Manifest:
    settings: dict[str, Any] = {
        "fingerprint": "a" * 32,
        "tokenizer": "bert",
        "tokenizer_fingerprint": "b" * 32,
        "tokenizer_files": (FileEntry(file="vocab.txt", bytes=1, sha256=SHA),),
        "vocab_size": 10,
        "held_out_share": 0.1,
        "lengths": FileEntry(file="lengths.safetensors", bytes=1, sha256=SHA),
        "shards": (ShardEntry(file="a", bytes=1, sha256=SHA, documents=3, tokens=8),),
        "held_out": (),
    }
    return Manifest(**(settings | changes))


def test_what_was_written_is_read() -> None:
    whole = manifest()
    assert Manifest.from_json(whole.to_json(), "here") == whole
    listed = json.loads(whole.to_json())
    assert (listed["format"], listed["documents"], listed["tokens"]) == (1, 3, 8)


@pytest.mark.parametrize(
    "name", ["../a", "/etc/passwd", "a/b", "..", ".hidden", "", "a\\b", "a\0", "x" * 300, 5, None]
)
def test_a_file_name_cannot_leave_the_folder(name: object) -> None:
    listed = json.loads(manifest().to_json())
    for entry in (listed["shards"][0], listed["tokenizer_files"][0], listed["lengths"]):
        kept = entry["file"]
        entry["file"] = name
        with pytest.raises(DataError, match="a file name in it is not valid"):
            Manifest.from_json(json.dumps(listed).encode(), "here")
        entry["file"] = kept


def test_another_format_is_refused() -> None:
    data = manifest().to_json().replace(b'"format": 1', b'"format": 9')
    with pytest.raises(DataError, match="'here' has format 9"):
        Manifest.from_json(data, "'here'")


def test_shards_without_a_token_are_none() -> None:
    listed = json.loads(manifest().to_json())
    for shards in ([], [{**listed["shards"][0], "documents": 0, "tokens": 0}]):
        with pytest.raises(DataError, match="a number of tokens in it is not valid"):
            Manifest.from_json(json.dumps({**listed, "shards": shards}).encode(), "here")


@given(data=st.data())
def test_a_damaged_manifest_gives_one_kind_of_error(data: st.DataObject) -> None:
    whole = manifest().to_json()
    place = data.draw(st.integers(0, len(whole) - 1))
    damaged = whole[:place] + data.draw(st.binary(max_size=2)) + whole[place + 1 :]
    with contextlib.suppress(DataError):
        Manifest.from_json(damaged, "here")


def test_lengths_must_agree_with_the_manifest(tmp_path: Path) -> None:
    path = tmp_path / "lengths"
    path.write_bytes(LengthCounts.gather([[[2, 2], [4, 1]]]).to_bytes())
    found = LengthCounts.open(path, manifest())
    values, counts = found.of(0)
    assert (values.tolist(), counts.tolist()) == ([2, 4], [2, 1])
    for rows in ([[[2, 2], [3, 1]]], [[[2, 4]]], [[[2, 2], [4, 1]], [[1, 1]]]):
        path.write_bytes(LengthCounts.gather(rows).to_bytes())
        with pytest.raises(DataError, match=r"does not fit to shards\.json"):
            LengthCounts.open(path, manifest())
    path.write_bytes(b"\0" * 9)
    with pytest.raises(DataError, match="cannot be read"):
        LengthCounts.open(path, manifest())


def test_a_histogram_without_shards() -> None:
    assert LengthCounts.gather([]).offsets.tolist() == [0]
    assert LengthCounts.gather([]).lengths.dtype == np.uint32
