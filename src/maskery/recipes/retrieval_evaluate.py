"""Retrieval figures of person-search runs and image-text models, and their spread over runs."""

from __future__ import annotations

import logging
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from maskery.core.errors import ConfigError
from maskery.data.images.skipped import Skipped
from maskery.data.pairs.captions import tokenise_captions
from maskery.data.pairs.config import PairsConfig
from maskery.data.pairs.pairs import Pairs
from maskery.data.pairs.pictures import Pictures
from maskery.data.person_search.captions import clean_caption
from maskery.data.person_search.config import PersonSearchDataConfig
from maskery.data.person_search.dataset import PersonSearchData, open_person_search
from maskery.data.person_search.held_out import HeldOutPersons
from maskery.evaluation.heads import can_match, require_contrast
from maskery.evaluation.image_text_opening import (
    OpenImageText,
    open_image_text,
    preprocessing_of,
)
from maskery.evaluation.retrieval import RetrievalFigures, evaluate_retrieval
from maskery.evaluation.retrieval_config import RetrievalConfig
from maskery.evaluation.retrieval_metrics import FIGURES
from maskery.evaluation.retrieval_pairs import (
    evaluate_retrieval_set,
    retrieval_set,
    without_unreadable,
)
from maskery.evaluation.search_samples import SearchSample, sample_searches, spread_queries
from maskery.recipes.person_search_config import PersonSearchRunConfig
from maskery.recipes.retrieval_alike import (
    Alike,
    HeldOutSplit,
    gallery_of,
    ranking_of,
    split_of,
)
from maskery.recipes.run_folder import CONFIG, MODEL, load_config

log = logging.getLogger(__name__)

RANKINGS = ("contrastive", "reranked")


class Spread(NamedTuple):
    """A figure over several runs."""

    mean: float
    deviation: float
    """Of the sample: divided by one less than the runs."""


@dataclass(frozen=True, kw_only=True)
class RetrievalEvaluation:
    """Figures of one or several models on the same held-out data.

    Attributes:
        figures: By the name that each model was given by.
        seeds: By the same names, what each run was trained with; None where that is not known.
        spread: By ranking (`contrastive`, `reranked`) and figure; None for one model, and a ranking
            is missing where not all models have it.
    """

    figures: dict[str, RetrievalFigures]
    seeds: dict[str, int | None]
    spread: dict[str, dict[str, Spread]] | None

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        spread = None
        if self.spread is not None:
            spread = {
                ranking: {name: found._asdict() for name, found in figures.items()}
                for ranking, figures in self.spread.items()
            }
        return {
            "figures": {name: asdict(figures) for name, figures in self.figures.items()},
            "seeds": self.seeds,
            "spread": spread,
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

    def of(self, name: str) -> PersonSearchData:
        """That of a run.

        Raises:
            DataError: It is no longer there, or cannot be used.
        """
        config = load_config(Path(name) / CONFIG, PersonSearchRunConfig).data
        config = replace(
            config, root=self._root or config.root, images=self._images or config.images
        )
        if config not in self._read:
            self._read[config] = open_person_search(config)
        return self._read[config]


def is_person_search_run(folder: Path) -> bool:
    """Whether a folder's configuration is that of a person-search run."""
    try:
        lines = (folder / CONFIG).read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return False
    return any(line.startswith("weak_pair_probability:") for line in lines)


def caption_preparation(name: str) -> Callable[[str], str]:
    """What a run did to captions before it read them; nothing, where that is not known."""
    folder = Path(name)
    if folder.name == MODEL and not is_person_search_run(folder):
        folder = folder.parent
    if not is_person_search_run(folder):
        return str
    data = load_config(folder / CONFIG, PersonSearchRunConfig).data
    if not data.clean_captions:
        return str
    return partial(clean_caption, max_words=data.max_words)


def evaluate_retrieval_models(
    names: Sequence[str],
    *,
    data: str | None = None,
    reading: PairsConfig | None = None,
    split: HeldOutSplit = "test",
    rerank: int | None = None,
    batch_tokens: int | None = None,
    memory_mb: int | None = None,
    root: Path | None = None,
    images: Path | None = None,
    progress: bool = False,
) -> RetrievalEvaluation:
    """Measure models, each on the split of its own run, or all on the same pairs.

    Args:
        names: Run folders, or model folders where `data` is given.
        data: A source of pairs that name persons; None for what each run held out.
        reading: How `data` is read; by default `PairsConfig()`.
        split: Of the runs' datasets; `val` where a dataset has no test split.
        rerank: Images that matching ranks anew; None for what the run had, or 128.
        batch_tokens: Text tokens computed at once; the figures do not depend on it.
        memory_mb: As in `RetrievalConfig`; None for what the run had, or its default.
        root: Where the runs' dataset lies now; None for where it was.
        images: Where its images lie now; None for where they were.
        progress: Whether to draw bars.

    Raises:
        ConfigError: A model is named twice, has no data of its own, or is not finished; or several
            are not measured alike.
        ModelError: It cannot be loaded, or was trained without the contrastive loss.
        DataError: The data cannot be used.
    """
    _need_different(names)
    alike, datasets = Alike(), Datasets(root, images)
    asked = {name: _settings(name, data, rerank, batch_tokens) for name in names}
    if len(names) > 1:  # said before the first is measured, which may take an hour
        for name, settings in asked.items():
            alike.add(name, {} if data is not None else gallery_of(datasets.of(name), split))
            alike.add(name, ranking_of(settings))
    figures = {}
    for name, settings in asked.items():
        if memory_mb is not None:
            settings = replace(settings, memory_mb=memory_mb)
        opened = _opened(name)
        if settings.rerank and not _matches(opened):
            log.info("the matching head of '%s' was never trained, so it is left out", name)
            settings = replace(settings, rerank=0)
        if data is None:
            figures[name] = _on_its_split(opened, datasets.of(name), split, settings)
        else:
            figures[name] = _on_pairs(
                opened, data, reading or PairsConfig(), settings, progress=progress
            )
        alike.add(name, _found(figures[name]))
    return RetrievalEvaluation(
        figures=figures,
        seeds={name: _seed(name) for name in names},
        spread=spread_of(list(figures.values())),
    )


def _need_different(names: Sequence[str]) -> None:
    """Refuse the same model twice, however its folder is written.

    Raises:
        ConfigError: One is named twice.
    """
    seen: dict[Path, str] = {}
    for name in names:
        folder = _run_of(name) or Path(name).resolve()
        if folder in seen:
            again = "" if seen[folder] == name else f", as '{seen[folder]}' and as '{name}'"
            raise ConfigError(f"'{seen[folder]}' is named twice{again}; name each run once")
        seen[folder] = name


def _run_of(name: str) -> Path | None:
    """The person-search run that a folder is, or whose model it is."""
    folder = Path(name).resolve()
    if is_person_search_run(folder):
        return folder
    is_model = folder.name == MODEL and is_person_search_run(folder.parent)
    return folder.parent if is_model else None


def _seed(name: str) -> int | None:
    """What a run was trained with."""
    run = _run_of(name)
    if run is None:
        return None
    return load_config(run / CONFIG, PersonSearchRunConfig).training.seed


def _found(figures: RetrievalFigures) -> dict[str, str]:
    """What was measured in the end: some pictures cannot be read, some models cannot match."""
    return {
        "pictures that are ranked anew": str(figures.rerank),
        "pictures that can be read": f"{figures.num_images:,}",
        "captions that can be read": f"{figures.num_texts:,}",
    }


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


def _settings(
    name: str, data: str | None, rerank: int | None, batch_tokens: int | None
) -> RetrievalConfig:
    """A run's own settings, or the usual ones, with what is asked for."""
    if is_person_search_run(Path(name)):
        settings = load_config(Path(name) / CONFIG, PersonSearchRunConfig).retrieval
    elif data is None:
        raise ConfigError(
            f"'{name}' is no run of maskery train person-search, so it has no held-out pictures of "
            f"its own; name some with --data PAIRS"
        )
    else:
        settings = RetrievalConfig()
    if rerank is not None:
        settings = replace(settings, rerank=rerank)
    if batch_tokens is not None:
        settings = replace(settings, batch_tokens=batch_tokens)
    return settings


def _opened(name: str) -> OpenImageText:
    folder = Path(name)
    if is_person_search_run(folder) and not (folder / MODEL / "config.json").is_file():
        raise ConfigError(
            f"the run '{folder}' has no model yet; finish it with: maskery train --config "
            f"{folder / CONFIG} --resume auto"
        )
    opened = open_image_text(name)
    if not is_person_search_run(folder):
        require_contrast(opened.model, name)
    return opened


def _matches(opened: OpenImageText) -> bool:
    """Whether the matching head was trained: a run says so, of other models the head itself."""
    if not is_person_search_run(Path(opened.name)):
        return can_match(opened.model)
    config = load_config(Path(opened.name) / CONFIG, PersonSearchRunConfig)
    return "itm" in config.objectives.weights


def search_samples(folder: Path) -> tuple[SearchSample, ...]:
    """A few captions that a person-search run held out, with what its model finds for them.

    Args:
        folder: A finished run.

    Raises:
        MaskeryError: Its dataset or its model is no longer there.
    """
    opened, settings = _opened(str(folder)), _settings(str(folder), None, None, None)
    if not _matches(opened):
        settings = replace(settings, rerank=0)
    held_out = _held_out(opened, Datasets().of(str(folder)), "test", settings)
    queries = spread_queries(len(held_out.queries))
    found = evaluate_retrieval(
        opened.model,
        held_out.images(),
        held_out.texts_of(queries),
        image_persons=held_out.image_persons,
        text_persons=held_out.text_persons[queries],
        config=settings,
    )
    ranking = found.contrastive if found.reranked is None else found.reranked
    return sample_searches(held_out, queries, ranking)


def _on_its_split(
    opened: OpenImageText, data: PersonSearchData, split: HeldOutSplit, settings: RetrievalConfig
) -> RetrievalFigures:
    """A run's model on a split of the run's dataset."""
    held_out = _held_out(opened, data, split, settings)
    found = evaluate_retrieval(
        opened.model,
        held_out.images(),
        held_out.texts,
        image_persons=held_out.image_persons,
        text_persons=held_out.text_persons,
        config=settings,
    )
    if held_out.pictures.skipped.count:
        log.warning("%s", held_out.pictures.skipped)
    return found.figures


def _held_out(
    opened: OpenImageText, data: PersonSearchData, split: HeldOutSplit, settings: RetrievalConfig
) -> HeldOutPersons:
    """A split of a run's dataset, read as the run read it."""
    config = load_config(Path(opened.name) / CONFIG, PersonSearchRunConfig)
    measured, pairs = split_of(data, split)
    if measured != split:
        log.info("%s has no test split: its validation identities are measured", data.title)
    view = preprocessing_of(opened.name, opened.model, config.view)
    tokens = tokenise_captions(
        pairs,
        opened.tokenizer,
        Skipped("caption", config.data.on_bad_caption),
        max_length=config.max_length or _positions(opened),
    )
    pictures = Pictures(pairs, config.data.on_bad_image, near=view.size)
    return HeldOutPersons(pairs, tokens, pictures, view, batch_images=settings.batch_images)


def _on_pairs(
    opened: OpenImageText,
    data: str,
    reading: PairsConfig,
    settings: RetrievalConfig,
    *,
    progress: bool,
) -> RetrievalFigures:
    """Any image-text model on pairs; captions are prepared as the model's run did."""
    pairs = Pairs.open(data, reading)
    captions = Skipped("caption", reading.on_bad_caption)
    images = Skipped("image", reading.on_bad_image)
    found = retrieval_set(
        pairs,
        opened.tokenizer,
        max_length=_positions(opened),
        prepare=caption_preparation(opened.name),
        skipped=captions,
    )
    if images.policy == "skip":
        found = without_unreadable(found, opened.view, images, batch_images=settings.batch_images)
    for skipped in (pairs.skipped_captions, captions, images):
        if skipped.count:
            log.warning("%s", skipped)
    return evaluate_retrieval_set(
        opened.model, found, opened.view, settings, progress=progress
    ).figures


def _positions(opened: OpenImageText) -> int:
    return int(opened.model.config.text_config.max_position_embeddings)
