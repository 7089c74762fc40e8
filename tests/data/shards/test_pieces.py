"""Pieces give exactly the examples that reading the whole files gives, however finely they cut."""

from __future__ import annotations

import gzip
import json
from itertools import chain
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskery.core.errors import DataError
from maskery.data.corpus.config import CorpusConfig, ShardingConfig
from maskery.data.corpus.reader import Corpus
from maskery.data.shards.pieces import line_boundary, plan_fingerprint, plan_pieces, read_piece

TEXTS = ["river stone", "a", "ember " * 30, "", " ", "\ufeffmark", "ünïcödé", "ÿþ", "the end"]


def whole(files: list[Path], config: CorpusConfig) -> list[tuple[str, int]]:
    corpus = Corpus(config=config, files=files)
    return [(example.text, example.id) for example in corpus]


def in_pieces(
    files: list[Path], config: CorpusConfig, shard_bytes: int
) -> list[list[tuple[str, int]]]:
    corpus = Corpus(config=config, files=files)
    pieces = plan_pieces(corpus, shard_bytes)
    return [
        [(example.text, example.id) for example in read_piece(piece, corpus)] for piece in pieces
    ]


@given(
    parts=st.lists(
        st.tuples(st.sampled_from(TEXTS), st.sampled_from(["\n", "\r\n", "\n\n", "\n\r\n", "\r"])),
        min_size=1,
        max_size=40,
    ),
    shard_bytes=st.integers(1, 400),
    unit=st.sampled_from(["line", "paragraph", "document"]),
    encoding=st.sampled_from(["utf-8", "latin-1", "utf-16"]),
)
def test_cut_text_is_whole_text(
    tmp_path_factory: pytest.TempPathFactory,
    parts: list[tuple[str, str]],
    shard_bytes: int,
    unit: str,
    encoding: str,
) -> None:
    text = "start" + "".join(chain.from_iterable(parts))
    path = tmp_path_factory.mktemp("text") / "a.txt"
    path.write_bytes(text.encode(encoding, "replace"))
    config = CorpusConfig(unit=unit, encoding=encoding)  # type: ignore[arg-type]
    found = in_pieces([path], config, shard_bytes)
    assert list(chain.from_iterable(found)) == whole([path], config)


@given(values=st.lists(st.sampled_from(TEXTS), min_size=1, max_size=40), size=st.integers(1, 300))
def test_cut_json_lines_are_whole_json_lines(
    tmp_path_factory: pytest.TempPathFactory, values: list[str], size: int
) -> None:
    path = tmp_path_factory.mktemp("json") / "a.jsonl"
    rows = [json.dumps({"text": value}, ensure_ascii=False) for value in [*values, "text"]]
    path.write_text("\n".join(rows), "utf-8")
    found = list(chain.from_iterable(in_pieces([path], CorpusConfig(), size)))
    assert found == whole([path], CorpusConfig())


def test_large_files_are_cut_small_ones_put_together_and_some_left_whole(tmp_path: Path) -> None:
    lines = "".join(f"line {n} of text\n" for n in range(300))
    files = [tmp_path / name for name in ("a.txt", "b.csv", "c.txt.gz", "d.parquet")]
    files += [tmp_path / f"e{n}.txt" for n in range(9)]
    files[0].write_text(lines)
    files[1].write_text('text\n"quoted\nline"\n' + "row\n" * 300)
    files[2].write_bytes(gzip.compress(lines.encode()))
    table = pa.table({"text": [f"row {n} of a table" for n in range(200)]})
    pq.write_table(table, files[3], row_group_size=20, compression="none", use_dictionary=False)
    for path in files[4:]:
        path.write_text("small\n" * 10)
    config = CorpusConfig()
    corpus = Corpus(config=config, files=files)
    pieces = plan_pieces(corpus, 600)
    kinds: dict[int, list[str]] = {}
    for piece in pieces:
        for span in piece:
            kinds.setdefault(span.file, []).append(span.kind)
    assert kinds[0] == ["bytes"] * len(kinds[0])
    assert len(kinds[0]) == -(-files[0].stat().st_size // 600)
    assert kinds[1] == kinds[2] == ["whole"]
    assert set(kinds[3]) == {"row groups"}
    assert len(kinds[3]) > 5
    assert any(len(piece) > 5 for piece in pieces)  # the small ones
    assert all(
        sum(s.size for s in piece) <= 600 for piece in pieces if {s.file for s in piece} - {1, 2, 3}
    )
    found = list(chain.from_iterable(in_pieces(files, config, 600)))
    assert found == whole(files, config)


def test_row_numbers_count_from_the_start_of_a_table(tmp_path: Path) -> None:
    values = [f"row {n} of a table" for n in range(100)]
    values[70] = "bad\0"
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": values}), path, row_group_size=10, compression="none")
    with pytest.raises(DataError, match=r"a.parquet, row 71 holds a NUL"):
        in_pieces([path], CorpusConfig(), 200)


def test_an_error_in_a_later_piece_says_where_it_counts_from(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"good\n" * 100 + b"b\xffd\n")
    with pytest.raises(DataError, match=r"a.txt from byte \d+ on: byte \d+ is not valid utf-8"):
        in_pieces([path], CorpusConfig(), 100)


def test_a_damaged_table_is_one_clear_line(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1" + b"x" * 1000)
    with pytest.raises(DataError, match="no whole Parquet file"):
        plan_pieces(Corpus(config=CorpusConfig(), files=[path]), 100)


@given(data=st.binary(max_size=80).map(lambda b: b.replace(b"a", b"\n")), paragraphs=st.booleans())
def test_boundaries_ascend_and_stand_after_line_ends(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, paragraphs: bool
) -> None:
    path = tmp_path_factory.mktemp("bytes") / "a"
    path.write_bytes(data)
    found = [line_boundary(path, n, len(data), paragraphs=paragraphs) for n in range(len(data) + 1)]
    assert found == sorted(found)
    assert (found[0], found[-1]) == (0, len(data))
    for offset, edge in enumerate(found):
        assert edge >= offset
        if 0 < edge < len(data):
            assert data[:edge].endswith((b"\n\n", b"\n\r\n") if paragraphs else b"\n")
            assert data[edge] not in (0xEF, 0xFE, 0xFF)


def test_boundaries_are_found_across_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("maskery.data.shards.pieces.BLOCK_BYTES", 1)
    path = tmp_path / "a"
    path.write_bytes(b"one\r\n\r\ntwo\nthree\n\nfour")
    edges = [line_boundary(path, n, 22, paragraphs=True) for n in range(23)]
    # The blank lines begin with the line ends at 4 and 16.
    assert edges == [0, *[7] * 5, *[18] * 12, *[22] * 5]


def test_the_fingerprint_changes_with_what_decides_the_shards(tmp_path: Path) -> None:
    def fingerprint(
        name: str = "x/a.txt",
        size: int = 5,
        tokenizer: str = "t",
        unit: str = "line",
        **more: float,
    ) -> str:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"a" * size)
        corpus = Corpus(config=CorpusConfig(unit=unit), files=[path])  # type: ignore[arg-type]
        settings = {"shard_mb": 1e-5, "held_out_share": 0.1, **more}
        return plan_fingerprint(corpus, ShardingConfig(**settings), tokenizer)  # type: ignore[arg-type]

    others = [
        fingerprint(name="x/b.txt"),
        fingerprint(size=6),
        fingerprint(unit="document"),
        fingerprint(shard_mb=1.1e-5),
        fingerprint(held_out_share=0.2),
        fingerprint(tokenizer="u"),
    ]
    assert len({fingerprint(), *others}) == len(others) + 1
    assert fingerprint(name="y/a.txt") == fingerprint()
