"""Which pairs are held out, so that no picture and no person is on both sides.

Shapes: N pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

from maskery.core.errors import DataError
from maskery.data.corpus.examples import is_held_out, mix
from maskery.data.pairs.pairs import NOBODY, Pairs


def group_ids(pairs: Pairs) -> npt.NDArray[np.uint64]:
    """(N,) uint64: a hash of the person shown or, where none is named, of the picture's name."""
    names = [
        f"image\0{pair.image.name}"
        if pairs.persons[index] == NOBODY
        else f"person\0{pairs.person_names[pairs.persons[index]]}"
        for index, pair in enumerate(pairs)
    ]
    return group_ids_of(names)


def group_ids_of(names: Sequence[str]) -> npt.NDArray[np.uint64]:
    """(N,) uint64: a hash of each name."""
    digests = b"".join(blake2b(name.encode(), digest_size=8).digest() for name in names)
    return np.frombuffer(digests, "<u8").astype(np.uint64)


def split_pairs(
    groups: npt.NDArray[np.uint64], share: float
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Training and held-out pairs, by a hash of their groups.

    Args:
        groups: (N,) uint64, from `group_ids`.
        share: The expected share of groups that is held out.

    Raises:
        DataError: There are fewer than three groups: one to learn from, and two to measure on,
            the one's picture being the other's wrong picture.
    """
    unique = np.unique(groups)
    if len(unique) < 3:
        raise DataError(
            f"the pairs show {len(unique)} different pictures or persons, and at least 3 are "
            f"needed: one to learn from and two to measure on; bring more, or pass --eval-pairs"
        )
    order = unique[np.argsort(mix(unique), kind="stable")]
    # The hash decides, whatever share it happens to hit; at the ends at least two and one are left.
    count = int(np.clip(is_held_out(unique, share).sum(), 2, len(unique) - 1))
    held = np.isin(groups, order[:count])
    return np.flatnonzero(~held), np.flatnonzero(held)


def wrong_pairs(
    groups: npt.NDArray[np.uint64], among: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """For each of some pairs a pair of another group: a fixed choice, whatever the batches.

    Args:
        groups: (N,) uint64.
        among: (M,) int64, the pairs in question; the wrong ones are taken from them too.

    Returns:
        (M,) int64.

    Raises:
        DataError: They are all of one group.
    """
    own = groups[among]
    unique = np.unique(own)
    if len(unique) < 2:
        raise DataError(
            "all held-out pairs show the same picture or person, so there is no wrong picture to "
            "compare with; hold out more, or bring other --eval-pairs"
        )
    order = unique[np.argsort(mix(unique), kind="stable")]
    following = dict(zip(order.tolist(), np.roll(order, -1).tolist(), strict=True))
    members: dict[int, list[int]] = {}
    for index, group in zip(among.tolist(), own.tolist(), strict=True):
        members.setdefault(group, []).append(index)
    wrong = []
    for index, group in zip(among.tolist(), own.tolist(), strict=True):
        others = members[following[group]]
        wrong.append(others[members[group].index(index) % len(others)])
    return np.array(wrong, np.int64)
