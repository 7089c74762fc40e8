"""Which documents are trained on, and which are held out to be measured.

A group of copies and near-copies is on one side, so that no figure is of a text that was read in
training with other spaces or another word. Texts are compared as a reader sees them: Unicode form
NFKC, no case, no punctuation, no accents that were written apart. Two are near-copies if their
pairs of neighbouring words overlap by 0.6 (Jaccard): that is reached by every copy whose words
overlap by 0.8, wherever it was edited. Likely pairs are found by MinHash (Broder, 1997) of the
library datasketch and bands of equal values. Shapes: N documents.
"""

import logging
import re
import unicodedata
import zlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

import numpy as np
from transformers import PreTrainedTokenizerBase

from maskery.core.batch import Bools, Ids, Ints
from maskery.core.errors import DataError
from maskery.data.corpus.examples import example_id, is_held_out, mix
from maskery.data.store import Documents, TokenStore

log = logging.getLogger(__name__)

# Texts are put together again to be compared; of more documents than this, which would take
# minutes, only equal ones are kept on one side.
MOST_DOCUMENTS = 2_000_000


def split(store: TokenStore, tokenizer: PreTrainedTokenizerBase, share: float) -> tuple[Ints, Ints]:
    """Return the training and the held-out documents, about `share`, by a hash of their groups.

    A group is known by the least id of its documents, so a corpus without copies is split by the
    hash of each document alone.
    """
    groups = _groups(tokenizer, store)
    names = least_ids(np.asarray(store.ids), groups)
    why = "some text must be held out to measure on"
    fix = "cut it finer with --unit line or paragraph, or pass --eval-data FILE"
    too_few = f"the corpus has {len(names)} distinct example, and {why}; {fix}"
    held = _chosen(names, share, too_few)[groups]
    return np.flatnonzero(~held), np.flatnonzero(held)


def split_by_value(
    store: TokenStore,
    tokenizer: PreTrainedTokenizerBase,
    share: float,
    values: Iterable[tuple[int, str]],
) -> tuple[Ints, Ints]:
    """Return training and held-out documents, so that those of one value are on one side.

    What has a copy on the other side is left out, and counted: notes of many patients are alike.
    `values` are the id of each document with its value, by a hash of which the sides are chosen;
    `share` is of the values.
    """
    numbers: dict[str, int] = {}
    rows = [(number, numbers.setdefault(value, len(numbers))) for number, value in values]
    known, of_value = np.array([n for n, _ in rows], np.uint64), np.array([n for _, n in rows])
    too_few = f"--group-column has {len(numbers)} value, and a split needs two; name another column"
    held_values = _chosen(np.array([*map(example_id, numbers)], np.uint64), share, too_few)
    held_rows, ids = held_values[of_value], np.asarray(store.ids)
    # Equal texts have one id, and may be of several values.
    held, trained = np.isin(ids, known[held_rows]), np.isin(ids, known[~held_rows])
    copies = _groups(tokenizer, store)
    train = np.flatnonzero(~np.isin(copies, copies[held]))
    measured = np.flatnonzero(held & ~trained)
    if not len(train) or not len(measured):
        problem = "--group-column: texts of one side all have copies on the other"
        raise DataError(f"{problem}; name another column, or remove the copies")
    if left_out := len(ids) - len(train) - len(measured):
        log.warning("%s examples have copies in held-out groups and are left out", f"{left_out:,}")
    return train, measured


def _chosen(names: Ids, share: float, too_few: str) -> Bools:
    """Return which groups of these names are held out; at least one is, and one is not."""
    if len(names) < 2:
        raise DataError(too_few)
    held = is_held_out(names, share)
    if held.all() or not held.any():
        # Too few groups for the share: the hash still decides, with one on the other side.
        first = int(np.argmin(names))
        held[first] = not held[first]
    return held


def without_held_out(
    store: TokenStore, chosen: Ints, held: Sequence[TokenStore], tokenizer: PreTrainedTokenizerBase
) -> Ints:
    """Return those documents of a corpus that have no copy or near-copy in the held-out texts."""
    groups = _groups(tokenizer, store, *held)
    leaked = np.isin(groups[chosen], groups[store.num_documents :])
    if leaked.all():
        problem = "every example of the corpus also stands in --eval-data"
        fix = "name other held-out text, or leave it out to hold out a share"
        raise DataError(f"{problem}, so nothing is left to train on; {fix}")
    if leaked.any():
        told = "%s examples also stand in --eval-data, or nearly so, and are not trained on"
        log.warning(told, f"{leaked.sum():,}")
    return chosen[~leaked]


def sample(store: Documents, documents: Ints, most_tokens: int) -> Ints:
    """Return documents of at most so many tokens, ascending, at least one: the same in each run."""
    # The split has chosen by the ids mixed once: what it held out has the lowest of those.
    order = np.argsort(mix(mix(np.asarray(store.ids)[documents])), kind="stable")
    fits = np.cumsum(store.lengths()[documents][order]) <= most_tokens
    return np.sort(documents[order[: max(1, int(fits.sum()))]])


def _groups(tokenizer: PreTrainedTokenizerBase, *stores: TokenStore) -> Ints:
    """Return the group of each document of all stores, (N,) from 0: copies, and pieces of one."""
    ids = np.concatenate([np.asarray(store.ids) for store in stores])
    pieces: Ints = np.unique(mix(ids) >> np.uint64(32), return_inverse=True)[1].astype(np.int64)
    if len(ids) > MOST_DOCUMENTS:
        return pieces
    copies = copy_groups(list(chain.from_iterable(texts_of(store, tokenizer) for store in stores)))
    return connected(copies, copies.max(initial=-1) + 1 + pieces)[copies]


def texts_of(
    store: Documents, tokenizer: PreTrainedTokenizerBase, documents: Ints | None = None
) -> Iterator[str]:
    """Yield documents' texts as the tokenizer sees them; all of them by default."""
    bounds = store.boundaries
    for place in range(len(bounds) - 1) if documents is None else documents.tolist():
        yield str(tokenizer.decode(store.tokens[bounds[place] : bounds[place + 1]].tolist()))


LEAST_OVERLAP = 0.6
# A band of three equal values among 42 finds 99.99% of pairs at 0.6, and 1 in 30 at 0.1.
BANDS, ROWS = 42, 3
# Signatures take half a kilobyte a text; beyond, only texts that are equal to a reader are found.
MOST_TEXTS = 200_000
# All texts of a band that agree are compared with each other up to this many, then neighbours.
MOST_ALIKE = 32


def as_read(text: str) -> str:
    """Return a text as a reader sees it: words in one Unicode form, without case or punctuation."""
    plain = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(re.findall(r"\w+", plain)) or plain.strip()


def copy_groups(texts: Sequence[str]) -> Ints:
    """Return the group of each text, (N,) from 0; copies and near-copies share one."""
    read = [as_read(text) for text in texts]
    first: dict[str, int] = {}
    of_text = np.array([first.setdefault(text, len(first)) for text in read], np.int64)
    if len(first) < 2 or len(first) > MOST_TEXTS:
        return of_text
    every = np.arange(len(first))
    pairs = np.array([*_near_pairs(list(first)), *zip(every, every, strict=True)], np.int64)
    return connected(*pairs.T)[of_text]


def least_ids(ids: Ids, groups: Ints) -> Ids:
    """Return the least id of each group from 0, of ids and their groups, (N,) each."""
    least = np.full(int(groups.max(initial=-1)) + 1, np.iinfo(np.uint64).max, np.uint64)
    np.minimum.at(least, groups, ids)
    return least


def connected(one: Ints, other: Ints) -> Ints:
    """Return the group of each number, from 0, in which pairs of numbers, (K,) each, are joined."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    size = int(max(one.max(), other.max())) + 1
    graph = coo_matrix((np.ones(len(one)), (one, other)), shape=(size, size))
    groups: Ints = connected_components(graph, directed=False)[1].astype(np.int64)
    return groups


def _near_pairs(texts: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Yield the pairs of different texts that are near-copies."""
    from datasketch import MinHash

    shingles = [_shingles(text) for text in texts]
    hashes = MinHash.generator(shingles, num_perm=BANDS * ROWS, hashfunc=zlib.crc32)
    signatures = np.stack([signature.hashvalues for signature in hashes]).astype(np.uint64)
    bands = np.split(signatures, BANDS, axis=1)
    for one, other in set(chain.from_iterable(map(_alike, bands))):
        first, second = shingles[one], shingles[other]
        if len(first & second) >= LEAST_OVERLAP * len(first | second):
            yield one, other


def _shingles(text: str) -> set[bytes]:
    """Return a text's pairs of neighbouring words; of letters, where it is one word."""
    words: Sequence[str] = text.split(" ")
    size = 2
    if len(words) < 2:
        words = text
        # Long texts of few letters, such as DNA, hold nearly all the pairs that there are.
        size = 6 if 2 * len(text) > len(set(text)) ** 2 else 2
    several = (words[n : n + size] for n in range(len(words) - size + 1))
    return {" ".join(one).encode() for one in several} or {text.encode()}


def _alike(values: Ids) -> Iterator[tuple[int, int]]:
    """Yield pairs of rows, (N, ROWS), that are equal; the lower number first."""
    order = np.lexsort(values.T)
    ordered = values[order]
    starts = np.flatnonzero(np.r_[True, (ordered[1:] != ordered[:-1]).any(axis=1)])
    sizes = np.diff(np.r_[starts, len(order)])
    for start, size in zip(starts[sizes > 1], sizes[sizes > 1], strict=True):
        run = np.sort(order[start : start + size]).tolist()
        for place, one in enumerate(run):
            # Of many that agree, each is compared with those after it: a chain joins them all.
            others = run[place + 1 :] if size <= MOST_ALIKE else run[place + 1 : place + 3]
            yield from ((one, other) for other in others)
