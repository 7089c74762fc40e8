"""An image-text run: pairs in; a model that fills words from pictures, and its figures, out."""

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from maskery.core.batch import Ints
from maskery.core.errors import DataError, counted
from maskery.core.processes import evaluating
from maskery.core.registry import plugin_identity
from maskery.data.pairs.batches import HeldOutPairs, PairSource
from maskery.data.pairs.config import FORMATS, PairsConfig
from maskery.data.pairs.formats import Source
from maskery.data.pairs.pairs import Pairs, group_ids, split_pairs
from maskery.evaluation.image_text.image_fill import Condition, sample_pictures, score_pairs
from maskery.evaluation.text.masked import ExampleSums
from maskery.masking.masker import Masker
from maskery.runs.frame.config_file import open_run
from maskery.runs.frame.run_folder import fingerprint_of
from maskery.runs.frame.run_frame import RunResult, public_name
from maskery.runs.image_text.config import PairsRunConfig
from maskery.runs.image_text.run import ImageTextRun, train_image_text
from maskery.runs.pairs.evaluate import PairsEvaluation, summarise_pairs
from maskery.training.journal import Callback
from maskery.training.loop import Summary, TrainingLoop

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PairsResult(RunResult):
    """The result of a run on pairs."""

    evaluation: PairsEvaluation  # The trained model's held-out figures
    skipped: tuple[str, ...]  # One line for each kind of thing that was left out


class PairsRun(ImageTextRun[PairsResult]):
    """A run on pairs: they are read, tokenised and split, and the initial model is loaded or made.

    Records in Python or a dataset, as `source`, take the place of the pairs that the config names.
    What is held out may only be in the training pairs as well where there is no `training`.
    """

    config: PairsRunConfig
    train: PairSource

    def __init__(
        self,
        config: PairsRunConfig,
        *,
        source: Source | None = None,
        folder: Path | None = None,
        progress: bool = True,
        terms: Sequence[Any] = (),
        training: bool = True,
    ) -> None:
        reading = config.reading
        pairs, own = Pairs.open_splits(config.pairs if source is None else source, reading)
        if config.eval_pairs is not None:
            read, held_out = Pairs.open_splits(config.eval_pairs, reading)
            own = read if held_out is None else held_out
        super().__init__(config, pairs, reading, folder=folder, progress=progress, terms=terms)
        judged = pairs if own is None else own
        groups = group_ids(judged)
        if own is None:
            train, held = split_pairs(groups, config.held_out_share)
        else:
            train = not_held_out(pairs, own, reading) if training else np.arange(len(pairs))
            held = np.arange(len(own))
        share = len(held) / (len(train) + len(held))
        log.info("%s training and %s", f"{len(train):,}", counted(len(held), "held-out pair"))
        self.train = PairSource(self.read(pairs, 1 - share), train, **self.batching)
        self.held_out = HeldOutPairs(self.read(judged, share), groups, held)
        reader = reading.reader
        self.identity = self.described(
            pairs_fingerprint=_fingerprint(pairs),
            eval_pairs_fingerprint=None if own is None else _fingerprint(own),
            held_out_share=config.held_out_share if own is None else None,
            max_pixels=reading.max_pixels,
            **({"reader": plugin_identity(reader)} if reader is not None else {}),
        )

    def score(self) -> dict[Condition, ExampleSums]:
        """Score held-out captions with the right picture, a wrong one, and none."""
        start = self.start
        with evaluating(start.model):  # masked as by BERT, whatever the run trains with
            return score_pairs(start.model, self.held_out, Masker.of(start.tokenizer))

    def _logged(self) -> dict[str, float]:
        figures: dict[str, float] = {}
        for sight, sums in self.score().items():  # weighted by tokens and without intervals
            totals = sums.sums.sum(axis=0)
            _, loss, top1, top5 = (totals / totals[0]).tolist()
            figures |= {f"{sight}_loss": loss, f"{sight}_top1": top1, f"{sight}_top5": top5}
        return figures

    def evaluate(self) -> PairsEvaluation:
        """Compute every held-out figure of the model as it is now."""
        words = self.config.score_words
        return summarise_pairs(self.score(), self.start, self.held_out, words, self.task)

    def _result(self, folder: Path, loop: TrainingLoop, summary: Summary) -> PairsResult:
        del loop  # the last model is kept
        evaluation, skipped = self.evaluate(), self.skipped(self.held_out.pictures)
        return PairsResult(folder=folder, evaluation=evaluation, summary=summary, skipped=skipped)

    def _save(self, folder: Path, result: PairsResult) -> None:
        pairs, masking = public_name(Path(self.config.pairs).name), self.config.masking
        self.save_model(
            folder,
            result.to_json(),
            title="An image-text masked language model trained with Maskery",
            trained=f"{pairs} with {masking.policy} masking at a rate of {masking.mask_rate}.",
            example="""
maskery fill path/of/this/folder "A woman in a [MASK] coat." --image picture.jpg""",
            tags=("image-text",),
        )


def train_pairs(
    config: PairsRunConfig,
    *,
    source: Source | None = None,
    progress: bool = True,
    beside: Path | None = None,
    terms: Sequence[Any] = (),
    callbacks: Sequence[Callback] = (),
) -> PairsResult:
    """Run an image-text configuration from its pairs to a saved model.

    Args:
        source: Pairs in Python, in place of those that the config names: an iterable of records
            (mappings with `image`, a path or bytes, `caption`, and where known `person`, `group`
            and `split`), or a `datasets` dataset with image and caption columns.
        beside: Without `output`, the folder to number the new one after, as `runs/a-2`.
        terms: Loss terms of your own, as objects; see `maskery.objectives.terms`.
        callbacks: Called while the run trains; see `Callback`.
    """
    if config.reading.reader is not None:
        FORMATS.find(config.reading.reader)  # before anything else, as other plug-ins
    config.training.require_evaluations()  # not where a config is read: old runs may lack them
    config = config.anchored()
    make_run = partial(PairsRun, source=source)
    return train_image_text(
        config, make_run, config.pairs, terms, callbacks, progress=progress, beside=beside
    )


def not_held_out(pairs: Pairs, own: Pairs, reading: PairsConfig) -> Ints:
    """Return the training pairs whose picture, and group where one is named, is not held out."""
    leaked = np.isin(pairs.contents, own.contents)
    if reading.group_column is not None:
        leaked |= np.isin(group_ids(pairs), group_ids(own))
    if leaked.all():
        problem = "every training picture is also held out, so nothing is left to train on"
        raise DataError(f"{problem}; name other held-out pairs")
    if leaked.any():
        shown = "held-out pictures (the same file or the same bytes) or groups"
        log.warning("%s training pairs show %s, and are not trained on", f"{leaked.sum():,}", shown)
    return np.flatnonzero(~leaked)


def _fingerprint(pairs: Pairs) -> str:
    """Hash image names, captions, and who is shown, which decides the pairs that are held out."""
    return fingerprint_of(np.concatenate([pairs.ids, group_ids(pairs)]))


def evaluate_pairs_run(
    folder: Path,
    score_words: tuple[str, ...] = (),
    eval_pairs: str | None = None,
    reader: str | None = None,
) -> PairsEvaluation:
    """Evaluate a run's model on what the run held out, or on other words or pairs."""
    # A file never loads a plug-in, so a reader that the run was trained with is named again.
    config = trained_config(folder)
    words, held_out = score_words or config.score_words, eval_pairs or config.eval_pairs
    reading = replace(config.reading, reader=reader or config.reading.reader)
    config = replace(config, score_words=words, eval_pairs=held_out, reading=reading)
    return PairsRun(config, progress=False, training=False).evaluate()


def run_samples(folder: Path) -> dict[str, Any]:
    """Return a few pictures of a finished run with the words that its model fills in."""
    run = PairsRun(trained_config(folder), progress=False, training=False)
    start = run.start
    pictures = sample_pictures(start.model.eval(), run.held_out, start.tokenizer, start.view)
    return {"pictures": [asdict(one) for one in pictures]}


def trained_config(folder: Path) -> PairsRunConfig:
    """Return a run's configuration with its trained model in place of the one it started from."""
    config = open_run(folder).finished(PairsRunConfig)
    objectives = replace(config.objectives, term=())  # measuring needs no code of the user's
    start = dict[str, Any](text_model=None, vision_model=None, fusion_layer=None, fusion_layers=0)
    return replace(config, model=str(folder), objectives=objectives, **start)
