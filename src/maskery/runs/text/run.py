"""A text run: corpus in, adapted encoder and figures out; what few runs need comes in by name."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import PartialState

from maskery.core.errors import ConfigError
from maskery.core.system import is_main_process
from maskery.core.task import Task
from maskery.data.corpus.formats import READERS
from maskery.evaluation.intervals import Verdict, judge
from maskery.masking.config import POLICIES
from maskery.models.attention import use_fast_dropout
from maskery.models.loading import anchored, quiet_transformers, resolve
from maskery.runs.frame import run_frame
from maskery.runs.frame.run_folder import MODEL, default_folder, write_text
from maskery.runs.frame.run_frame import RunResult, save_model_folder
from maskery.runs.text.config import SCRATCH, TextRunConfig
from maskery.runs.text.data import Given
from maskery.runs.text.held_out import HeldOutText, Measured, text_auc
from maskery.runs.text.prepare import TextRun
from maskery.tasks import text_mlm
from maskery.tasks.text_mlm_config import DIFFUSION, OBJECTIVES
from maskery.training.journal import Callback, check_callbacks, check_trackers
from maskery.training.loop import Summary, TrainingLoop
from maskery.training.optimiser import STARTS_AT, build_optimiser, take_precision

if TYPE_CHECKING:
    from maskery.evaluation.probe.probe import ProbeResult

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TextResult(RunResult, Measured):
    """The figures of a finished text run; those of `Measured` are of the text that decides."""

    heads: dict[str, str]  # The head that each column of figures has, in words
    others: dict[str, Measured]  # The figures of other held-out texts, by name
    mrtd_auc: float | None  # How well replaced words are told from original ones; None without MRTD
    vectors: "ProbeResult | None"  # How well the encoder's vectors do; None where nobody asked
    verdict: Verdict  # Whether the run helped, in words

    def to_json(self) -> dict[str, Any]:
        """Return the content of `evaluation.json`, with the verdict in words."""
        return super().to_json() | {"verdict": str(self.verdict)}


def train_text(
    config: TextRunConfig,
    *,
    progress: bool = True,
    beside: Path | None = None,
    texts: Any = None,
    eval_texts: Any = None,
    model: torch.nn.Module | None = None,
    tokenizer: Any = None,
    objective: Callable[[text_mlm.TextParts], Task[Any, Any]] | None = None,
    callbacks: Sequence[Callback] = (),
) -> TextResult:
    """Run a text configuration from its corpus to a saved model.

    Args:
        beside: Without `output`, the folder to number the new one after, as `runs/a-2`.
        texts: The corpus, in the place of the one that the configuration names: a dataset of the
            `datasets` library, or an iterable of strings that can be read several times.
        eval_texts: Held-out text, likewise.
        model: A model in the place of the named one, trained in place; see
            `maskery.models.own_model`. Needs `tokenizer`.
        tokenizer: Its Hugging Face tokenizer.
        objective: Makes the task from `TextParts`, in the place of the named one.
        callbacks: Called while the run trains; see `Callback`.
    """
    if config.engine == "trainer":
        fix = "use --engine loop, which takes the same steps and resumes"
        other = "in a script of your own, the Hugging Face Trainer with MaskCollator(tokenizer)"
        raise ConfigError(f"--engine trainer is gone: {fix}; or, {other}")
    # What cannot be loaded is told before the corpus is read, and leaves no run folder.
    OBJECTIVES.find(config.objectives.objective if objective is None else objective)
    POLICIES.find(config.masking.policy)
    if config.reading.reader is not None:
        READERS.find(config.reading.reader)
    if config.lora:
        import_module("maskery.models.lora").peft()
    check_callbacks(callbacks)
    check_trackers(config.training.all_trackers)
    if config.probe is not None:
        import_module("maskery.runs.text.vectors").labels_of(config)
    training = config.training.for_device()
    config = replace(config.anchored(), model=anchored(config.model), training=training)
    if config.from_run is not None:
        config = import_module("maskery.runs.text.branch").resolved(config)
    given = Given(texts, eval_texts, model, tokenizer, objective, tuple(callbacks))
    progress = progress and is_main_process()

    def prepare(folder: Path) -> TextRun:
        run = TextRun(replace(config, output=folder), progress=progress, given=given)
        run.train.num_steps(0)  # a budget that is too small shows here
        # A policy or a task that cannot be made shows here, too, before the folder holds anything.
        _ = run.task
        log.info("%s, %s layout", run.about, run.held_out.layout)
        return run

    folder = beside or default_folder(config.corpus[0], config.model)
    if config.phases:
        phases = import_module("maskery.runs.text.branch")
        one = partial(train_text, progress=progress, **vars(given))
        last: TextResult = phases.train_phases(config, folder, one)
        return last
    return run_frame.run_in_folder(config, folder, prepare=prepare, train=train_measure_save)


def train_measure_save(run: TextRun, folder: Path) -> TextResult:
    """Measure, train, measure again and save."""
    use_fast_dropout(run.model)
    # The start is measured as the trained model will be: there, and in that precision.
    if run.config.training.sharding == "ddp":  # else it may not fit
        run.model.to(PartialState().device)
    take_precision(run.config.training, run.model)
    texts = {name: HeldOutText(run, folder, name) for name in ("", *run.others)}
    check: Any = None
    if run.config.probe is not None or run.sentence_encoder is not None:
        # Made before the loop restores a checkpoint: the start's vectors are compared with.
        check = import_module("maskery.runs.text.vectors").VectorCheck.of(run)

    def evaluate(step: int) -> dict[str, float]:
        figures = {name: v for text in texts.values() for name, v in text.score(step).items()}
        return figures if check is None else {**figures, "probe": check.figure(step)}

    if run.given.model is None and run.branch is None and not run.config.model.startswith(SCRATCH):
        # A model folder that holds a twin or heads goes on with them.
        text_mlm.load_extra(run.task, run.model, Path(resolve(run.config.model)), needed=False)
    summary = fit(run, folder, evaluate)
    if run.config.training.patience is not None:  # the best model is back, and measured last
        evaluate(summary.steps)
    vectors = None if check is None else check.result()
    scored = summary.resumed_from < summary.steps  # a finished run has evaluated nothing
    others = {name: text.finish(scored=scored) for name, text in texts.items()}
    decides = others.pop("")
    apart = {name: one.difference["loss"] for name, one in others.items()}
    probed = None if vectors is None else vectors.figures[0].difference
    keeps = bool(run.config.objectives.keep_weight)
    result = TextResult(
        **vars(decides),
        folder=folder,
        heads=texts[""].heads,
        others=others,
        vectors=vectors,
        verdict=judge(decides.difference["loss"], probed, keeps=keeps, others=apart),
        mrtd_auc=text_auc(run.task, run.held_out.in_order()),
        summary=summary,
    )
    if is_main_process():
        save_model_folder(folder / MODEL, lambda path: save_model(run, path, result))
    return result


def fit(run: TextRun, folder: Path, evaluate: Callable[[int], dict[str, float]]) -> Summary:
    """Train the run's model in place."""
    config, training, task = run.config, run.config.training, run.task
    new = text_mlm.new_parameters(task, run.model, run.loaded.new_parameters)
    factors = None
    if config.layer_decay < 1:
        depth = import_module("maskery.models.depth")
        factors = depth.decayed_rates(run.loaded.model, config.layer_decay)
    optimiser = build_optimiser(
        task.model, training, new, others_start_at=run.head_steps, factors=factors
    )
    for group in optimiser.param_groups if config.lr_restart else ():
        group[STARTS_AT] = max(group[STARTS_AT], run.first.step)
    loop = TrainingLoop(
        task,
        run.train,
        optimiser,
        training,
        folder,
        identity=run.identity,
        evaluate=evaluate,
        progress=run.progress,
        callbacks=run.given.callbacks,
        first=run.first,
    )
    if run.branch is not None:
        import_module("maskery.runs.text.branch").take_over(run.branch, run.first, loop)
    summary = loop.train(resume=config.resume == "auto" or run.branch is not None)
    text_mlm.report_left_out(task)
    return summary


def save_model(run: TextRun, folder: Path, result: TextResult) -> None:
    """Write the Hugging Face model, its tokenizer, its card, and a twin where there is one."""
    hf = run.loaded.model
    for name, value in run.loaded.attention_dropouts.items():
        setattr(hf.config, name, value)
    with quiet_transformers():
        if run.loaded.adapter is not None:
            import_module("maskery.models.lora").save_merged(run.loaded, folder / "adapter")
        hf.save_pretrained(folder)
    run.loaded.tokenizer.save_pretrained(folder)
    text_mlm.save_extra(run.task, run.model, folder)
    if run.sentence_encoder is not None:
        import_module("maskery.models.pooling").copy_modules(run.sentence_encoder, folder)
    write_text(folder / "README.md", text_model_card(run.config, result))


def text_model_card(config: TextRunConfig, result: TextResult) -> str:
    """Return the card of a trained model, in Markdown."""
    masking, corpus = config.masking, ", ".join(map(run_frame.public_name, config.corpus))
    how = f"{masking.policy} masking at a rate of {masking.mask_rate}"
    if config.objectives.objective == DIFFUSION:
        how = "masked diffusion; its loss is the NELBO of a token, over all rates of masking"
    return run_frame.model_card(
        config,
        config.model,
        result.to_json(),
        title="A masked language model adapted with Maskery",
        trained=f"{corpus} with {how}.",
        example="""python
from transformers import pipeline

pipeline("fill-mask", model="path/of/this/folder")""",
        pipeline_tag="fill-mask",
    )
