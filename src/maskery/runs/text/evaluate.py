"""Evaluate a text run before and after its training, or any model on any text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from maskery.core.batch import TokenBatch
from maskery.data.corpus.config import CorpusConfig
from maskery.data.tokenise import default_cache_dir
from maskery.evaluation.intervals import Interval
from maskery.evaluation.text.fill import Filler
from maskery.evaluation.text.masked import (
    ExampleSums,
    MaskedScores,
    compare,
    score_examples,
    scoring,
    summarise,
)
from maskery.evaluation.text.opening import (
    OpenModel,
    held_out_source,
    open_model,
    require_same_tokenizer,
)
from maskery.evaluation.text.samples import sample_text
from maskery.masking.config import MaskingConfig
from maskery.masking.masker import Masker
from maskery.models.loading import resolve
from maskery.models.masked_lm import MaskedLanguageModel
from maskery.runs.frame.config_file import open_run, run_kind
from maskery.runs.text.config import TextRunConfig
from maskery.runs.text.held_out import AS_LOADED, WITH_HEAD, kept_scores, replaced_words_auc
from maskery.runs.text.prepare import prepare_text, text_parts
from maskery.tasks.text_mlm import load_extra, make_text_task


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Held-out figures of one model, or of two with their paired difference."""

    # By heading: those of a run's result in order of time, or model names
    scores: dict[str, MaskedScores]
    difference: dict[str, Interval] | None  # The last minus the first, where there are two
    # How well replaced words are told from original ones, of each model that was trained to
    mrtd_auc: dict[str, float]


def evaluate_run(folder: str | Path, *, batch_tokens: int | None = None) -> Evaluation:
    """Compare a run's model with the model it started from, on what the run held out."""
    config = open_run(folder).finished(TextRunConfig)
    run = prepare_text(config, progress=False)
    if batch_tokens is not None:
        run.held_out.step_size = batch_tokens
    scored = {"before": run.score()}
    with_head = kept_scores(Path(folder) / WITH_HEAD, run.identity)
    if with_head is not None:
        scored = {AS_LOADED: scored["before"], "before": with_head}
    trained = open_model(str(folder))
    scored["after"] = run.score(trained.model)
    judged = {"after": saved_task_auc(trained, config, run.held_out.in_order())}
    return _both(scored, judged)


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
    opened = [open_model(name) for name in ([against] if against else []) + [model]]
    if len(opened) == 2:
        require_same_tokenizer(*opened)
    scored: dict[str, ExampleSums] = {}
    judged: dict[str, float | None] = {}
    for one in opened:
        # The same model twice is a legitimate question, with the answer 0.
        heading = one.name if one.name not in scored else f"{one.name} (again)"
        source = held_out_source(
            one,
            data,
            reading,
            cache_dir=cache_dir or default_cache_dir(),
            batch_tokens=batch_tokens,
            progress=progress,
        )
        masker = Masker.of(one.tokenizer, masking, seed=seed)
        scored[heading] = score_examples(one.model, scoring(source, progress=progress), masker)
        if run_kind(one.name) == "text":
            config = open_run(one.name).finished(TextRunConfig)
            judged[heading] = saved_task_auc(one, config, source.in_order())
    return _both(scored, judged)


def saved_task_auc(
    opened: OpenModel, config: TextRunConfig, batches: Iterable[TokenBatch]
) -> float | None:
    """Return `replaced_words_auc` of a run's model, with the twin and the head beside it."""
    if not config.objectives.detects:
        return None
    plain = opened.model
    # Another model around the same encoder: it is given the head that the objective adds.
    model = MaskedLanguageModel(plain.hf, packed=plain.packed, pad_token_id=plain.pad_token_id)
    task = make_text_task(text_parts(config, model, opened.tokenizer))
    load_extra(task, model, Path(resolve(opened.name)), needed=True)
    return replaced_words_auc(task, batches)


def run_samples(folder: Path) -> dict[str, Any]:
    """Return sample fills and changed words of a finished run, for its report."""
    run = prepare_text(open_run(folder).finished(TextRunConfig), progress=False)
    before = Filler(run.model, run.loaded.tokenizer)
    return asdict(sample_text(before, Filler.of(folder), run.held_out.in_order()))


def _both(scored: dict[str, ExampleSums], judged: Mapping[str, float | None]) -> Evaluation:
    sums = list(scored.values())
    return Evaluation(
        scores={name: summarise(sums) for name, sums in scored.items()},
        difference=compare(sums[-1], sums[-2]) if len(sums) > 1 else None,
        mrtd_auc={name: value for name, value in judged.items() if value is not None},
    )
