"""An image-text run of either kind: pairs in; a trained model and its held-out figures out."""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Generic, TypeVar

from safetensors.torch import save_file

from maskery.core.errors import ConfigError
from maskery.core.system import is_main_process
from maskery.core.task import EXTRA_STATE
from maskery.data.pairs.batches import PairSource, Pictures, ReadPairs
from maskery.data.pairs.pairs import Pairs
from maskery.data.person_search.batches import PersonSource
from maskery.data.tokenise import tokenizer_fingerprint
from maskery.masking.config import POLICIES
from maskery.models import loading
from maskery.objectives.terms import belongs, check_terms
from maskery.runs.frame import run_frame
from maskery.runs.frame.run_folder import MODEL, default_folder, write_text
from maskery.runs.image_text import prepare
from maskery.runs.image_text.config import SCRATCH, ImageTextRunConfig
from maskery.tasks.loss_terms import ATTRIBUTE, without_terms
from maskery.training.journal import Callback, check_callbacks, check_trackers
from maskery.training.loop import Summary, TrainingLoop
from maskery.training.optimiser import build_optimiser, take_precision

ResultT = TypeVar("ResultT", bound=run_frame.RunResult)


class ImageTextRun(ABC, Generic[ResultT]):
    """A run before its first step: its model, its task, and how it reads pairs."""

    config: ImageTextRunConfig
    train: PairSource | PersonSource  # Training batches
    identity: str  # What a continuation must share, as JSON

    def __init__(
        self,
        config: ImageTextRunConfig,
        pairs: Pairs,  # to train on
        reading: prepare.ReadingConfig,
        *,
        folder: Path | None,
        progress: bool,
        terms: Sequence[Any],
    ) -> None:
        self.config, self.pairs, self.reading = config, pairs, reading
        # Sizes of training batches, and the seed of their order.
        training = config.training
        sizes = {"batch_pairs": training.batch_pairs, "micro_pairs": training.micro_batch_pairs}
        self.batching: dict[str, Any] = {**sizes, "seed": training.seed}
        start = prepare.start_model(config, pairs, folder=folder, progress=progress)
        self.start, model = start, start.model
        take_precision(config.training, model)  # which opening a model does not know
        prepare.require_fusion(config, model)
        limit = int(model.config.text_config.max_position_embeddings)
        if config.max_length is not None and config.max_length > limit:
            problem = f"--max-length is {config.max_length}, and the model has {limit} positions"
            raise ConfigError(f"{problem}; lower it to {limit} or less")
        self.max_length = config.max_length or limit  # Most tokens of a caption
        self.captions = prepare.read_captions(pairs, start.tokenizer, reading, self.max_length)
        prepare.warn_of_sides(pairs, config.view.flip_probability)
        # Before the task is made, whose twin starts as a copy.
        if prepare.OUTPUT_BIAS in start.new_parameters:
            counts = self.captions.token_counts(model.config.text_config.vocab_size)
            loading.start_at_frequencies(model.text_encoder.cls.predictions.bias, counts)
        self.task = prepare.make_task(config, start, terms, pairs)
        if config.text_model is None and not config.model.startswith(SCRATCH):
            twin = prepare.twin_beside(config.model)
            if twin is not None:
                self.task.twin.load_state_dict(twin)

    @abstractmethod
    def _logged(self) -> dict[str, float]: ...  # in the log; the first tells the best checkpoint

    @abstractmethod
    def _result(self, folder: Path, loop: TrainingLoop, summary: Summary) -> ResultT: ...

    @abstractmethod
    def _save(self, folder: Path, result: ResultT) -> None: ...

    def read(self, pairs: Pairs, share: float) -> ReadPairs:
        """Return pairs as the model reads them, with a share of the memory for decoded pictures."""
        start, captions = self.start, self.captions
        if pairs is not self.pairs:
            captions = prepare.read_captions(pairs, start.tokenizer, self.reading, self.max_length)
        # A crop takes its part of the whole picture, so it is decoded whole.
        near = None if self.config.view.crop_scale else start.view.size
        cache_bytes = int(self.config.image_cache_mb * 2**20 * share)
        pictures = Pictures(pairs, self.reading.on_bad_image, near=near, cache_bytes=cache_bytes)
        return ReadPairs(pairs, captions, pictures, start.view)

    def learnt_anew(self) -> frozenset[str]:
        """Return the parameters that learn at `head_learning_rate`."""
        # The user's loss terms are new, and some heads although a checkpoint may have them.
        heads, names = self.config.NEW_HEADS, (n for n, _ in self.start.model.named_parameters())
        return self.start.new_parameters.union(n for n in names if belongs(n, (ATTRIBUTE, *heads)))

    def described(self, **data: Any) -> str:
        """Return all that decides the course of a run, with what tells its data apart."""
        config, objects = self.config, self.task.described_objects()
        parts = {"text_model": config.text_model, "vision_model": config.vision_model}
        if config.text_model is None:  # otherwise nothing is read of it
            parts["model"] = config.model
        described = {
            **{part: name and loading.known_as(name) for part, name in parts.items()},
            "fusion_layer": config.fusion_layer,
            **({"fusion_layers": config.fusion_layers} if config.fusion_layers else {}),
            "tokenizer_fingerprint": tokenizer_fingerprint(self.start.tokenizer),
            **(config.learns() if config.start.startswith(SCRATCH) else {}),
            "max_length": self.max_length,
            "view": asdict(self.start.view),
            "masking": config.masking.described(),
            "mrtd_mask_rate": config.mrtd_mask_rate,
            "objectives": config.objectives.described(),
            **({"terms": objects} if objects else {}),
        }
        return run_frame.identity(config.training, described | data)

    def save_model(self, folder: Path, document: Mapping[str, Any], **card: Any) -> None:
        """Write the model, tokenizer, preprocessing, momentum twin, and card; see `model_card`."""
        model, view = self.start.model, self.start.view
        model.save_pretrained(folder, state_dict=without_terms(model.state_dict()))
        self.start.tokenizer.save_pretrained(folder)
        mean, std = view.normalisation
        # As Hugging Face image processors have it; 3 is bicubic.
        size = {"height": view.height, "width": view.width}
        resized = {"do_resize": True, "size": size, "resample": 3}
        rescaled = {"do_rescale": True, "rescale_factor": 1 / 255}
        normalised = {"do_normalize": True, "image_mean": list(mean), "image_std": list(std)}
        processing = {**resized, **rescaled, **normalised}
        (folder / "preprocessor_config.json").write_text(json.dumps(processing, indent=1), "utf-8")
        # Queues hold this dataset's persons and are of no use to another run.
        twin = {n: t for n, t in self.task.extra_state().items() if n.startswith("twin.")}
        save_file({n: t.contiguous().cpu() for n, t in twin.items()}, folder / EXTRA_STATE)
        text = run_frame.model_card(self.config, self.config.start, document, **card)
        write_text(folder / "README.md", text)

    def skipped(self, *held_out: Pictures) -> tuple[str, ...]:
        """Return what was left out while training and measuring, one line a kind."""
        every = (self.train.pictures, *held_out)
        told = (self.train.captions.skipped, *(pictures.skipped for pictures in every))
        return tuple(str(skipped) for skipped in told if skipped.count)

    def train_measure_save(
        self, folder: Path, callbacks: Sequence[Callback], *, progress: bool
    ) -> ResultT:
        """Train in a run folder, measure, and save the model."""
        model, training = self.start.model, self.config.training
        loop = TrainingLoop(
            self.task,
            self.train,
            build_optimiser(model, training, self.learnt_anew()),
            training,
            folder,
            identity=self.identity,
            evaluate=lambda _step: self._logged(),
            progress=progress,
            callbacks=callbacks,
        )
        summary = loop.train(resume=self.config.resume == "auto")
        model.eval()
        result = self._result(folder, loop, summary)
        if is_main_process():
            run_frame.save_model_folder(folder / MODEL, lambda path: self._save(path, result))
        return result


def train_image_text(
    config: ImageTextRunConfig,
    make_run: Callable[..., ImageTextRun[ResultT]],
    data: str,
    terms: Sequence[Any],
    callbacks: Sequence[Callback],
    *,
    progress: bool,
    beside: Path | None,
) -> ResultT:
    """Prepare a run in its folder, named after `data` by default, and train it there."""
    # What cannot be loaded is told before anything is read, and leaves no run folder.
    POLICIES.find(config.masking.policy)
    check_terms(config.objectives.term, terms)
    check_callbacks(callbacks)
    check_trackers(config.training.all_trackers)
    drawn = progress and is_main_process()
    result: ResultT = run_frame.run_in_folder(
        config,
        beside or default_folder(data, config.start),
        prepare=lambda folder: make_run(config, folder=folder, progress=drawn, terms=terms),
        train=lambda run, folder: run.train_measure_save(folder, callbacks, progress=progress),
    )
    return result
