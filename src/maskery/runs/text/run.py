"""A text run: corpus and encoder in; adapted encoder, figures and a model folder out."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from maskery.core.errors import ConfigError, ModelError
from maskery.core.processes import join_processes
from maskery.core.startup import is_main_process
from maskery.core.task import Task
from maskery.core.vocabulary import Vocabulary, vocabulary_size
from maskery.data.text_source import Template, TextSource
from maskery.data.tokenise import default_cache_dir
from maskery.evaluation.intervals import Interval
from maskery.evaluation.text.masked import (
    ExampleSums,
    MaskedScores,
    compare,
    score_examples,
    summarise,
)
from maskery.masking.config import MaskingConfig
from maskery.masking.masker import Masker
from maskery.models.dropout import use_fast_dropout
from maskery.models.layout import can_pack, max_positions
from maskery.models.loading import (
    Loaded,
    add_rows,
    anchored,
    known_as,
    load_masked_lm,
    new_masked_lm,
    quiet_transformers,
    resolve,
    start_new_head,
)
from maskery.models.masked_lm import MaskedLanguageModel
from maskery.runs.frame.run_folder import MODEL, default_folder, write_text
from maskery.runs.frame.run_frame import identity, run_in_folder, save_model_folder
from maskery.runs.text.card import text_model_card
from maskery.runs.text.config import SCRATCH, TextRunConfig
from maskery.runs.text.data import TextData, open_text
from maskery.runs.text.first_scores import first_scores
from maskery.runs.text.momentum import (
    load_extra,
    new_parameters,
    replaced_words_auc,
    save_extra,
)
from maskery.runs.text.task import report_left_out, text_task
from maskery.tasks.text_mlm import TextParts
from maskery.training.loop import Summary, TrainingLoop
from maskery.training.optimiser import build_optimiser

if TYPE_CHECKING:
    from maskery.data.shards.source import ShardSource

log = logging.getLogger(__name__)

Objective = Callable[[TextParts], Task[Any, Any]]

DEFAULT_MAX_LENGTH = 512
# Evaluation never draws a random rate: BERT's masks, whatever the run trains with.
EVALUATION_MASKING = MaskingConfig()


@dataclass(frozen=True, kw_only=True)
class TextRun:
    """Everything a text run consists of, before its first step.

    Attributes:
        config: As given.
        model: The initial model.
        loaded: What loading found out.
        vocabulary: Of the tokenizer.
        train: Training batches.
        held_out: Held-out batches.
        identity: What a continuation must share.
        about: How much there is to train and to be measured on, in words.
        objective: Makes the task, in the place of the one that the configuration names.
    """

    config: TextRunConfig
    model: MaskedLanguageModel
    loaded: Loaded
    vocabulary: Vocabulary
    train: TextSource | ShardSource
    held_out: TextSource
    identity: str
    about: str
    objective: Objective | None = None

    def score(self, model: MaskedLanguageModel | None = None) -> ExampleSums:
        """Held-out sums of this run's model, or of another with the same tokenizer.

        The run's processes share the work out: all of them must ask.
        """
        return score_examples(
            model or self.model,
            self.held_out.in_order(),
            Masker.of(self.vocabulary, EVALUATION_MASKING),
            processes=join_processes(),
        )

    def make_task(self) -> Task[Any, Any]:
        """Make the task; a model folder that holds a twin or heads goes on with them."""
        task = text_task(self.config, self.model, self.loaded.tokenizer, self.train, self.objective)
        if not self.config.model.startswith(SCRATCH):
            load_extra(task, self.model, Path(resolve(self.config.model)), needed=False)
        return task


@dataclass(frozen=True, kw_only=True)
class TextResult:
    """What a text run came to.

    Attributes:
        folder: The run folder.
        before: Held-out figures of the initial model.
        after: Held-out figures of the trained one.
        difference: Paired, after minus before: loss, top1, top5, each (value, low, high).
        mrtd_auc: How well replaced words are told from original ones; None without MRTD.
        summary: Steps, tokens and time.
    """

    folder: Path
    before: MaskedScores
    after: MaskedScores
    difference: dict[str, Interval]
    mrtd_auc: float | None
    summary: Summary

    def to_json(self) -> dict[str, Any]:
        """For `--json` and `evaluation.json`."""
        return {
            "run": str(self.folder),
            "model": str(self.folder / MODEL),
            "before": asdict(self.before),
            "after": asdict(self.after),
            "difference": self.difference,
            "mrtd_auc": self.mrtd_auc,
            "training": asdict(self.summary),
        }


def train_text(
    config: TextRunConfig,
    *,
    progress: bool = True,
    beside: Path | None = None,
    objective: Objective | None = None,
) -> TextResult:
    """Run a text configuration from its corpus to a saved model.

    Args:
        config: All settings of the run.
        progress: Draw progress bars.
        beside: Without `output`, the folder to number the new one after, as `runs/a-2`.
        objective: Makes the task from `TextParts`, in the place of the one that the configuration
            names.

    Raises:
        MaskeryError: Something the user can mend.
    """
    if config.engine == "trainer":
        raise ConfigError(
            "--engine trainer is gone: use --engine loop, which takes the same steps and resumes; "
            "or, in a script of your own, the Hugging Face Trainer with MaskCollator(tokenizer)"
        )
    config = replace(config.anchored(), model=anchored(config.model))
    return run_in_folder(
        config,
        beside or default_folder(config.corpus[0], config.model),
        prepare=lambda _folder: _prepared(
            config, progress=progress and is_main_process(), objective=objective
        ),
        train=lambda run, folder: _train_measure_save(run, folder, progress=progress),
    )


def _prepared(config: TextRunConfig, *, progress: bool, objective: Objective | None) -> TextRun:
    run = prepare_text(config, progress=progress, objective=objective)
    run.train.num_steps(0)  # a budget that is too small shows here
    log.info("%s, %s layout", run.about, run.held_out.layout)
    return run


def _train_measure_save(run: TextRun, folder: Path, *, progress: bool) -> TextResult:
    """Measure, train, measure again and save."""
    use_fast_dropout(run.model)
    before = first_scores(
        folder,
        run.identity,
        run.score,
        resume=run.config.resume == "auto",
    )
    scored = [before]

    def evaluate(step: int) -> dict[str, float]:
        if step > 0:
            scored.append(run.score())
        return held_out_figures(scored[-1])

    task = run.make_task()
    summary = fit(run, task, folder, evaluate, progress=progress)
    if summary.resumed_from >= summary.steps:  # already finished: nothing was evaluated
        scored.append(run.score())
    result = TextResult(
        folder=folder,
        before=summarise(scored[0]),
        after=summarise(scored[-1]),
        difference=compare(scored[-1], scored[0]),
        mrtd_auc=replaced_words_auc(task, run.held_out.in_order()),
        summary=summary,
    )
    if is_main_process():
        save_model_folder(folder / MODEL, lambda path: save_model(run, task, path, result))
    return result


def fit(
    run: TextRun,
    task: Task[Any, Any],
    folder: Path,
    evaluate: Callable[[int], dict[str, float]],
    *,
    progress: bool,
) -> Summary:
    """Train the run's model in place."""
    config, training = run.config, run.config.training
    new = new_parameters(task, run.model, run.loaded.new_parameters)
    loop = TrainingLoop(
        task,
        run.train,
        build_optimiser(task.model, training, new),
        training,
        folder,
        identity=run.identity,
        evaluate=evaluate,
        progress=progress,
    )
    summary = loop.train(resume=config.resume == "auto")
    report_left_out(task)
    return summary


def prepare_text(
    config: TextRunConfig, *, progress: bool = True, objective: Objective | None = None
) -> TextRun:
    """Read, tokenise and split the corpus, and load or make the initial model."""
    cache_dir = config.cache_dir or default_cache_dir()
    data = open_text(config, cache_dir, progress=progress)
    tokenizer = data.tokenizer
    loaded = load(config, tokenizer, data)
    layout = choose_layout(config, loaded)
    model = MaskedLanguageModel(
        loaded.model, packed=layout == "packed", pad_token_id=pad_token_id(tokenizer)
    )
    max_length = choose_max_length(config, loaded)
    settings = {
        "template": Template.of(tokenizer),
        "max_length": max_length,
        "batch_tokens": config.training.batch_tokens,
        "micro_tokens": config.training.micro_batch_tokens,
        "layout": layout,
        "seed": config.training.seed,
    }
    train, held_out = data.sources(settings)
    return TextRun(
        config=config,
        model=model,
        loaded=loaded,
        vocabulary=Vocabulary.of(tokenizer),
        train=train,
        held_out=held_out,
        identity=identity_of(
            config, data, layout=layout, max_length=max_length, objective=objective
        ),
        about=data.describe(),
        objective=objective,
    )


def load(config: TextRunConfig, tokenizer: PreTrainedTokenizerBase, data: TextData) -> Loaded:
    """The initial model, with a new head started well."""
    scratch = config.model.startswith(SCRATCH)
    if scratch:
        size = config.model.removeprefix(SCRATCH)
        loaded = new_masked_lm(size, tokenizer, seed=config.training.seed)
    else:
        loaded = load_masked_lm(
            config.model,
            attention_dropout=config.attention_dropout,
            tokenizer=tokenizer if data.added is None else None,
            hidden_dropout=config.hidden_dropout,
            seed=config.training.seed,
        )
    if data.added is not None:
        add_rows(loaded.model, data.added.pieces, vocabulary_size(tokenizer))
        loaded = replace(loaded, tokenizer=tokenizer)
    if loaded.attention_dropouts:
        log.info(
            "attention dropout is off (the model's own is %s); --attention-dropout restores it",
            ", ".join(str(value) for value in loaded.attention_dropouts.values()),
        )
    if loaded.new_parameters:
        if not scratch:
            log.info("'%s' has no masked-language-modelling head; a new one starts", config.model)
        counts = data.token_counts(loaded.model.config.vocab_size)
        start_new_head(loaded.model, loaded.new_parameters, counts)
    return loaded


def choose_layout(config: TextRunConfig, loaded: Loaded) -> Any:
    """Packed or padded.

    Raises:
        ModelError: Packing is asked for and this model cannot be packed.
    """
    if config.layout == "padded":
        return "padded"
    if config.attention_dropout and torch.cuda.is_available():
        if config.layout == "packed":
            raise ConfigError(
                "--layout packed and --attention-dropout do not go together on a GPU, whose "
                "variable-length attention has no dropout; leave out one of them"
            )
        log.warning("batches are padded: the GPU's variable-length attention has no dropout")
        return "padded"
    possible, reason = can_pack(loaded.model, pad_token_id(loaded.tokenizer))
    if possible:
        return "packed"
    if config.layout == "packed":
        raise ModelError(f"--layout packed is not possible: {reason}; use --layout padded")
    log.warning("batches are grouped by length and padded: %s", reason)
    return "padded"


def choose_max_length(config: TextRunConfig, loaded: Loaded) -> int:
    """The most tokens of a sequence.

    Raises:
        ConfigError: More are asked for than the model has positions.
    """
    limit = max_positions(loaded.model.config)
    if config.max_length is not None:
        if limit is not None and config.max_length > limit:
            raise ConfigError(
                f"--max-length is {config.max_length}, and the model has {limit} positions; "
                f"lower it to {limit} or less (longer documents become windows)"
            )
        return config.max_length
    return min(DEFAULT_MAX_LENGTH, limit or DEFAULT_MAX_LENGTH)


def pad_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """What fills padded rows; any id does, since it is never attended to."""
    return int(tokenizer.pad_token_id or 0)


def identity_of(
    config: TextRunConfig,
    data: TextData,
    *,
    layout: str,
    max_length: int,
    objective: Objective | None = None,
) -> str:
    """Everything that decides the course of a run, but not how it is computed.

    Args:
        config: Of the run.
        data: What it trains on and is measured on.
        layout: The one chosen: it decides what a step holds.
        max_length: The one chosen.
        objective: An object in the place of the one that the configuration names.
    """
    return identity(
        config.training,
        {
            "model": known_as(config.model),
            **data.described(),
            "vocab_size": config.vocab_size if config.model.startswith(SCRATCH) else None,
            "layout": layout,
            "max_length": max_length,
            "attention_dropout": config.attention_dropout,
            "hidden_dropout": config.hidden_dropout,
            "masking": config.masking.described(),
            "objectives": config.objectives.described(objective),
        },
    )


def held_out_figures(scored: ExampleSums) -> dict[str, float]:
    """Token-weighted held-out figures without intervals, for the log."""
    count, loss, top1, top5 = scored.sums.sum(axis=0) / scored.sums[:, 0].sum()
    del count
    return {"loss": loss, "perplexity": float(np.exp(min(loss, 700.0))), "top1": top1, "top5": top5}


def save_model(run: TextRun, task: Task[Any, Any], folder: Path, result: TextResult) -> None:
    """Write the Hugging Face model, its tokenizer, its card, and a twin where there is one."""
    hf = run.loaded.model
    for name, value in run.loaded.attention_dropouts.items():
        setattr(hf.config, name, value)
    with quiet_transformers():
        hf.save_pretrained(folder)
    run.loaded.tokenizer.save_pretrained(folder)
    save_extra(task, run.model, folder)
    write_text(folder / "README.md", text_model_card(run.config, result.before, result.after))
