"""Near-copies against the overlap written out, and whatever a copy may differ in."""

from __future__ import annotations

import unicodedata

import numpy as np
import pytest

from maskery.data.split import as_read, copy_groups

TEXT = "Waste no more time arguing what a good man should be; be one, said Médée."


@pytest.mark.parametrize(
    "copy",
    [
        TEXT.replace(" ", "  "),
        TEXT.upper(),
        unicodedata.normalize("NFD", TEXT),
        TEXT + "!",
        f"\t{TEXT}\n",
        TEXT.replace("; be one", ", be one"),
    ],
)
def test_a_copy_differs_in_nothing_that_is_read(copy: str) -> None:
    assert copy_groups([TEXT, "Another text altogether.", copy]).tolist() == [0, 1, 0]


def documents(num: int) -> list[str]:
    generator = np.random.default_rng(5)
    words = np.array([f"word{n}" for n in range(4000)])
    chances = 1.0 / np.arange(1, 4001)
    chances /= chances.sum()
    sizes = generator.integers(20, 90, num)
    return [" ".join(generator.choice(words, size, p=chances)) for size in sizes]


def test_edited_copies_are_found_and_strangers_are_not() -> None:
    generator = np.random.default_rng(6)
    originals = documents(900)
    copies = []
    for original in originals[:100]:
        parts = original.split()
        # Replacing k of n words leaves n - k of n + k different ones: 0.8 at a ninth.
        for place in generator.choice(len(parts), len(parts) // 9, replace=False):
            parts[place] = f"new{generator.integers(1 << 30)}"
        copies.append(" ".join(parts))
    groups = copy_groups([*originals, *copies])
    np.testing.assert_array_equal(groups[:100], groups[900:])
    assert len(set(groups[:900])) == 900


def test_every_pair_of_great_overlap_shares_a_group() -> None:
    """All pairs of a small corpus by brute force."""
    texts = documents(60)
    texts += [" ".join(text.split()[: len(text.split()) * 9 // 10]) for text in texts[:20]]
    groups = copy_groups(texts)
    for one in range(len(texts)):
        for other in range(one):
            a, b = (
                set(zip(t.split(), t.split()[1:], strict=False)) for t in (texts[one], texts[other])
            )
            if len(a & b) / len(a | b) >= 0.6:
                assert groups[one] == groups[other]


@pytest.mark.parametrize(("letters", "length"), [("ACGT", 150), ("ACDEFGHIKLMNPQRSTVWY", 900)])
def test_sequences_of_few_letters_are_strangers(letters: str, length: int) -> None:
    """DNA and proteins hold nearly all pairs of their letters; a copy differs in some places."""
    generator = np.random.default_rng(3)
    texts = ["".join(row) for row in generator.choice(list(letters), (30, length))]
    edited = texts[0][:50] + "A" + texts[0][51:]
    groups = copy_groups([*texts, edited])
    assert len(set(groups.tolist())) == 30
    assert groups[0] == groups[30]


def test_many_of_one_kind_and_texts_of_a_word() -> None:
    logs = [f"node {n} of the cluster reports that all is well and sleeps again" for n in range(80)]
    assert len(set(copy_groups(logs))) == 1
    assert len(set(copy_groups(["yes", "no", "Yes!", "..."]))) == 3
    assert copy_groups([]).tolist() == []
    assert as_read("...") == "..."
