"""The parts of a text run before its first step; what few runs need comes in by name."""

from __future__ import annotations

import logging
from dataclasses import asdict, replace
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import PartialState
from transformers import PreTrainedTokenizerBase

from maskery.core.batch import vocabulary_size
from maskery.core.errors import ConfigError, ModelError
from maskery.core.processes import join_processes
from maskery.core.task import Task
from maskery.data.batching import Batching, Template, TextSource
from maskery.data.tokenise import default_cache_dir
from maskery.evaluation.text.masked import ExampleSums, score_examples, scoring
from maskery.masking.masker import Masker
from maskery.models import loading
from maskery.models.layout import can_pack, max_positions
from maskery.models.loading import Loaded
from maskery.models.masked_lm import MaskedLanguageModel
from maskery.runs.frame.run_frame import identity
from maskery.runs.text.config import SCRATCH, TextRunConfig
from maskery.runs.text.data import Given, StoredText, open_text
from maskery.tasks.text_mlm import TextParts, make_text_task
from maskery.tasks.text_mlm_config import DIFFUSION, TextMLMConfig
from maskery.training.config import CPU_TOKENS
from maskery.training.loop import planned_steps
from maskery.training.optimiser import resolve_precision
from maskery.training.snapshot import BEGINNING, Position, restore_task

if TYPE_CHECKING:
    from maskery.data.mixture import MixedShards
    from maskery.data.shards.source import ShardSource
    from maskery.runs.text.shards import ShardedText
    from maskery.tasks.compiling import BoundedSource

log = logging.getLogger(__name__)

DEFAULT_MAX_LENGTH = 512  # BERT's, and that of most encoders since
KEEP_WEIGHT = "10"  # chosen by measurement: benchmarks/RESULTS.md, "Keeping the embedding"
# A head learns most of what it can alone, and most steps are left for both (benchmarks/RESULTS.md).
HEAD_FIRST = "0.2"
COMPILE_BACKEND = "inductor"
# Settings that are part of a run's identity where they are not as by default.
LATER = ("group_column", "lr_restart", "shape", "lora", "layer_decay", "rope_base")


class TextRun:
    """Everything a text run consists of, before its first step.

    The corpus is read, tokenised and split, and the initial model is loaded or made. Objects that
    are `given` take the place of what the configuration names; with `progress`, bars are drawn.
    """

    def __init__(
        self, config: TextRunConfig, *, progress: bool = True, given: Given | None = None
    ) -> None:
        self.progress, self.given = progress, given or Given()
        # The start's folder, where it says how to pool vectors.
        self.sentence_encoder = _sentence_encoder(config, self.given)
        config = replace(config, objectives=with_keep(config, self.given, self.sentence_encoder))
        cache_dir = config.cache_dir or default_cache_dir()
        data = open_text(config, cache_dir, self.given, progress=progress)
        self.loaded = adapted(config, load(config, data, self.given))
        # All settings, with objectives and head_first decided.
        self.config = config = replace(config, head_first=head_first(config, self.loaded))
        batching = batching_of(config, self.loaded)
        self.train: TextSource | ShardSource | MixedShards
        self.train, self.held_out = data.sources(batching)
        # Held-out batches of other texts than the one that decides, by name.
        self.others = {name: TextSource(*chosen, batching) for name, chosen in data.others.items()}
        self.about = data.describe()
        self.identity = self._described(data, batching)
        # The checkpoint of another run that it begins at, and where it begins.
        self.branch: Path | None = None
        self.first = BEGINNING
        if config.from_run is None:
            self.head_steps, steps = head_steps(self)
        else:
            branch = import_module("maskery.runs.text.branch")
            self.branch, self.first = branch.branch_of(config, self.identity)
            self.head_steps, steps = branch.left_steps(self, self.branch)
        self.frozen_share = self.head_steps / steps  # In which the new head is trained alone
        packed, pad = batching.layout == "packed", int(data.tokenizer.pad_token_id or 0)
        self.model = MaskedLanguageModel(self.loaded.model, packed=packed, pad_token_id=pad)
        if config.training.micro_batch_tokens == "auto":
            import_module("maskery.runs.text.memory").limit_micro_batches(self)
        if self.branch is not None:  # after the task is made, which may keep the model's own start
            restore_task(self.branch, self.task)

    def _described(self, data: StoredText | ShardedText, batching: Batching) -> str:
        """Return all that a continuation must share, as JSON, but not how the run is computed."""
        config, given, usual = self.config, self.given, vars(TextRunConfig)
        weights, objectives = {}, asdict(config.objectives)
        if objectives["time_sampling"] == "uniform":  # as by versions that knew of none
            del objectives["time_sampling"]
        if (maker := given.objective) is not None:  # an object is known by its own name
            objectives["objective"] = getattr(maker, "__qualname__", type(maker).__qualname__)
        model = self.loaded.model if config.lora else given.model
        if model is not None:  # whose checkpoints do not hold what is frozen
            own_model = import_module("maskery.models.own_model")
            weights["model_fingerprint"] = own_model.weights_fingerprint(model)
        scratch = config.model.startswith(SCRATCH)
        others = {name: store.folder.name for name, (store, _) in data.others.items()}
        described = {
            "model": loading.known_as(config.model),
            **weights,
            **data.described(),
            "vocab_size": config.vocab_size if scratch else None,
            **(config.learns() if scratch else {}),
            "layout": batching.layout,
            "max_length": batching.max_length,
            "attention_dropout": config.attention_dropout,
            "hidden_dropout": config.hidden_dropout,
            "masking": config.masking.described(),
            "objectives": objectives,
            # Not named where there is none, as by versions that knew of none.
            **{name: own for name in LATER if (own := getattr(config, name)) != usual[name]},
            **({"mix": config.shares} if config.mix else {}),
            **({"other_fingerprints": others} if others else {}),
            **({"head_first": config.head_share} if config.head_share else {}),
            **({"from": Path(config.from_run).name} if config.from_run else {}),
            **({"freeze": config.frozen_layers} if config.frozen_layers is not None else {}),
        }
        return identity(config.training, described)

    def score(self, model: MaskedLanguageModel | None = None, *, name: str = "") -> ExampleSums:
        """Return held-out sums of this run's model, or of another with the same tokenizer.

        They are of the text that decides, or of the other one of that name. The run's processes
        share the work: all of them must call this.
        """
        source = self.others[name] if name else self.held_out
        model, batches = model or self.model, scoring(source, progress=self.progress)
        return score_examples(model, batches, self.frozen_masker, processes=join_processes())

    @cached_property
    def frozen_masker(self) -> Masker:
        """Return the masker of held-out texts; with diffusion, their loss is the NELBO."""
        diffuses = self.config.objectives.objective == DIFFUSION
        masker = import_module("maskery.masking.diffusion").NelboMasker if diffuses else Masker
        # Never at a random rate: as BERT masks, whatever the run trains with.
        return masker.of(self.loaded.tokenizer)

    @cached_property
    def task(self) -> Task[Any, Any]:
        """Make the task that the configuration names, or that an objective of the user's makes."""
        parts = text_parts(self.config, self.model, self.loaded.tokenizer)
        share, encoder = self.frozen_share, self.sentence_encoder
        parts = replace(parts, frozen_share=share, sentence_encoder=encoder)
        if self.config.training.compile:
            parts = compiled(parts, self.config, self.train, self.first)
        return make_text_task(parts, self.given.objective)


def _sentence_encoder(config: TextRunConfig, given: Given) -> Path | None:
    if given.model is not None or config.model.startswith(SCRATCH):
        return None
    start = Path(loading.resolve(config.model))
    return start if (start / loading.MODULES).is_file() else None


def with_keep(config: TextRunConfig, given: Given, pooling: Path | None) -> TextMLMConfig:
    """Return the objective's settings with `--keep-embedding auto` decided."""
    settings = config.objectives
    if settings.keep_embedding != "auto":
        return settings
    plain = settings.objective == "mlm" and not settings.has_twin and given.objective is None
    # People embed texts with sentence encoders; the other settings do not know how to keep.
    if pooling is None or not plain or config.training.compile:
        return replace(settings, keep_embedding="off")
    log.info("the start is a sentence encoder: its vectors are kept (--keep-embedding off)")
    return replace(settings, keep_embedding=KEEP_WEIGHT)


def head_first(config: TextRunConfig, loaded: Loaded) -> str:
    """Return `--head-first` with `auto` decided."""
    new = bool(loaded.new_parameters) and not config.model.startswith(SCRATCH)
    trained = {name for name, p in loaded.model.named_parameters() if p.requires_grad}
    if new and trained <= loaded.new_parameters:  # the head is alone to the end
        return "off"
    if config.head_first == "auto":
        return HEAD_FIRST if new else "off"
    if config.head_share and not new and config.objectives.objective == "mlm":
        problem = f"--head-first {config.head_first}: '{config.model}' has a trained head"
        raise ConfigError(f"{problem}, so none comes first; leave out --head-first")
    return config.head_first


def head_steps(run: TextRun) -> tuple[int, int]:
    """Return the steps in which the new head is trained alone, and of how many."""
    share = run.config.head_share
    if not share:  # every epoch would be planned for nothing
        return 0, 1
    _, total = planned_steps(run.train, run.config.training, run.first)
    # The encoder has at least the last step.
    return max(0, min(round(share * total), total - 1)), max(total, 1)


def load(config: TextRunConfig, data: StoredText | ShardedText, given: Given) -> Loaded:
    """Load or make the initial model; a new head starts from the frequencies of the tokens."""
    tokenizer, scratch = data.tokenizer, config.model.startswith(SCRATCH)
    if given.model is not None:
        loaded: Loaded = import_module("maskery.models.own_model").as_loaded(given.model, tokenizer)
    elif scratch:
        size, seed = config.model.removeprefix(SCRATCH), config.training.seed
        loaded = loading.new_masked_lm(size, tokenizer, seed=seed, shape=config.shape)
    else:
        loaded = loading.load_masked_lm(
            config.model,
            attention_dropout=config.attention_dropout,
            tokenizer=tokenizer if data.added is None else None,
            hidden_dropout=config.hidden_dropout,
            seed=config.training.seed,
        )
    if config.rope_base is not None:
        rope = import_module("maskery.models.rope")
        rope.set_rope_base(loaded.model, config.rope_base, config.max_length)
    if data.added is not None:
        loading.add_rows(loaded.model, data.added.pieces, vocabulary_size(tokenizer))
        loaded = replace(loaded, tokenizer=tokenizer)
    if loaded.attention_dropouts:
        own = ", ".join(map(str, loaded.attention_dropouts.values()))
        fix = "--attention-dropout restores it"
        log.info("attention dropout is off (the model's own is %s); %s", own, fix)
    if loaded.new_parameters:
        if not scratch:
            log.info("'%s' has no masked-language-modelling head; a new one starts", config.model)
        counts = data.token_counts(loaded.model.config.get_text_config().vocab_size)
        loading.start_new_head(loaded.model, loaded.new_parameters, counts)
    return loaded


def adapted(config: TextRunConfig, loaded: Loaded) -> Loaded:
    """Freeze layers, add adapters and compute activations again, as the configuration says."""
    if config.frozen_layers is not None:
        import_module("maskery.models.depth").freeze(loaded.model, config.frozen_layers)
    if config.lora:
        lora = import_module("maskery.models.lora")
        settings, seed = lora.Lora.of(config.lora), config.training.seed
        loaded = lora.add_lora(loaded, settings, start=loading.known_as(config.model), seed=seed)
    if config.checkpoint_activations:
        import_module("maskery.models.depth").checkpoint(loaded.model)
    return loaded


def batching_of(config: TextRunConfig, loaded: Loaded) -> Batching:
    """Return how sequences are cut and put into batches."""
    training, micro = config.training, config.training.micro_batch_tokens
    return Batching(
        layout=choose_layout(config, loaded),
        max_length=choose_max_length(config, loaded),
        template=Template.of(loaded.tokenizer),
        batch_tokens=training.batch_tokens or CPU_TOKENS,
        micro_tokens=None if micro == "auto" else micro,
        seed=training.seed,
    )


def choose_layout(config: TextRunConfig, loaded: Loaded) -> Any:
    """Return "packed" or "padded"."""
    if config.layout == "padded":
        return "padded"
    if config.attention_dropout and torch.cuda.is_available():
        if config.layout == "packed":
            problem = "--layout packed and --attention-dropout do not go together on a GPU"
            why = "whose variable-length attention has no dropout"
            raise ConfigError(f"{problem}, {why}; leave out one of them")
        log.warning("batches are padded: the GPU's variable-length attention has no dropout")
        return "padded"
    possible, reason = can_pack(loaded.model, int(loaded.tokenizer.pad_token_id or 0))
    if possible:
        return "packed"
    if config.layout == "packed":
        raise ModelError(f"--layout packed is not possible: {reason}; use --layout padded")
    log.warning("batches are grouped by length and padded: %s", reason)
    return "padded"


def choose_max_length(config: TextRunConfig, loaded: Loaded) -> int:
    """Return the most tokens of a sequence."""
    limit, wanted = max_positions(loaded.model.config), config.max_length
    if limit is not None and wanted is not None and wanted > limit:
        fix = f"lower it to {limit} or less (longer documents become windows)"
        raise ConfigError(f"--max-length is {wanted}, and the model has {limit} positions; {fix}")
    return wanted or min(DEFAULT_MAX_LENGTH, limit or DEFAULT_MAX_LENGTH)


def text_parts(
    config: TextRunConfig, model: MaskedLanguageModel, tokenizer: PreTrainedTokenizerBase
) -> TextParts:
    """Return the parts that a run's objective is made from."""
    return TextParts(
        model=model,
        tokenizer=tokenizer,
        masker=Masker.of(tokenizer, config.masking, seed=config.training.seed),
        settings=config.objectives,
        few_shapes=model.packed and resolve_precision(config.training, model) == "bf16",
        pin_memory=torch.cuda.is_available(),
    )


def compiled(
    parts: TextParts, config: TextRunConfig, source: BoundedSource, first: Position = BEGINNING
) -> TextParts:
    """Add constant shapes; where that cannot be or does not pay, one line says why."""
    from maskery.tasks.compiling import compile_obstacle, static_shapes

    state, half = PartialState(), resolve_precision(config.training, parts.model) == "bf16"
    obstacle = compile_obstacle(device=state.device, packed=parts.model.packed, half_precision=half)
    if obstacle is not None:
        log.warning("the step is not compiled: %s", obstacle)
        return parts
    epochs, _ = planned_steps(source, config.training, first)
    processes, capacity = state.num_processes, config.masked_capacity
    shapes = static_shapes(
        source, parts.masker, epochs=len(epochs), num_processes=processes, masked_capacity=capacity
    )
    sizes = f"{shapes.num_tokens:,} tokens, {shapes.num_masked:,} of them masked"
    log.info("steps are compiled for %s; the first takes a minute or so", sizes)
    return replace(parts, shapes=shapes, compile_backend=COMPILE_BACKEND)
