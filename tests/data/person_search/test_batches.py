"""Batches for person search: what they hold, and that nothing but the seed decides it."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_persons import person_tokenizer, save_cuhk

from maskery.core.errors import ConfigError
from maskery.core.task import StandIn
from maskery.data.images.config import HALF_MEAN, HALF_STD, ViewConfig
from maskery.data.images.loading import Skipped
from maskery.data.pairs.batches import Pictures, ReadPairs, tokenise_captions
from maskery.data.person_search.batches import PersonSource, ViewedPersons
from maskery.data.person_search.config import PersonSearchDataConfig
from maskery.data.person_search.dataset import open_person_search
from maskery.evaluation.retrieval.retrieval_set import RetrievalSet

VIEW = ViewConfig(height=16, width=16, mean=HALF_MEAN, std=HALF_STD)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_cuhk(tmp_path_factory.mktemp("cuhk"), images=3)


def source(root: Path, batch_pairs: int = 8, **settings: object) -> PersonSource:
    data = open_person_search(PersonSearchDataConfig(dataset="cuhk-pedes", root=root))
    captions = tokenise_captions(
        data.train, person_tokenizer(), Skipped("caption", "fail"), max_length=24
    )
    pictures = Pictures(data.train, "skip", near=None)
    return PersonSource(
        ReadPairs(data.train, captions, pictures, VIEW),
        batch_pairs=batch_pairs,
        **settings,  # type: ignore[arg-type]
    )


def texts(batch: ViewedPersons, which: str = "text1") -> list[list[int]]:
    text = getattr(batch, which)
    bounds = text.boundaries.tolist()
    return [text.input_ids[a:b].tolist() for a, b in pairwise(bounds)]


def batches(of: PersonSource, epoch: int, step: int, **share: int) -> list[ViewedPersons]:
    """One process's micro-batches, none of them a stand-in."""
    found = of.micro_batches(epoch, step, **share)
    assert all(isinstance(batch, ViewedPersons) for batch in found)
    return [batch for batch in found if isinstance(batch, ViewedPersons)]


def test_an_epoch_reads_every_caption_once_in_whole_batches(root: Path) -> None:
    # 6 persons, 3 pictures each, 2 captions each.
    for batch_pairs, steps in ((6, 6), (8, 4), (100, 1)):
        of = source(root, batch_pairs)
        assert of.num_steps(0) == steps
        ids = [batches(of, 0, step)[0].text1.example_ids for step in range(steps)]
        assert len(np.unique(np.concatenate(ids))) == min(batch_pairs, 36) * steps


def test_captions_of_one_picture_have_ids_and_views_of_their_own(root: Path) -> None:
    of = source(root)
    assert len(np.unique(of.ids)) == 36
    batch = of.batch(np.arange(36), epoch=0)
    for one, other in ((batch.image1, batch.image2), (batch.image1[::2], batch.image1[1::2])):
        differing = (one != other).flatten(1).any(dim=1).float().mean()
        assert 0.2 < float(differing) < 0.8


def test_ranks_share_a_step_and_see_the_same_crowd(root: Path) -> None:
    of = source(root, 8)
    whole = batches(of, 1, 2)[0]
    parts = [batches(of, 1, 2, rank=rank, world_size=2)[0] for rank in (0, 1)]
    assert [len(part.person_ids) for part in parts] == [4, 4]
    for name in ("image1", "image2", "person_ids", "replaced"):
        joined = torch.stack([getattr(part, name) for part in parts], dim=1).flatten(0, 1)
        assert torch.equal(joined, getattr(whole, name)), name
    for part in parts:
        assert torch.equal(part.crowd_ids.sort().values, whole.person_ids.sort().values)
    for which in ("text1", "text2"):
        one, two = (texts(part, which) for part in parts)
        dealt = [row for pair in zip(one, two, strict=True) for row in pair]
        assert dealt == texts(whole, which)


def test_accumulation_keeps_the_crowd_of_each_micro_batch(root: Path) -> None:
    of = source(root, 8, micro_pairs=2)
    ranks = [batches(of, 0, 0, rank=rank, world_size=2) for rank in (0, 1)]
    assert [len(r) for r in ranks] == [2, 2]
    for one, two in zip(*ranks, strict=True):
        together = torch.cat((one.person_ids, two.person_ids))
        assert torch.equal(one.crowd_ids.sort().values, together.sort().values)
        assert torch.equal(one.crowd_ids, two.crowd_ids)


def test_processes_that_are_left_without_a_caption_get_a_stand_in(root: Path) -> None:
    of = source(root, 5, micro_pairs=1)
    ranks = [of.micro_batches(0, 0, rank=rank, world_size=4) for rank in range(4)]
    assert [len(batches) for batches in ranks] == [2, 2, 2, 2]
    kinds = [isinstance(batch, StandIn) for batches in ranks for batch in batches]
    assert kinds == [False, False, *[False, True] * 3]


def test_fewer_pairs_than_processes_is_told(root: Path) -> None:
    with pytest.raises(ConfigError, match="a step has 2 pairs and there are 3 processes"):
        source(root, 2).micro_batches(0, 0, rank=0, world_size=3)


def test_weak_pairs_are_other_captions_of_the_same_person(root: Path) -> None:
    of = source(root, weak_pair_probability=0.5)
    everything = np.arange(36)
    person_of = {
        tuple(row): person
        for row, person in zip(texts(of.batch(everything, 0)), of.persons.tolist(), strict=True)
    }
    replaced = []
    for epoch in range(20):
        batch = of.batch(everything, epoch)
        rows1, rows2 = texts(batch), texts(batch, "text2")
        assert batch.replaced.tolist() == [int(a != b) for a, b in zip(rows1, rows2, strict=True)]
        for row, person in zip(rows2, batch.person_ids.tolist(), strict=True):
            assert person_of[tuple(row)] == person
        replaced.append(batch.replaced.float().mean().item())
    # Of the 6 captions of a person 3 are the same words, and the caption itself may be drawn.
    shares = [1 - 3 / 6, 1 - 1 / 6]
    assert float(np.mean(replaced)) == pytest.approx(0.5 * np.mean(shares), abs=0.06)
    none = source(root, weak_pair_probability=0.0).batch(everything, 0)
    assert none.replaced.sum() == 0


def test_a_batch_is_a_function_of_seed_and_epoch(root: Path) -> None:
    one, two = source(root, seed=3), source(root, seed=3)
    a, b = batches(one, 2, 1)[0], batches(two, 2, 1)[0]
    assert torch.equal(a.image1, b.image1)
    assert np.array_equal(a.text2.input_ids, b.text2.input_ids)
    orders = {tuple(source(root, seed=seed).plan(0).order.tolist()) for seed in range(4)}
    assert len(orders) == 4


def test_a_query_shows_its_own_words_where_another_caption_was_skipped(tmp_path: Path) -> None:
    root = save_cuhk(tmp_path)
    rows = json.loads((root / "reid_raw.json").read_text("utf-8"))
    rows[1]["captions"][0] = "漢字"
    (root / "reid_raw.json").write_text(json.dumps(rows), "utf-8")
    data = open_person_search(PersonSearchDataConfig(dataset="cuhk-pedes", root=root))
    captions = tokenise_captions(
        data.train, person_tokenizer(), Skipped("caption", "skip"), max_length=24
    )
    pictures = Pictures(data.train, "fail", near=None)
    held = RetrievalSet(ReadPairs(data.train, captions, pictures, VIEW))
    assert [held.caption(query) for query in (1, 2, 3)] == [
        data.train[0].captions[1],
        data.train[1].captions[1],
        data.train[2].captions[0],
    ]


def test_pictures_that_cannot_be_read_leave_batch_and_gallery(tmp_path: Path) -> None:
    root = save_cuhk(tmp_path, images=2)
    (root / "imgs" / "cam_a" / "000_0.png").write_bytes(b"GIF89a")
    of = source(root)
    batch = of.batch(np.arange(24), 0)
    assert len(batch.person_ids) == 22
    assert of.pictures.skipped.count == 1
    # A batch of nothing but broken pictures takes the next caption in the order.
    assert len(of.batch(np.array([0, 1]), 0).person_ids) == 1

    data = open_person_search(PersonSearchDataConfig(dataset="cuhk-pedes", root=root))
    captions = tokenise_captions(
        data.train, person_tokenizer(), Skipped("caption", "fail"), max_length=24
    )
    pictures = Pictures(data.train, "skip", near=None)
    held = RetrievalSet(ReadPairs(data.train, captions, pictures, VIEW), batch_images=4)
    assert held.gallery.tolist() == list(range(1, 12))
    assert held.queries.tolist() == list(range(2, 24))
    assert len(torch.cat(list(held.images()))) == len(held.image_persons) == 11
    assert held.text_persons.tolist()[:4] == [0, 0, 1, 1]
    assert held.caption(0) == data.train[1].captions[0]
    assert held.caption(3) == data.train[2].captions[1]
    assert len(held.texts_of(np.arange(len(held.queries))).lengths) == 22
