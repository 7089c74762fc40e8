"""The parts of a text run before its first step; what few runs need comes in by name."""

from __future__ import annotations

import importlib
import logging
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import PartialState
from transformers import PreTrainedTokenizerBase

from maskery.core.batch import Vocabulary, vocabulary_size
from maskery.core.errors import ConfigError, ModelError
from maskery.core.processes import join_processes
from maskery.core.task import BatchSource, Task
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

log = logging.getLogger(__name__)

DEFAULT_MAX_LENGTH = 512  # BERT's, and that of most encoders since
KEEP_WEIGHT = "10"  # chosen by measurement: benchmarks/RESULTS.md, "Keeping the embedding"
# Enough for a head to learn most of what it can from a frozen encoder, and most of the steps are
# left for both (benchmarks/RESULTS.md).
HEAD_FIRST = "0.2"
COMPILE_BACKEND = "inductor"


@dataclass(frozen=True, kw_only=True)
class TextRun:
    """Everything a text run consists of, before its first step."""

    config: TextRunConfig  # All settings, with objectives and head_first decided
    model: MaskedLanguageModel  # The initial model
    loaded: Loaded  # The initial model as it was loaded, with its tokenizer
    vocabulary: Vocabulary  # Of the tokenizer
    train: TextSource | ShardSource | MixedShards  # Training batches
    held_out: TextSource  # Held-out batches of the text that decides
    others: dict[str, TextSource]  # Those of other held-out texts, by name
    head_steps: int  # The steps in which the new head is trained alone
    frozen_share: float  # Their share of all steps
    sentence_encoder: Path | None  # The start's folder, where it says how to pool vectors
    first: Position  # Where it begins
    branch: Path | None  # The checkpoint of another run that it begins at
    identity: str  # Everything that a continuation must share, as JSON
    about: str  # How much there is to train and to be measured on, in words
    progress: bool  # True to draw bars
    given: Given  # Objects in the place of what the configuration names

    def score(self, model: MaskedLanguageModel | None = None, *, name: str = "") -> ExampleSums:
        """Return held-out sums of this run's model, or of another with the same tokenizer.

        They are of the text that decides, or of the other one of that name. The run's processes
        share the work: all of them must call this.
        """
        source = self.others[name] if name else self.held_out
        model, batches = model or self.model, scoring(source, progress=self.progress)
        return score_examples(model, batches, self.frozen_masker, processes=join_processes())

    @property
    def frozen_masker(self) -> Masker:
        """Return the masker of held-out texts; with diffusion, their loss is the NELBO."""
        masker = Masker
        if self.config.objectives.objective == DIFFUSION:
            masker = importlib.import_module("maskery.masking.diffusion").NelboMasker
        # Never at a random rate: as BERT masks, whatever the run trains with.
        return masker.of(self.vocabulary)

    @cached_property
    def task(self) -> Task[Any, Any]:
        """Make the task that the configuration names, or that an objective of the user's makes."""
        parts = replace(
            text_parts(self.config, self.model, self.loaded.tokenizer),
            frozen_share=self.frozen_share,
            sentence_encoder=self.sentence_encoder,
        )
        if self.config.training.compile:
            parts = compiled(parts, self)
        return make_text_task(parts, self.given.objective)


def prepare_text(
    config: TextRunConfig, *, progress: bool = True, given: Given | None = None
) -> TextRun:
    """Read, tokenise and split the corpus, and load or make the initial model."""
    given, pooling = given or Given(), None
    if given.model is None and not config.model.startswith(SCRATCH):
        start = Path(loading.resolve(config.model))
        pooling = start if (start / loading.MODULES).is_file() else None
    config = replace(config, objectives=with_keep(config, given, pooling))
    data = open_text(config, config.cache_dir or default_cache_dir(), given, progress=progress)
    loaded = load(config, data, given)
    if config.frozen_layers is not None:
        importlib.import_module("maskery.models.depth").freeze(loaded.model, config.frozen_layers)
    if config.lora:
        lora = importlib.import_module("maskery.models.lora")
        settings, seed = lora.Lora.of(config.lora), config.training.seed
        loaded = lora.add_lora(loaded, settings, start=loading.known_as(config.model), seed=seed)
    if config.checkpoint_activations:
        importlib.import_module("maskery.models.depth").checkpoint(loaded.model)
    config = replace(config, head_first=head_first(config, loaded))
    layout, max_length = choose_layout(config, loaded), choose_max_length(config, loaded)
    pad_token, micro = int(data.tokenizer.pad_token_id or 0), config.training.micro_batch_tokens
    batching = Batching(
        template=Template.of(data.tokenizer),
        max_length=max_length,
        batch_tokens=config.training.batch_tokens or CPU_TOKENS,
        micro_tokens=None if micro == "auto" else micro,
        layout=layout,
        seed=config.training.seed,
    )
    train, held_out = data.sources(batching)
    others = {name: TextSource(*chosen, batching) for name, chosen in data.others.items()}
    described = identity_of(config, data, given, loaded, batching)
    branch, first = None, BEGINNING
    if config.from_run is None:
        alone, steps = head_steps(config, train)
    else:
        branching = importlib.import_module("maskery.runs.text.branch")
        branch, first = branching.branch_of(config, described)
        alone, steps = branching.left_steps(config, train, branch, first, loaded.new_parameters)
    run = TextRun(
        config=config,
        model=MaskedLanguageModel(loaded.model, packed=layout == "packed", pad_token_id=pad_token),
        loaded=loaded,
        vocabulary=Vocabulary.of(data.tokenizer),
        train=train,
        held_out=held_out,
        others=others,
        head_steps=alone,
        frozen_share=alone / steps,
        sentence_encoder=pooling,
        first=first,
        branch=branch,
        identity=described,
        about=data.describe(),
        progress=progress,
        given=given,
    )
    if micro == "auto":
        importlib.import_module("maskery.runs.text.memory").limit_micro_batches(run)
    if branch is not None:  # after the task is made, which may keep the model's own start
        restore_task(branch, run.task)
    return run


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
        raise ConfigError(
            f"--head-first {config.head_first}: '{config.model}' has a trained head, so none comes "
            f"first; leave out --head-first"
        )
    return config.head_first


def head_steps(
    config: TextRunConfig, source: BatchSource[Any], first: Position = BEGINNING
) -> tuple[int, int]:
    """Return the steps in which the new head is trained alone, and of how many."""
    if not config.head_share:  # every epoch would be planned for nothing
        return 0, 1
    _, total = planned_steps(source, config.training, first)
    # The encoder has at least the last step.
    return max(0, min(round(config.head_share * total), total - 1)), max(total, 1)


def load(config: TextRunConfig, data: StoredText | ShardedText, given: Given) -> Loaded:
    """Load or make the initial model; a new head starts from the frequencies of the tokens."""
    tokenizer = data.tokenizer
    scratch = config.model.startswith(SCRATCH)
    if given.model is not None:
        own_model = importlib.import_module("maskery.models.own_model")
        loaded: Loaded = own_model.as_loaded(given.model, tokenizer)
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
        rope = importlib.import_module("maskery.models.rope")
        rope.set_rope_base(loaded.model, config.rope_base, config.max_length)
    if data.added is not None:
        loading.add_rows(loaded.model, data.added.pieces, vocabulary_size(tokenizer))
        loaded = replace(loaded, tokenizer=tokenizer)
    if loaded.attention_dropouts:
        log.info(
            "attention dropout is off (the model's own is %s); --attention-dropout restores it",
            ", ".join(str(value) for value in loaded.attention_dropouts.values()),
        )
    if loaded.new_parameters:
        if not scratch:
            log.info("'%s' has no masked-language-modelling head; a new one starts", config.model)
        counts = data.token_counts(loaded.model.config.get_text_config().vocab_size)
        loading.start_new_head(loaded.model, loaded.new_parameters, counts)
    return loaded


def choose_layout(config: TextRunConfig, loaded: Loaded) -> Any:
    """Return "packed" or "padded"."""
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
        raise ConfigError(
            f"--max-length is {wanted}, and the model has {limit} positions; lower it to {limit} "
            f"or less (longer documents become windows)"
        )
    return wanted or min(DEFAULT_MAX_LENGTH, limit or DEFAULT_MAX_LENGTH)


def identity_of(
    config: TextRunConfig,
    data: StoredText | ShardedText,
    given: Given,
    loaded: Loaded,
    batching: Batching,
) -> str:
    """Return everything that decides the course of a run, but not how it is computed."""
    own, objectives = {}, asdict(config.objectives)
    if objectives["time_sampling"] == "uniform":  # as by versions that knew of none
        del objectives["time_sampling"]
    if (maker := given.objective) is not None:  # an object is known by its own name
        objectives["objective"] = getattr(maker, "__qualname__", type(maker).__qualname__)
    if given.model is not None or config.lora:  # whose checkpoints do not hold what is frozen
        own_model = importlib.import_module("maskery.models.own_model")
        weights = own_model.weights_fingerprint(loaded.model if config.lora else given.model)
        own["model_fingerprint"] = weights
    scratch = config.model.startswith(SCRATCH)
    described = {
        "model": loading.known_as(config.model),
        **own,
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
        **({"head_first": config.head_share} if config.head_share else {}),
        **({"from": Path(config.from_run).name} if config.from_run else {}),
        **({"lr_restart": True} if config.lr_restart else {}),
        **({"shape": config.shape} if config.shape != "bert" else {}),
        **({"freeze": config.frozen_layers} if config.frozen_layers is not None else {}),
        **({"lora": config.lora} if config.lora else {}),
        **({"layer_decay": config.layer_decay} if config.layer_decay < 1 else {}),
        **({"rope_base": config.rope_base} if config.rope_base else {}),
    }
    return identity(config.training, described)


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


def compiled(parts: TextParts, run: TextRun) -> TextParts:
    """Add constant shapes; where that cannot be or does not pay, one line says why."""
    from maskery.tasks.compiling import compile_obstacle, static_shapes

    state, half = PartialState(), resolve_precision(run.config.training, parts.model) == "bf16"
    obstacle = compile_obstacle(device=state.device, packed=parts.model.packed, half_precision=half)
    if obstacle is not None:
        log.warning("the step is not compiled: %s", obstacle)
        return parts
    epochs, _ = planned_steps(run.train, run.config.training, run.first)
    shapes = static_shapes(
        run.train,
        parts.masker,
        epochs=len(epochs),
        num_processes=state.num_processes,
        masked_capacity=run.config.masked_capacity,
    )
    sizes = f"{shapes.num_tokens:,} tokens, {shapes.num_masked:,} of them masked"
    log.info("steps are compiled for %s; the first takes a minute or so", sizes)
    return replace(parts, shapes=shapes, compile_backend=COMPILE_BACKEND)
