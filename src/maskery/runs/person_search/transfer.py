"""Direct transfer: models measured on datasets that they did not learn from."""

import typing
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from maskery.core.errors import ConfigError, meant
from maskery.data.person_search.config import DatasetName, PersonSearchDataConfig
from maskery.data.person_search.dataset import open_person_search
from maskery.runs.person_search.evaluate import evaluate_retrieval_models, require_once


def datasets_of(named: Sequence[str]) -> dict[str, PersonSearchDataConfig]:
    """Read `cuhk-pedes:DIR` and the like; two names of one place are refused."""
    found, kinds = {}, {str(one): one for one in typing.get_args(DatasetName)}
    for text in named:
        kind, _, place = text.partition(":")
        if kind not in kinds or not place:
            raise ConfigError(
                f"--on has '{text}'; name each as KIND:DIR, where KIND is one of "
                f"{', '.join(kinds)}{meant(kind, kinds)}"
            )
        found[text] = PersonSearchDataConfig(dataset=kinds[kind], root=Path(place))
    require_once([text.partition(":")[2] for text in named], "dataset")
    return found


def evaluate_transfer(names: Sequence[str], on: Sequence[str], **how: Any) -> dict[str, Any]:
    """Measure each model on each dataset, `KIND:DIR`, as `evaluate_retrieval_models` does.

    Returns plain data: `figures` by model and dataset, and `splits` by dataset, `seeds` by model.
    """
    require_once(names, "run")
    datasets, read = datasets_of(on), cache(open_person_search)
    found: dict[str, Any] = {"figures": {}, "splits": {}, "seeds": {}}
    for name in names:
        for given, own in datasets.items():
            one = evaluate_retrieval_models([name], on=own, read=read, **how).to_json()
            found["figures"].setdefault(name, {})[given] = one["figures"][name]
            found["splits"][given], found["seeds"][name] = one["splits"][name], one["seeds"][name]
    return found
