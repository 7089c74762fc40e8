"""Copies and near-copies of one text, so that none is trained on while another is measured.

Texts are compared as a reader sees them: Unicode form NFKC, no case, no punctuation, no accents
that were written apart. Two are near-copies if their pairs of neighbouring words overlap by 0.6
(Jaccard): that is reached by every copy whose words overlap by 0.8, wherever it was edited. Likely
pairs are found by MinHash (Broder, 1997) of the library datasketch and bands of equal values.

Shapes: N texts.
"""

from __future__ import annotations

import re
import unicodedata
import zlib
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
WORD = re.compile(r"\w+")
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
    return " ".join(WORD.findall(plain)) or plain.strip()


def copy_groups(texts: Sequence[str]) -> Ints:
    """Return the group of each text, (N,) from 0; copies and near-copies share one."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    read = [as_read(text) for text in texts]
    first: dict[str, int] = {}
    of_text = np.array([first.setdefault(text, len(first)) for text in read], np.int64)
    if len(first) < 2 or len(first) > MOST_TEXTS:
        return of_text
    pairs = list(_near_pairs(list(first)))
    rows, columns = np.array(pairs or np.zeros((0, 2)), np.int64).T
    graph = coo_matrix((np.ones(len(rows)), (rows, columns)), shape=(len(first), len(first)))
    groups: Ints = connected_components(graph, directed=False)[1].astype(np.int64)
    return groups[of_text]


def _near_pairs(texts: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Yield the pairs of different texts that are near-copies."""
    from datasketch import MinHash

    shingles = [_shingles(text) for text in texts]
    hashes = MinHash.generator(shingles, num_perm=BANDS * ROWS, hashfunc=zlib.crc32)
    signatures = np.stack([signature.hashvalues for signature in hashes]).astype(np.uint64)
    seen: set[tuple[int, int]] = set()
    for band in range(BANDS):
        for one, other in _alike(signatures[:, band * ROWS : (band + 1) * ROWS]):
            if (one, other) in seen:
                continue
            seen.add((one, other))
            first, second = shingles[one], shingles[other]
            if len(first & second) >= LEAST_OVERLAP * len(first | second):
                yield one, other


def _shingles(text: str) -> set[bytes]:
    """Return a text's pairs of neighbouring words; of letters, where it is one word."""
    parts: Sequence[str] = text.split(" ")
    if len(parts) < 2:
        parts = text
    pairs = {f"{a} {b}".encode() for a, b in pairwise(parts)}
    return pairs or {text.encode()}


def _alike(values: npt.NDArray[np.uint64]) -> Iterator[tuple[int, int]]:
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
