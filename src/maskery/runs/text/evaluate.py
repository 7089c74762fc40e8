"""Measure finished text runs and models, compare them, and train a sweep of runs to compare."""

import contextlib
import itertools
import json
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from maskery.core.batch import TokenBatch
from maskery.core.errors import CheckpointError, ConfigError
from maskery.core.processes import to_gpu
from maskery.data.corpus.config import CorpusConfig
from maskery.evaluation.intervals import Interval
from maskery.evaluation.text import masked, opening
from maskery.evaluation.text.comparison import Row, ScoredRun, compare_runs
from maskery.evaluation.text.fill import Filler
from maskery.evaluation.text.samples import sample_text
from maskery.masking.config import MaskingConfig
from maskery.masking.masker import Masker
from maskery.models.loading import anchored, resolve
from maskery.models.masked_lm import MaskedLanguageModel
from maskery.runs.frame import config_file
from maskery.runs.frame.run_folder import EVALUATION, default_folder, has_model, write_bytes
from maskery.runs.text.config import TextRunConfig
from maskery.runs.text.held_out import AS_LOADED, HELD_OUT, WITH_HEAD, kept_scores, text_auc
from maskery.runs.text.prepare import TextRun, text_parts
from maskery.runs.text.run import train_text
from maskery.tasks.text_mlm import load_extra, make_text_task
from maskery.training.optimiser import take_precision
from maskery.training.snapshot import flat

log = logging.getLogger(__name__)

PLACES = ("output", "resume", "cache_dir")  # where a run lies, not how its model was made
# All runs must be measured on the same text, and lie where the sweep puts them.
NOT_SWEPT = ("corpus", "eval_data", "held_out_share", "output", "resume", "cache_dir", "engine")


def compare_folders(folders: Sequence[Path], against: Path | None = None) -> list[Row]:
    """Compare finished text runs."""
    places: dict[Path, Path] = {}  # a folder that is named twice has its first name
    for path in (*folders, *([] if against is None else [against])):
        places.setdefault(path.resolve(), path)
    if len(places) < 2:
        raise ConfigError("a comparison needs at least two runs; name the folders of two or more")
    configs = {}
    for path in places.values():  # each is checked before any is scored
        kept = (path / HELD_OUT).is_file()
        figures = config_file.FIGURES_KEPT if kept else config_file.FIGURES_NOW
        configs[path] = config_file.open_run(path).finished(TextRunConfig, figures)
    runs = [_scored(path, config) for path, config in configs.items()]
    return compare_runs(runs, None if against is None else str(places[against.resolve()]))


def course_of(config: TextRunConfig) -> dict[str, Any]:
    """Return every setting but those of `PLACES`, as `training.seed`."""
    every = flat(config_file.to_plain(config))
    return {".".join(names): value for names, value in every if names[0] not in PLACES}


def _scored(folder: Path, config: TextRunConfig) -> ScoredRun:
    path = folder / HELD_OUT
    if path.is_file():
        sums, identity = masked.ExampleSums.read(path)
    else:
        log.warning("'%s' has kept no held-out sums; its model is scored now", folder)
        run = TextRun(config, progress=False)
        sums, identity = run.score(opening.open_model(folder).model), run.identity
        with contextlib.suppress(CheckpointError):  # a folder that is only read is compared, too
            write_bytes(path, sums.to_bytes(identity))
    try:
        tokenizer = json.loads(identity)["tokenizer_fingerprint"]
    except (ValueError, KeyError, TypeError) as error:
        problem = f"'{path}' does not say which tokenizer its masks are of"
        raise CheckpointError(f"{problem}; remove the file, and they are computed again") from error
    return ScoredRun(name=str(folder), settings=course_of(config), tokenizer=tokenizer, sums=sums)


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """One run of a sweep."""

    config: TextRunConfig  # With its folder as `output`; it resumes what is there
    finished: bool  # True if the folder holds the whole run


def plan_sweep(path: Path, over: Sequence[str], output: Path | None = None) -> list[PlannedRun]:
    """Return the runs of a sweep, the last setting changing fastest; folders have their names."""
    base = config_file.load_config(path, TextRunConfig)
    folder = base.output or default_folder(base.corpus[0], base.model)
    folder = output or folder.with_name(f"{folder.name}-sweep")
    axes = [_axis(one) for one in over]
    names = [name for name, _ in axes]
    if not axes or len(set(names)) < len(names):
        raise ConfigError("--over names each setting once, as in --over mask_rate=0.15,0.3")
    grid = itertools.product(*(values for _, values in axes))
    runs = [_planned(base, dict(zip(names, one, strict=True)), path, folder) for one in grid]
    if len(runs) < 2:
        raise ConfigError("a sweep compares two runs or more: give --over several values")
    if len({run.config.output for run in runs}) < len(runs):
        raise ConfigError("two values of --over give folders of one name; change one of them")
    return runs


def run_sweep(runs: Sequence[PlannedRun], *, progress: bool = True) -> list[Path]:
    """Train the runs of a sweep that are not finished; returns the folders of all."""
    for number, run in enumerate(runs, 1):
        done = "finished before, and kept" if run.finished else "training"
        log.info("%s of %s, '%s': %s", number, len(runs), run.config.output, done)
        if not run.finished:
            train_text(run.config, progress=progress)
    return [run.config.output for run in runs if run.config.output is not None]


def _axis(text: str) -> tuple[str, list[str]]:
    name, _, listed = text.partition("=")
    name = name.strip().replace("-", "_")
    values = [value.strip() for value in listed.split(",")]
    if "" in values or len({_value(value) for value in values}) < len(values):
        needed = "a setting with its values, all different, as in --over mask_rate=0.15,0.3"
        raise ConfigError(f"--over {text}: it needs {needed}")
    if name in NOT_SWEPT:
        problem = f"--over {text}: there is no setting '{name}' to change"
        flags = "the flags of maskery train text, with underscores"
        raise ConfigError(f"{problem}; settings are {flags}, but for {', '.join(NOT_SWEPT)}")
    return name, values


def _value(text: str) -> Any:
    """Return a number, true, false or null as YAML reads it; anything else is text."""
    try:
        value = yaml.safe_load(text)
    except (ValueError, yaml.YAMLError):
        return text
    return value if value is None or isinstance(value, bool | int | float) else text


def _planned(base: TextRunConfig, settings: dict[str, str], path: Path, output: Path) -> PlannedRun:
    named = [f"{name}-{value}" for name, value in settings.items()]
    folder = output / re.sub(r"[^A-Za-z0-9._+-]+", "-", "-".join(named))
    values = {name: _value(value) for name, value in settings.items()}
    config = config_file.with_settings(base, values, where=f"{path} with {', '.join(named)}")
    config = replace(config.anchored(), model=anchored(config.model), output=folder, resume="auto")
    finished = (folder / EVALUATION).is_file() and has_model(folder)
    if finished:
        found, wanted = map(course_of, (config_file.open_run(folder).config, config))
        changed = next((name for name in wanted if found.get(name) != wanted[name]), None)
        if changed is not None:
            problem = f"'{folder}' holds a run with another {changed}"
            apart = f"({found.get(changed)}, not {wanted[changed]})"
            raise ConfigError(f"{problem} {apart}; name another --output for this sweep")
    return PlannedRun(config=config, finished=finished)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Held-out figures of one model, or of two with their paired difference."""

    scores: dict[str, masked.MaskedScores]  # By heading: of a run in order of time, or model names
    difference: dict[str, Interval] | None  # The last minus the first, where there are two
    mrtd_auc: dict[str, float]  # How well models that were trained for it tell replaced words


def evaluate_run(folder: str | Path, *, batch_tokens: int | None = None) -> Evaluation:
    """Compare a run's model with the model it started from, on what the run held out."""
    config = config_file.open_run(folder).finished(TextRunConfig)
    run = TextRun(config, progress=False)
    to_gpu(run.model)
    trained = opening.open_model(str(folder))
    take_precision(config.training, run.model)  # which opening a model does not know
    if batch_tokens is not None:
        run.held_out.step_size = batch_tokens
    scored = {"before": run.score()}
    with_head = kept_scores(Path(folder) / WITH_HEAD, run.identity)
    if with_head is not None:
        scored = {AS_LOADED: scored["before"], "before": with_head}
    scored["after"] = run.score(trained.model)
    return _both(scored, {"after": saved_task_auc(trained, config, run.held_out.in_order())})


def evaluate_model(
    model: str,
    data: tuple[str, ...],
    *,
    against: str | None,
    reading: CorpusConfig,
    masking: MaskingConfig,
    cache_dir: Path | None = None,
    batch_tokens: int = 4096,
    seed: int = 0,
    progress: bool = True,
) -> Evaluation:
    """Evaluate one model, or two, on held-out text."""
    opened = [opening.open_model(name) for name in ([against] if against else []) + [model]]
    if len(opened) == 2:
        opening.require_same_tokenizer(*opened)
    scored: dict[str, masked.ExampleSums] = {}
    judged: dict[str, float | None] = {}
    for one in opened:
        # The same model twice is a legitimate question, with the answer 0.
        heading = one.name if one.name not in scored else f"{one.name} (again)"
        source = opening.held_out_source(
            one, data, reading, cache_dir=cache_dir, batch_tokens=batch_tokens, progress=progress
        )
        masker = Masker.of(one.tokenizer, masking, seed=seed)
        batches = masked.scoring(source, progress=progress)
        scored[heading] = masked.score_examples(one.model, batches, masker)
        if config_file.run_kind(one.name) == "text":
            config = config_file.open_run(one.name).finished(TextRunConfig)
            judged[heading] = saved_task_auc(one, config, source.in_order())
    return _both(scored, judged)


def saved_task_auc(
    opened: opening.OpenModel, config: TextRunConfig, batches: Iterable[TokenBatch]
) -> float | None:
    """Return `text_auc` of a run's model, with the twin and the head beside it."""
    if not config.objectives.detects:
        return None
    plain = opened.model
    # Another model around the same encoder: it is given the head that the objective adds.
    model = MaskedLanguageModel(plain.hf, packed=plain.packed, pad_token_id=plain.pad_token_id)
    task = make_text_task(text_parts(config, model, opened.tokenizer))
    load_extra(task, model, Path(resolve(opened.name)), needed=True)
    return text_auc(task, batches)


def run_samples(folder: Path) -> dict[str, Any]:
    """Return sample fills and changed words of a finished run, for its report."""
    run = TextRun(config_file.open_run(folder).finished(TextRunConfig), progress=False)
    before = Filler(run.model, run.loaded.tokenizer)
    return asdict(sample_text(before, Filler.of(folder), run.held_out.in_order()))


def _both(scored: dict[str, masked.ExampleSums], judged: Mapping[str, float | None]) -> Evaluation:
    sums = list(scored.values())
    scores = {name: masked.summarise(sums) for name, sums in scored.items()}
    difference = masked.compare(sums[-1], sums[-2]) if len(sums) > 1 else None
    aucs = {name: value for name, value in judged.items() if value is not None}
    return Evaluation(scores=scores, difference=difference, mrtd_auc=aucs)
