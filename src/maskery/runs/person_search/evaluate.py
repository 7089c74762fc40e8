"""Retrieval figures of person-search runs and image-text models, and their spread over runs.

Conditions that several runs must share for a mean over their figures to mean anything come first.
"""

from __future__ import annotations

import logging
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

from maskery.core.errors import ConfigError
from maskery.data.images.drawing import png_uri
from maskery.data.pairs.captions import fingerprint
from maskery.data.pairs.config import PairsConfig
from maskery.data.pairs.pairs import Pairs
from maskery.data.person_search.config import PersonSearchDataConfig
from maskery.data.person_search.dataset import PersonSearchData, open_person_search
from maskery.evaluation.image_text.opening import (
    OpenImageText,
    can_match,
    preprocessing_of,
    require_contrast,
)
from maskery.evaluation.retrieval.config import ModelRetrieval, RetrievalConfig
from maskery.evaluation.retrieval.evaluate import RetrievalFigures
from maskery.evaluation.retrieval.metrics import FIGURES
from maskery.evaluation.retrieval.retrieval_set import (
    RetrievalSet,
    evaluate_set,
    sample_searches,
    spread_queries,
)
from maskery.runs.frame.config_file import CONFIG, load_config, open_run, run_kind
from maskery.runs.person_search.config import PersonSearchRunConfig
from maskery.runs.person_search.settings import known_retrieval, open_for_retrieval, run_config_of

HeldOutSplit = Literal["val", "test"]


class Conditions:
    """Hold every run to the conditions of the first."""

    def __init__(self) -> None:
        self._first: dict[str, tuple[str, str]] = {}

    def add(self, name: str, conditions: Mapping[str, str]) -> None:
        """Add conditions under which a run is measured; refuse others than an earlier run's."""
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
    # Eight digits in hexadecimal are enough to tell two datasets apart in a message.
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
    """The datasets of runs, each read once; `root` and `images` say where they lie now."""

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


log = logging.getLogger(__name__)

RANKINGS = ("contrastive", "reranked")


@dataclass(frozen=True)
class Spread:
    """A figure over several runs."""

    mean: float
    deviation: float  # Of the sample: divided by one less than the runs


@dataclass(frozen=True, kw_only=True)
class RetrievalEvaluation:
    """Figures of one or several models on the same held-out data."""

    figures: dict[str, RetrievalFigures]  # By the name that each model was given by
    # By the same names, what each run was trained with; None where that is not known.
    seeds: dict[str, int | None]
    # By ranking (`contrastive`, `reranked`) and figure; None for one model, and a ranking is
    # missing where not all models have it.
    spread: dict[str, dict[str, Spread]] | None

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Overrides:
    """The user's overrides; None keeps the model's own setting."""

    rerank: int | None = None  # Images that matching ranks anew
    score: Literal["matching", "odds", "sum"] | None = None  # What they are ranked by
    odds_weight: float | None = None  # Of the score `sum`
    clean_captions: bool | None = None  # Whether captions are cleaned
    batch_tokens: int | None = None  # Text tokens computed at once; the figures do not depend on it
    memory_mb: int | None = None  # As in `RetrievalConfig`; the figures do not depend on it either
    root: Path | None = None  # Where the runs' dataset lies now
    images: Path | None = None  # Where its images lie now

    def of_model(self) -> dict[str, Any]:
        """Return the overrides that replace settings of the model."""
        names = ("rerank", "score", "odds_weight", "clean_captions")
        values = {name: getattr(self, name) for name in names}
        return {name: value for name, value in values.items() if value is not None}


def evaluate_retrieval_models(
    names: Sequence[str],
    *,
    data: str | None = None,
    reading: PairsConfig | None = None,
    split: HeldOutSplit = "test",
    overrides: Overrides | None = None,
    progress: bool = False,
) -> RetrievalEvaluation:
    """Measure models, each on the split of its own run, or all on the same pairs.

    Args:
        overrides: Settings to use instead of the models' own.
        progress: Draw progress bars.
        names: Run folders, or model folders where `data` is given.
        data: A source of pairs that name persons; None for what each run held out.
        reading: How `data` is read; by default `PairsConfig()`.
        split: Of the runs' datasets; `val` where a dataset has no test split.

    Raises:
        ConfigError: A model is named twice, has no data of its own, or is not finished; or several
            are not measured conditions.
        ModelError: It cannot be loaded, or was trained without the contrastive loss.
        DataError: The data cannot be used.
    """
    need_different(names)
    overrides = overrides or Overrides()
    conditions, datasets = Conditions(), Datasets(overrides.root, overrides.images)
    if len(names) > 1:  # said before the first is measured, which may take an hour
        for name in names:
            conditions.add(name, _foreseen(name, data, split, overrides, datasets))
    figures = {}
    for name in names:
        _need_pictures(name, data)
        opened = _opened(name, overrides)
        settings = _settings(opened, overrides)
        conditions.add(name, ranking_conditions(settings))
        if data is None:
            figures[name] = _on_its_split(
                opened, datasets.of(name, opened.retrieval), split, settings
            )
        else:
            figures[name] = _on_pairs(
                opened, data, reading or PairsConfig(), settings, progress=progress
            )
        found = {  # some cannot be read
            "pictures that can be read": f"{figures[name].num_images:,}",
            "captions that can be read": f"{figures[name].num_texts:,}",
        }
        conditions.add(name, found)
    return RetrievalEvaluation(
        figures=figures,
        seeds={name: seed_of(name) for name in names},
        spread=spread_of(list(figures.values())),
    )


def _need_pictures(name: str, data: str | None) -> None:
    """Refuse a model that is no run, where no data is named."""
    if data is None and run_kind(name) != PersonSearchRunConfig.kind:
        raise ConfigError(
            f"'{name}' is no run of maskery train person-search, so it has no held-out pictures of "
            f"its own; name some with --data PAIRS"
        )


def _foreseen(
    name: str, data: str | None, split: HeldOutSplit, overrides: Overrides, datasets: Datasets
) -> dict[str, str]:
    """Return the conditions of a measurement, as far as they are known before loading."""
    _need_pictures(name, data)
    known = known_retrieval(name)
    if known is None:
        return {}
    known = replace(known, **overrides.of_model())
    ranking = known.ranking
    if "itm" not in known.trained:
        ranking = replace(ranking, rerank=0)
    gallery = {} if data is not None else gallery_conditions(datasets.of(name, known), split)
    return gallery | ranking_conditions(ranking)


def spread_of(figures: Sequence[RetrievalFigures]) -> dict[str, dict[str, Spread]] | None:
    """Mean and standard deviation over runs; None of a single one."""
    if len(figures) < 2:
        return None
    spread: dict[str, dict[str, Spread]] = {}
    for ranking in RANKINGS:
        found = [getattr(one, ranking) for one in figures]
        if None in found:
            continue
        values = {name: [getattr(one, name).value for one in found] for name in FIGURES}
        spread[ranking] = {
            name: Spread(statistics.fmean(each), statistics.stdev(each))
            for name, each in values.items()
        }
    return spread


def _opened(name: str, overrides: Overrides) -> OpenImageText:
    folder = Path(name)
    is_run = run_kind(folder) == PersonSearchRunConfig.kind
    if is_run:
        open_run(folder).finished(PersonSearchRunConfig)
    opened = open_for_retrieval(name)
    if not is_run:
        require_contrast(opened)
    retrieval = replace(opened.retrieval, **overrides.of_model())
    if overrides.odds_weight is not None and retrieval.score != "sum":
        raise ConfigError(
            f"odds_weight is set, and '{name}' is ranked by {retrieval.score}, which has no use "
            f"for it; add --score sum, or leave it out"
        )
    return replace(opened, retrieval=retrieval)


def _settings(opened: OpenImageText, overrides: Overrides) -> RetrievalConfig:
    """The model's own settings with what is asked for, and what is computed at once."""
    folder, ranking = Path(opened.name), opened.retrieval.ranking
    settings = RetrievalConfig()
    if run_kind(folder) == PersonSearchRunConfig.kind:
        settings = load_config(folder / CONFIG, PersonSearchRunConfig).retrieval
    if ranking.rerank and not can_match(opened):
        log.info("the matching head of '%s' was never trained, so it is left out", opened.name)
        ranking = replace(ranking, rerank=0)
    return replace(
        ranking,
        batch_images=settings.batch_images,
        batch_tokens=overrides.batch_tokens or settings.batch_tokens,
        memory_mb=overrides.memory_mb or settings.memory_mb,
    )


def run_samples(folder: Path) -> dict[str, Any]:
    """Return a few captions that a finished run held out, with the pictures its model finds."""
    opened = _opened(str(folder), Overrides())
    settings = _settings(opened, Overrides())
    held_out = _held_out(opened, Datasets().of(str(folder), opened.retrieval), "test", settings)
    queries = spread_queries(len(held_out.queries))
    found = evaluate_set(opened.model, held_out, settings, queries=queries)
    ranking = found.contrastive if found.reranked is None else found.reranked
    searches = [
        {
            "caption": sample.caption,
            "found": [
                {"picture": png_uri(one.image, height=160), "right": one.right}
                for one in sample.found
            ],
        }
        for sample in sample_searches(held_out, queries, ranking)
    ]
    return {"searches": searches}


def _on_its_split(
    opened: OpenImageText, data: PersonSearchData, split: HeldOutSplit, settings: RetrievalConfig
) -> RetrievalFigures:
    """A run's model on a split of the run's dataset."""
    held_out = _held_out(opened, data, split, settings)
    found = evaluate_set(opened.model, held_out, settings)
    if held_out.pictures.skipped.count:
        log.warning("%s", held_out.pictures.skipped)
    return found.figures


def _held_out(
    opened: OpenImageText, data: PersonSearchData, split: HeldOutSplit, settings: RetrievalConfig
) -> RetrievalSet:
    """A split of a run's dataset, read as the run read it."""
    config = load_config(Path(opened.name) / CONFIG, PersonSearchRunConfig)
    measured, pairs = split_of(data, split)
    if measured != split:
        log.info("%s has no test split: its validation identities are measured", data.title)
    view = preprocessing_of(opened.name, opened.model, config.view)
    return RetrievalSet.read_by(
        opened,
        pairs,
        on_bad_caption=config.data.on_bad_caption,
        on_bad_image=config.data.on_bad_image,
        view=view,
        batch_images=settings.batch_images,
    )


def _on_pairs(
    opened: OpenImageText,
    data: str,
    reading: PairsConfig,
    settings: RetrievalConfig,
    *,
    progress: bool,
) -> RetrievalFigures:
    """Any image-text model on pairs; captions are prepared as the model's own were."""
    found = RetrievalSet.read_by(
        opened,
        Pairs.open(data, reading).prepared(opened.retrieval.prepare),
        on_bad_caption=reading.on_bad_caption,
        on_bad_image=reading.on_bad_image,
        batch_images=settings.batch_images,
    )
    retrieval = evaluate_set(opened.model, found, settings, progress=progress)
    for line in found.skipped:
        log.warning("%s", line)
    return retrieval.figures
