"""An image-text run: pairs in; a model that fills words from pictures, and its figures, out."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from maskery.core.batch import Vocabulary
from maskery.core.registry import plugin_identity
from maskery.core.system import is_main_process
from maskery.data.pairs.batches import HeldOutPairs, PairSource
from maskery.data.pairs.formats import Source
from maskery.data.pairs.pairs import Pairs, group_ids, split_pairs
from maskery.evaluation.image_text.image_ablation import Condition, sample_pictures, score_pairs
from maskery.evaluation.text.masked import ExampleSums
from maskery.masking.masker import Masker
from maskery.runs.frame.config_file import open_run
from maskery.runs.frame.run_folder import MODEL, default_folder
from maskery.runs.frame.run_frame import (
    card_figure,
    fingerprint_of,
    identity,
    model_card,
    run_in_folder,
    save_model_folder,
)
from maskery.runs.image_text.prepare import (
    StartModel,
    choose_max_length,
    described,
    learnt_anew,
    open_pictures,
    prepare_model,
    read_captions,
    require_policy,
    save_model,
    start_model,
)
from maskery.runs.pairs.config import PairsRunConfig
from maskery.runs.pairs.evaluate import EVALUATION_MASKING, PairsEvaluation, summarise_pairs
from maskery.tasks.image_text import ImageTextTask
from maskery.training.loop import Summary, TrainingLoop
from maskery.training.optimiser import build_optimiser

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PairsRun:
    """The parts of a run on pairs, before its first step."""

    config: PairsRunConfig
    start: StartModel
    task: ImageTextTask
    vocabulary: Vocabulary  # Of the tokenizer
    train: PairSource  # Training batches
    held_out: HeldOutPairs  # Held-out captions with right and wrong pictures
    identity: str  # What a continuation must share

    def score(self) -> dict[Condition, ExampleSums]:
        """Score held-out captions with the right picture, a wrong one, and none."""
        masker = Masker.of(self.vocabulary, EVALUATION_MASKING)
        model = self.start.model
        was_training = model.training
        scored = score_pairs(model.eval(), self.held_out, masker)
        model.train(was_training)
        return scored

    def evaluate(self) -> PairsEvaluation:
        """Compute every held-out figure of the model as it is now."""
        return summarise_pairs(
            self.score(),
            self.start.model,
            self.start.tokenizer,
            self.held_out,
            words=self.config.score_words,
            task=self.task,
        )


def open_pairs(config: PairsRunConfig, source: Source | None = None) -> tuple[Pairs, Pairs | None]:
    """Return the pairs to train on, and held-out pairs of their own where there are any.

    Records in Python or a dataset, as `source`, take the place of the pairs that the config names.
    """
    pairs, judged = Pairs.open_splits(config.pairs if source is None else source, config.reading)
    if config.eval_pairs is not None:
        judged = Pairs.open(config.eval_pairs, config.reading)
    return pairs, judged


def prepare_pairs(
    config: PairsRunConfig,
    *,
    source: Source | None = None,
    start: StartModel | None = None,
    folder: Path | None = None,
    progress: bool = True,
    terms: Sequence[Any] = (),
) -> PairsRun:
    """Read, tokenise and split the pairs, and load or make the initial model."""
    require_policy(config)
    pairs, own = open_pairs(config, source)
    start, captions, task = prepare_model(
        ImageTextTask,
        config,
        pairs,
        config.reading,
        start=start,
        folder=folder,
        progress=progress,
        terms=terms,
    )
    groups = group_ids(pairs)
    if own is None:
        train, held = split_pairs(groups, config.held_out_share)
        judged, judged_captions, judged_groups = pairs, captions, groups
    else:
        judged = own
        longest = choose_max_length(config, start.model)
        judged_captions = read_captions(judged, start.tokenizer, config.reading, longest)
        judged_groups = group_ids(judged)
        train, held = np.arange(len(pairs)), np.arange(len(judged))
    # The memory for decoded pictures is shared out by the number of pairs.
    cache_bytes = config.image_cache_mb * 2**20
    share = len(held) / (len(train) + len(held))
    train_batches = PairSource(
        pairs,
        captions,
        open_pictures(config, config.reading, pairs, start, int(cache_bytes * (1 - share))),
        start.view,
        train,
        batch_pairs=config.training.batch_pairs,
        micro_pairs=config.training.micro_batch_pairs,
        seed=config.training.seed,
    )
    held_out = HeldOutPairs(
        judged,
        judged_captions,
        open_pictures(config, config.reading, judged, start, int(cache_bytes * share)),
        start.view,
        judged_groups,
        held,
    )
    log.info("%s training and %s held-out pairs", f"{len(train):,}", f"{len(held):,}")
    return PairsRun(
        config=config,
        start=start,
        task=task,
        vocabulary=Vocabulary.of(start.tokenizer),
        train=train_batches,
        held_out=held_out,
        identity=identity_of(config, pairs, own, start, task),
    )


def skipped_lines(run: PairsRun) -> tuple[str, ...]:
    """Return what was left out, one line a kind."""
    told = (run.train.captions.skipped, run.train.pictures.skipped, run.held_out.pictures.skipped)
    return tuple(str(skipped) for skipped in told if skipped.count)


def identity_of(
    config: PairsRunConfig,
    pairs: Pairs,
    judged: Pairs | None,
    start: StartModel,
    task: ImageTextTask,
) -> str:
    """Return everything that decides the course of a run, but not how it is computed."""
    reader = config.reading.reader
    return identity(
        config.training,
        {
            **described(config, start, task),
            "pairs_fingerprint": _fingerprint(pairs),
            "eval_pairs_fingerprint": None if judged is None else _fingerprint(judged),
            "held_out_share": config.held_out_share if judged is None else None,
            "max_pixels": config.reading.max_pixels,
            **({"reader": plugin_identity(reader)} if reader is not None else {}),
        },
    )


def _fingerprint(pairs: Pairs) -> str:
    """Of image names and captions, and of who is shown, by which pairs are held out."""
    return fingerprint_of(np.concatenate([pairs.ids, group_ids(pairs)]))


@dataclass(frozen=True, kw_only=True)
class PairsResult:
    """The result of a run on pairs.

    Attributes:
        folder: The run folder.
        evaluation: The trained model's held-out figures.
        summary: Steps, tokens and time.
        skipped: One line for each kind of thing that was left out.
    """

    folder: Path
    evaluation: PairsEvaluation
    summary: Summary
    skipped: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """For `--json` and `evaluation.json`."""
        return {
            "run": str(self.folder),
            "model": str(self.folder / MODEL),
            **self.evaluation.to_json(),
            "training": asdict(self.summary),
            "skipped": list(self.skipped),
        }


def train_pairs(
    config: PairsRunConfig,
    *,
    source: Source | None = None,
    progress: bool = True,
    beside: Path | None = None,
    terms: Sequence[Any] = (),
) -> PairsResult:
    """Run an image-text configuration from its pairs to a saved model.

    Args:
        config: All settings of the run.
        progress: Draw progress bars.
        source: Pairs in Python, in place of those that the config names: an iterable of records
            (mappings with `image`, a path or bytes, `caption`, and where known `person`, `group`
            and `split`), or a `datasets` dataset with image and caption columns.
        beside: Without `output`, the folder to number the new one after, as `runs/a-2`.
        terms: Loss terms of your own, as objects; see `maskery.objectives.terms`.

    Raises:
        MaskeryError: Something the user can mend.
    """
    config = config.anchored()
    return run_in_folder(
        config,
        beside or default_folder(config.pairs, config.start),
        prepare=lambda folder: prepare_pairs(
            config,
            source=source,
            folder=folder,
            progress=progress and is_main_process(),
            terms=terms,
        ),
        train=lambda run, folder: _train_measure_save(run, folder, progress=progress),
    )


def _train_measure_save(run: PairsRun, folder: Path, *, progress: bool) -> PairsResult:
    """Train, measure and save."""
    config = run.config
    loop = TrainingLoop(
        run.task,
        run.train,
        build_optimiser(run.start.model, config.training, learnt_anew(run.start)),
        config.training,
        folder,
        identity=run.identity,
        evaluate=lambda _step: held_out_figures(run.score()),
        progress=progress,
    )
    summary = loop.train(resume=config.resume == "auto")
    run.start.model.eval()
    result = PairsResult(
        folder=folder,
        evaluation=run.evaluate(),
        summary=summary,
        skipped=skipped_lines(run),
    )
    if is_main_process():
        card = pairs_model_card(config, result.evaluation)
        save_model_folder(folder / MODEL, lambda path: save_model(path, run.start, run.task, card))
    return result


def held_out_figures(scored: dict[Condition, ExampleSums]) -> dict[str, float]:
    """Token-weighted held-out figures without intervals, for the log."""
    figures: dict[str, float] = {}
    for sight, sums in scored.items():
        totals: npt.NDArray[np.float64] = sums.sums.sum(axis=0)
        _, loss, top1, top5 = (totals / totals[0]).tolist()
        figures |= {f"{sight}_loss": loss, f"{sight}_top1": top1, f"{sight}_top5": top5}
    return figures


def evaluate_pairs_run(
    folder: Path,
    *,
    score_words: tuple[str, ...] = (),
    eval_pairs: str | None = None,
    reader: str | None = None,
) -> PairsEvaluation:
    """Evaluate a run's model on what the run held out, or on other words or pairs.

    A run that was trained with a plug-in as reader needs it named again.
    """
    config = trained_config(folder)
    config = replace(
        config,
        score_words=score_words or config.score_words,
        eval_pairs=eval_pairs or config.eval_pairs,
        reading=replace(config.reading, reader=reader or config.reading.reader),
    )
    with torch.no_grad():
        return _trained_run(config).evaluate()


def run_samples(folder: Path) -> dict[str, Any]:
    """Return a few pictures of a finished run with the words that its model fills in."""
    run = _trained_run(trained_config(folder))
    model, tokenizer = run.start.model.eval(), run.start.tokenizer
    pictures = sample_pictures(model, run.held_out, tokenizer, run.start.view)
    return {"pictures": [asdict(one) for one in pictures]}


def _trained_run(config: PairsRunConfig) -> PairsRun:
    start = start_model(config, open_pairs(config)[0], progress=False)
    return prepare_pairs(config, start=start, progress=False)


def trained_config(folder: Path) -> PairsRunConfig:
    """Return a run's configuration with its trained model in place of the one it started from."""
    config = open_run(folder).finished(PairsRunConfig)
    return replace(
        config,
        model=str(folder),
        text_model=None,
        vision_model=None,
        fusion_layer=None,
        objectives=replace(config.objectives, term=()),  # measuring needs no code of the user's
    )


def pairs_model_card(config: PairsRunConfig, evaluation: PairsEvaluation) -> str:
    """Return the card of a trained model, in Markdown."""
    scores = evaluation.scores
    rows = [
        f"| {label} | " + " | ".join(card_figure(getattr(s, name)) for s in scores.values()) + " |"
        for name, label in (("loss", "loss (nats)"), ("top1", "top-1"), ("top5", "top-5"))
    ]
    if evaluation.words is not None:
        shares = (card_figure(share) for share in evaluation.words.accuracy.values())
        rows.append("| chosen words | " + " | ".join(shares) + " |")
    right = scores["right"]
    found = ""
    if (auc := evaluation.mrtd_auc) is not None:
        found = f"\nReplaced words are told from original ones with an AUC of {auc:.3f}.\n"
    table = "\n".join(rows)
    text = f"""
# An image-text masked language model trained with Maskery

Starting from `{config.start}`, trained on `{Path(config.pairs).name}` with
{config.masking.policy} masking at a rate of {config.masking.mask_rate}.

Held out, {right.masked_tokens:,} masked tokens of {right.examples:,} pictures or persons, the same
model with the right picture, with a wrong one and with none (95% intervals):

| | right | wrong | none |
| --- | --- | --- | --- |
{table}
{found}
```
maskery fill path/of/this/folder "A woman in a [MASK] coat." --image picture.jpg
```
"""
    return model_card(text.lstrip(), tags=("image-text",))
