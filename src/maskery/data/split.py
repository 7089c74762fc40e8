"""Which documents are trained on, and which are held out to be measured.

A group of copies and near-copies (`data/near_copies.py`) is on one side, so that no figure is of a
text that was read in training with other spaces or another word.

Shapes: N documents.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from itertools import chain

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerBase

from maskery.core.errors import DataError
from maskery.data.corpus.examples import is_held_out
from maskery.data.near_copies import copy_groups
from maskery.data.store import Documents, TokenStore

log = logging.getLogger(__name__)

Ints = npt.NDArray[np.int64]
# Texts are put together again to be compared; of more documents than this, which would take
# minutes, only equal ones are kept on one side.
MOST_DOCUMENTS = 2_000_000


def split(store: TokenStore, tokenizer: PreTrainedTokenizerBase, share: float) -> tuple[Ints, Ints]:
    """Return the training and the held-out documents, by a hash of their groups' content.

    A group is known by the least id of its documents, so a corpus without copies is split by the
    hash of each document alone.

    Args:
        store: The corpus.
        tokenizer: That cut it.
        share: About how much of it is held out.

    Raises:
        DataError: There are fewer than two groups.
    """
    ids = np.asarray(store.ids)
    groups = _groups(tokenizer, store)
    names = np.full(int(groups.max(initial=-1)) + 1, np.iinfo(np.uint64).max, np.uint64)
    np.minimum.at(names, groups, ids)
    if len(names) < 2:
        raise DataError(
            f"the corpus has {len(names)} distinct example, and some text must be held out to "
            f"measure on; cut it finer with --unit line or paragraph, or pass --eval-data FILE"
        )
    held_groups = is_held_out(names, share)
    if held_groups.all() or not held_groups.any():
        # Too few groups for the share: the hash still decides, with one on the other side.
        first = int(np.argmin(names))
        held_groups[first] = not held_groups[first]
    held = held_groups[groups]
    return np.flatnonzero(~held), np.flatnonzero(held)


def without_held_out(
    store: TokenStore, held_out: TokenStore, tokenizer: PreTrainedTokenizerBase
) -> Ints:
    """Return the documents of a corpus that have no copy or near-copy in the held-out text.

    Raises:
        DataError: All of them have.
    """
    groups = _groups(tokenizer, store, held_out)
    leaked = np.isin(groups[: store.num_documents], groups[store.num_documents :])
    if leaked.all():
        raise DataError(
            "every example of the corpus also stands in --eval-data, so nothing is left to train "
            "on; name other held-out text, or leave it out to hold out a share"
        )
    if leaked.any():
        log.warning(
            "%s examples also stand in --eval-data, or nearly so, and are not trained on",
            f"{leaked.sum():,}",
        )
    return np.flatnonzero(~leaked)


def _groups(tokenizer: PreTrainedTokenizerBase, *stores: TokenStore) -> Ints:
    """Return the group of each document of all stores, (N,) from 0."""
    if sum(store.num_documents for store in stores) > MOST_DOCUMENTS:
        ids = np.concatenate([np.asarray(store.ids) for store in stores])
        groups: Ints = np.unique(ids, return_inverse=True)[1].astype(np.int64)
        return groups
    return copy_groups(list(chain.from_iterable(texts_of(store, tokenizer) for store in stores)))


def texts_of(
    store: Documents, tokenizer: PreTrainedTokenizerBase, documents: Ints | None = None
) -> Iterator[str]:
    """Yield documents' texts as the tokenizer sees them; all of them by default."""
    bounds = store.boundaries
    for place in range(len(bounds) - 1) if documents is None else documents.tolist():
        yield str(tokenizer.decode(store.tokens[bounds[place] : bounds[place + 1]].tolist()))
