"""Conditions that several runs must share for a mean over their figures to mean anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import Literal

from maskery.core.errors import ConfigError
from maskery.data.pairs.captions import fingerprint
from maskery.data.pairs.pairs import Pairs
from maskery.data.person_search.config import PersonSearchDataConfig
from maskery.data.person_search.dataset import PersonSearchData, open_person_search
from maskery.evaluation.retrieval.config import ModelRetrieval, RetrievalConfig
from maskery.runs.frame.config_file import CONFIG, load_config
from maskery.runs.person_search.config import PersonSearchRunConfig
from maskery.runs.person_search.settings import run_config_of

HeldOutSplit = Literal["val", "test"]


class Conditions:
    """Hold every run to the conditions of the first."""

    def __init__(self) -> None:
        self._first: dict[str, tuple[str, str]] = {}

    def add(self, name: str, conditions: Mapping[str, str]) -> None:
        """Add conditions under which a run is measured; more may be added later.

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
    """Return a split, or validation where the dataset has no test split."""
    if split == "test" and data.test is not None:
        return "test", data.test
    return "val", data.val


def gallery_conditions(data: PersonSearchData, split: HeldOutSplit) -> dict[str, str]:
    """Return the dataset, split, pictures and captions, as conditions."""
    name, pairs = split_of(data, split)
    persons = blake2b(pairs.persons.tobytes(), digest_size=4).hexdigest()
    return {
        "the dataset": data.title,
        "the split": name,
        "pictures": f"{len(pairs):,}",
        "captions": f"{sum(len(pair.captions) for pair in pairs):,}",
        "the fingerprint of pictures, captions and persons": f"{fingerprint(pairs)[:8]}{persons}",
    }


def ranking_conditions(settings: RetrievalConfig) -> dict[str, str]:
    """Return how pictures are ranked, as conditions."""
    score: str = settings.score
    if score == "sum":
        score += f" with odds at {settings.odds_weight:g}"
    return {
        "pictures ranked anew (--rerank)": str(settings.rerank),
        "the score they are ranked by": score if settings.rerank else "similarity",
    }


class Datasets:
    """The datasets of runs, each read once.

    Args:
        root: Where the annotations lie now, if elsewhere than when the runs were trained.
        images: Likewise the folder that image paths are relative to.
    """

    def __init__(self, root: Path | None = None, images: Path | None = None) -> None:
        self._root, self._images = root, images
        self._read: dict[PersonSearchDataConfig, PersonSearchData] = {}

    def of(self, name: str, retrieval: ModelRetrieval) -> PersonSearchData:
        """Read the dataset of a run folder, its captions prepared as these settings say."""
        config = load_config(Path(name) / CONFIG, PersonSearchRunConfig).data
        config = replace(
            config,
            root=self._root or config.root,
            images=self._images or config.images,
            clean_captions=retrieval.clean_captions,
            max_words=retrieval.max_words,
        )
        if config not in self._read:
            self._read[config] = open_person_search(config)
        return self._read[config]


def need_different(names: Sequence[str]) -> None:
    """Refuse the same folder twice, however its path is written."""
    seen: dict[Path, str] = {}
    for name in names:
        first = seen.setdefault(Path(name).resolve(), name)
        if list(names).count(name) > 1:
            raise ConfigError(f"'{name}' is named twice; name each run once")
        if first != name:
            raise ConfigError(f"'{first}' is named twice, also as '{name}'; name each run once")


def seed_of(name: str) -> int | None:
    """Return the seed of the run that a folder, or the model in it, belongs to."""
    config = run_config_of(Path(name).resolve())
    return None if config is None else config.training.seed
