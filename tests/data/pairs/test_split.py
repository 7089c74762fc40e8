from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tiny_pairs import save_tiny_pairs

from maskery.core.errors import DataError
from maskery.data.pairs.pairs import Pairs, group_ids, split_pairs, wrong_pairs


def test_a_person_is_on_one_side_only(tmp_path: Path) -> None:
    pairs = Pairs.open(save_tiny_pairs(tmp_path, 60, persons=True))
    train, held = split_pairs(group_ids(pairs), 0.3)
    assert sorted([*train, *held]) == list(range(60))
    assert not set(pairs.persons[train]) & set(pairs.persons[held])


def test_records_of_one_picture_stay_together(tmp_path: Path) -> None:
    rows = [{"image": f"{n % 10}.png", "caption": f"words number {n}"} for n in range(30)]
    path = tmp_path / "flat.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows), "utf-8")
    train, held = split_pairs(group_ids(Pairs.open(path)), 0.3)
    assert len(train)
    assert len(held) >= 6
    assert not {n % 10 for n in train.tolist()} & {n % 10 for n in held.tolist()}


def test_the_choice_does_not_depend_on_the_other_pairs() -> None:
    groups = np.random.default_rng(0).integers(0, 2**63, 5000).astype(np.uint64)
    _, held = split_pairs(groups, 0.1)
    _, fewer = split_pairs(groups[:2000], 0.1)
    assert set(fewer.tolist()) == {i for i in held.tolist() if i < 2000}
    # Binomial: five standard deviations around 500.
    assert abs(len(held) - 500) < 5 * np.sqrt(5000 * 0.1 * 0.9)


def test_a_tiny_share_still_leaves_two_groups_to_compare() -> None:
    groups = np.arange(10, dtype=np.uint64)
    train, held = split_pairs(groups, 1e-9)
    assert (len(train), len(held)) == (8, 2)


def test_two_pictures_are_too_few() -> None:
    with pytest.raises(DataError, match="at least 3"):
        split_pairs(np.array([1, 1, 2], np.uint64), 0.5)


def test_a_wrong_picture_is_always_of_another_group() -> None:
    groups = np.repeat(np.arange(7, dtype=np.uint64), [1, 4, 2, 3, 1, 1, 2])
    among = np.arange(len(groups))
    wrong = wrong_pairs(groups, among)
    assert (groups[wrong] != groups).all()
    with pytest.raises(DataError, match="no wrong picture"):
        wrong_pairs(groups, among[1:5])
