"""Direct transfer: models measured on datasets that they did not learn from, as a matrix."""

import typing
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from maskery.core.errors import ConfigError, meant
from maskery.data.person_search.config import DatasetName, PersonSearchDataConfig
from maskery.data.person_search.dataset import open_person_search
from maskery.evaluation.retrieval.evaluate import RetrievalFigures
from maskery.evaluation.retrieval.retrieval_set import RetrievalSet, evaluate_set
from maskery.runs.image_text.config import Overrides
from maskery.runs.person_search.evaluate import (
    HeldOutSplit,
    open_for_measuring,
    own_run,
    require_once,
    split_of,
)


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """Figures of each model on each dataset, both by the names they were given by."""

    figures: dict[str, dict[str, RetrievalFigures]]
    splits: dict[str, HeldOutSplit]  # By dataset, the one that was measured
    seeds: dict[str, int | None]  # By model, as in `RetrievalEvaluation`

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)


def datasets_of(named: Sequence[str]) -> dict[str, PersonSearchDataConfig]:
    """Read `cuhk-pedes:DIR` and the like; two names of one place are refused."""
    found = {}
    for text in named:
        kind, _, place = text.partition(":")
        kinds: dict[str, DatasetName] = {one: one for one in typing.get_args(DatasetName)}
        if kind not in kinds or not place:
            raise ConfigError(
                f"--on has '{text}'; name each as KIND:DIR, where KIND is one of "
                f"{', '.join(kinds)}{meant(kind, kinds)}"
            )
        found[text] = PersonSearchDataConfig(dataset=kinds[kind], root=Path(place))
    places = {text: str(data.root) for text, data in found.items()}
    require_once([places.get(text, text) for text in named], "dataset")
    return found


def evaluate_transfer(
    names: Sequence[str],
    on: Sequence[str],
    *,
    split: HeldOutSplit = "test",
    overrides: Overrides | None = None,
    progress: bool = False,
) -> Transfer:
    """Measure each model on a held-out split of each dataset, `KIND:DIR`, with its own settings.

    The split is `val` where a dataset has no test split; captions are prepared as each model's own.
    """
    overrides, read = overrides or Overrides(), cache(open_person_search)
    require_once(names, "run")
    datasets = datasets_of(on)
    runs = {name: own_run(name, needed=False) for name in names}
    figures: dict[str, dict[str, RetrievalFigures]] = {}
    splits: dict[str, HeldOutSplit] = {}
    for name, run in runs.items():
        opened, settings = open_for_measuring(name, run, overrides)
        for given, own in datasets.items():
            data = overrides.of_data(own, opened.retrieval)
            splits[given], pairs = split_of(read(data), split)
            gallery = RetrievalSet.read_by(opened, pairs, data, batch_images=settings.batch_images)
            found = evaluate_set(opened.model, gallery, settings, progress=progress).figures
            figures.setdefault(name, {})[given] = found
    seeds = {name: None if run is None else run.training.seed for name, run in runs.items()}
    return Transfer(figures=figures, splits=splits, seeds=seeds)
