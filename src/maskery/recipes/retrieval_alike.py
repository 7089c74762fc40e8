"""What several runs must share for a mean over them to mean anything."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b
from typing import Literal

from maskery.core.errors import ConfigError
from maskery.data.pairs.captions import fingerprint
from maskery.data.pairs.pairs import Pairs
from maskery.data.person_search.dataset import PersonSearchData
from maskery.evaluation.retrieval_config import RetrievalConfig

HeldOutSplit = Literal["val", "test"]


class Alike:
    """Holds every run to the conditions of the first."""

    def __init__(self) -> None:
        self._first: dict[str, tuple[str, str]] = {}

    def add(self, name: str, conditions: Mapping[str, str]) -> None:
        """Under what conditions a run is measured; more may be added later.

        Args:
            name: Of the run.
            conditions: From what it is about to its value.

        Raises:
            ConfigError: An earlier run has another value.
        """
        for about, value in conditions.items():
            first, expected = self._first.setdefault(about, (name, value))
            if value != expected:
                raise ConfigError(
                    f"'{first}' and '{name}' are not measured alike ({about}: {expected} and "
                    f"{value}), so a mean over them would say nothing; measure each for itself, or "
                    f"make them alike"
                )


def split_of(data: PersonSearchData, split: HeldOutSplit) -> tuple[HeldOutSplit, Pairs]:
    """A split, or validation where the dataset has no test split."""
    if split == "test" and data.test is not None:
        return "test", data.test
    return "val", data.val


def gallery_of(data: PersonSearchData, split: HeldOutSplit) -> dict[str, str]:
    """What is found and by what, as conditions."""
    name, pairs = split_of(data, split)
    persons = blake2b(pairs.persons.tobytes(), digest_size=4).hexdigest()
    return {
        "the dataset": data.title,
        "the split": name,
        "pictures": f"{len(pairs):,}",
        "captions": f"{sum(len(pair.captions) for pair in pairs):,}",
        "the fingerprint of pictures, captions and persons": f"{fingerprint(pairs)[:8]}{persons}",
    }


def ranking_of(settings: RetrievalConfig) -> dict[str, str]:
    """How pictures are ranked, as conditions."""
    score: str = settings.score
    if score == "sum":
        score += f" with odds at {settings.odds_weight:g}"
    return {
        "pictures ranked anew (--rerank)": str(settings.rerank),
        "the score they are ranked by": score if settings.rerank else "similarity",
    }
