"""Search pictures by their files' names alone: what a model that sees has to be compared with.

    python examples/emoji/name_match.py emoji/test-google.jsonl

Each caption looks for its picture among the names of all files, as TF-IDF of words and of parts of
words (scikit-learn, `pip install 'maskery[probe]'`). R@1, R@5, R@10 and mAP, where names that are
equally near count as in a random order.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer

KINDS = {"words": {}, "parts of words": {"analyzer": "char_wb", "ngram_range": (3, 5)}}


def figures(captions: list[str], names: list[str], **kind: object) -> dict[str, float]:
    """Return R@1, R@5, R@10 and mAP of caption i looking for name i."""
    vectors = TfidfVectorizer(**kind).fit([*captions, *names])
    near = (vectors.transform(captions) @ vectors.transform(names).T).toarray()
    own = near.diagonal()[:, None]
    nearer, equal = (near > own).sum(axis=1), np.isclose(near, own).sum(axis=1)
    # With t names equally near, the right one is at each of t ranks with the same probability.
    ranks = [first + np.arange(1, count + 1) for first, count in zip(nearer, equal, strict=True)]
    found = {f"R@{k}": np.mean([np.mean(r <= k) for r in ranks]) for k in (1, 5, 10)}
    return {**found, "mAP": np.mean([np.mean(1 / r) for r in ranks])}


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: python examples/emoji/name_match.py TABLE.jsonl")
    rows = [json.loads(line) for line in Path(sys.argv[1]).read_text("utf-8").splitlines()]
    captions = [row["name"] for row in rows]
    names = [Path(row["image"]).stem.replace("_", " ").replace("-", " ") for row in rows]
    print(f"{len(rows)} captions and pictures; R@1 by chance {1 / len(rows):.1%}")
    for about, kind in KINDS.items():
        found = figures(captions, names, **kind)
        print(f"{about}: " + ", ".join(f"{name} {share:.1%}" for name, share in found.items()))


if __name__ == "__main__":
    main()
