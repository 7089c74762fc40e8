"""Searches to be looked at: whose captions, which pictures, and which of them are right."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_persons import person_tokenizer, save_cuhk

from maskery.data.images.config import HALF_MEAN, HALF_STD, ViewConfig
from maskery.data.images.loading import Skipped
from maskery.data.pairs.captions import tokenise_captions
from maskery.data.pairs.pictures import Pictures
from maskery.data.person_search.config import PersonSearchDataConfig
from maskery.data.person_search.dataset import open_person_search
from maskery.evaluation.retrieval.retrieval_set import RetrievalSet, sample_searches, spread_queries


def test_right_pictures_are_those_of_the_person_who_is_described(tmp_path: Path) -> None:
    root = save_cuhk(tmp_path, images=2)
    (root / "imgs" / "cam_a" / "000_0.png").write_bytes(b"GIF89a")
    pairs = open_person_search(PersonSearchDataConfig(dataset="cuhk-pedes", root=root)).train
    captions = tokenise_captions(
        pairs, person_tokenizer(), Skipped("caption", "fail"), max_length=24
    )
    view = ViewConfig(height=16, width=16, mean=HALF_MEAN, std=HALF_STD)
    split = RetrievalSet(pairs, captions, Pictures(pairs, "skip", near=None), view)
    # The gallery begins at the second picture: the first cannot be read.
    queries = np.array([0, 5])
    ranking = torch.tensor([[1, 0, 2, 4], [2, 3, 9, 1]])
    samples = sample_searches(split, queries, ranking, count=3)
    assert [sample.caption for sample in samples] == [pairs[1].captions[0], pairs[3].captions[1]]
    for sample, query, row in zip(samples, (1, 3), ranking.tolist(), strict=True):
        shown = [pairs[place + 1] for place in row[:3]]
        wanted = [pairs.persons[place + 1] == pairs.persons[query] for place in row[:3]]
        assert [found.right for found in sample.found] == wanted
        assert 0 < sum(wanted) < 3
        for found, pair in zip(sample.found, shown, strict=True):
            expected = split.pictures.load([pairs.ids.tolist().index(pair.id)])[0]
            assert expected is not None
            np.testing.assert_array_equal(np.asarray(found.image), np.asarray(expected))


@pytest.mark.parametrize(
    ("num_texts", "queries"),
    [(1, [0]), (2, [0]), (7, [1, 2, 3, 4, 5]), (600, [99, 199, 299, 399, 499])],
)
def test_queries_are_spread_evenly(num_texts: int, queries: list[int]) -> None:
    assert spread_queries(num_texts).tolist() == queries
