from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskery.core.errors import ConfigError
from maskery.data.corpus.config import CorpusConfig
from maskery.data.corpus.examples import Reading, ReadingReport, example_id, is_held_out, mix
from maskery.data.corpus.reader import Corpus


def test_an_id_is_the_hash_of_the_text() -> None:
    # `printf 'maskery' | b2sum --length 64` gives the bytes in order; the id reads them from
    # the low end.
    digest = hashlib.blake2b("Gedächtnis".encode(), digest_size=8).digest()
    assert example_id("Gedächtnis") == sum(byte << (8 * i) for i, byte in enumerate(digest))
    assert example_id("") == int.from_bytes(bytes.fromhex("e4a6a0577479b2b4"), "little")


def splitmix64(seed: int) -> int:
    z = (seed + 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
    return z ^ z >> 31


def test_mixing_is_splitmix64() -> None:
    # The first outputs for seeds 0 and 1234567, as published with the Java and C versions.
    known = {0: 0xE220A8397B1DCDAF, 1234567: 6457827717110365317}
    assert mix(np.array(list(known), np.uint64)).tolist() == list(known.values())


@given(st.lists(st.integers(0, 2**64 - 1), max_size=50), st.floats(0, 1))
def test_held_out_is_the_hash_below_the_share(ids: list[int], share: float) -> None:
    array = np.array(ids, np.uint64)
    chosen = is_held_out(array, share)
    assert chosen.tolist() == [splitmix64(i) < share * 2**64 for i in ids]
    assert array.tolist() == ids
    assert not (chosen & ~is_held_out(array, min(1.0, share + 0.1))).any()


@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 1.0])
def test_the_share_holds_for_texts_and_for_plain_numbers(share: float) -> None:
    n = 20_000
    ids = np.array([example_id(f"text {i}") for i in range(n)], np.uint64)
    tolerance = 5 * np.sqrt(share * (1 - share) / n)
    assert abs(is_held_out(ids, share).mean() - share) <= tolerance
    assert abs(is_held_out(np.arange(n, dtype=np.uint64), share).mean() - share) <= tolerance


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan")])
def test_a_share_out_of_range_fails(share: float) -> None:
    with pytest.raises(ConfigError, match="must be from 0 to 1"):
        is_held_out(np.zeros(1, np.uint64), share)


def test_nothing_unusual_needs_no_line() -> None:
    assert ReadingReport(examples=5).describe() is None


def test_what_was_decided_is_in_the_line(tmp_path: Path) -> None:
    for name, encoding in (("a", "utf-8"), ("b", "utf-8"), ("c", "utf-16")):
        (tmp_path / f"{name}.txt").write_text("Grüße aus Köln\n" * 9, encoding)
    corpus = Corpus.open([str(tmp_path)], CorpusConfig(encoding="auto"))
    for _ in range(2):  # each reading counts afresh
        assert {example.text for example in corpus} == {"Grüße aus Köln"}
        assert corpus.report.describe() == "--encoding auto: 2 as utf-8, 1 as utf-16-le"


def test_the_line_to_the_user() -> None:
    report = ReadingReport(examples=9, skipped=1, replaced=2000, cut=2, pieces=5, empty_files=1)
    assert report.describe() == (
        "skipped 1 text that cannot be read; replaced bad characters in 2,000 texts; "
        "cut 2 long texts into 5 examples; passed over 1 empty file"
    )


def test_places() -> None:
    reading = Reading(
        path=Path("a.parquet"),
        config=CorpusConfig(),
        report=ReadingReport(),
        source="a.parquet",
        on_read=lambda _: None,
    )
    assert reading.place == "a.parquet"
    reading.unit, reading.number = "row", 3
    assert reading.place == "a.parquet, row 3"
