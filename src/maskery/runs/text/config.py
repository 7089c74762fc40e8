"""The whole configuration of a text run, light to import."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from maskery.core.errors import ConfigError
from maskery.core.flags import conf
from maskery.core.ranges import Needs, Range, number_or_word
from maskery.data.corpus.config import CorpusConfig, StreamingConfig, VocabularyConfig
from maskery.masking.config import MaskingConfig
from maskery.tasks.text_mlm_config import AUTO_OFF, DIFFUSION, TextMLMConfig
from maskery.training.config import TrainingConfig

SCRATCH = "scratch:"


@conf.configure(conf.OmitArgPrefixes)
@dataclass(frozen=True, kw_only=True)
class TextRunConfig(VocabularyConfig):
    """Train a masked language model on text: adapt an encoder, or start from scratch."""

    kind: ClassVar[str] = "text"

    corpus: Annotated[tuple[str, ...], conf.Positional, conf.arg(metavar="CORPUS ...")]
    """Files, folders, globs (.txt .jsonl .csv .tsv .parquet, also .gz .xz .zst), one hub id, or the
    folder or address (s3:// gs:// https://) of what maskery tokenize made."""
    model: str = "minilm"
    """minilm, a folder, a hub name, or scratch:tiny, scratch:small, scratch:base."""
    shape: Literal["bert", "roberta", "modernbert", "eurobert", "nomic_bert"] = "bert"
    """The family of --model scratch:..., as Transformers makes it."""
    output: Path | None = None
    """The run folder. Default: runs/CORPUS-MODEL, numbered if taken."""
    resume: Literal["no", "auto"] = "no"
    """auto: go on from the newest sound checkpoint in the run folder, or start if there is none."""
    from_run: Annotated[str | None, conf.arg(aliases=("--from",))] = None
    """RUN, or RUN@STEP: begin at that run's newest checkpoint, or at another, with its weights,
    moments, step and place in the data. Its folder is not changed, its settings are the defaults,
    and --max-steps counts its steps, too."""
    lr_restart: bool = False
    """With --from: the schedule of the learning rate begins at the branch, warm-up and all."""
    # In a config.yaml alone: for each phase, `until` and the settings that it changes.
    phases: Annotated[tuple[dict[str, Any], ...], conf.Suppress, conf.Fixed] = ()
    engine: Literal["loop", "trainer"] = "loop"
    """loop; trainer is gone, and only read in the configurations of old runs."""
    eval_data: tuple[str, ...] = ()
    """Held-out text of its own, read like the corpus. Default: a share of the corpus. NAME=PATH is
    another text that is measured beside it, such as one that should not be forgotten."""
    mix: Annotated[tuple[str, ...], conf.arg(metavar="NAME=SHARE ...")] = ()
    """Shares of several corpora, in tokens: books=0.3 web=0.7 for books.txt and web/. An epoch has
    the scarcest once, and of the others as much as belongs to it. Default: all of each."""
    held_out_share: Annotated[float, Range(0, 1, above=True, below=True, hint="try 0.05")] = 0.05
    """Share of the examples that is held out, chosen by a hash of their content."""
    head_first: str = "auto"
    """Share of the steps in which a new head is trained alone, the encoder frozen; what it fills
    then is "before". off: none. auto: 0.2 where the head is new and the start not scratch."""
    freeze: str = "off"
    """Weights that stay the start's: embeddings, or a number: those and as many of the first
    layers. They take no gradients and no optimiser memory."""
    layer_decay: Annotated[float, Range(0, 1, above=True, hint="try {flag} 0.9")] = 1.0
    """Each layer learns at this share of the rate of the layer above it, embeddings slowest."""
    lora: tuple[str, ...] = ()
    """Train low-rank adapters alone, and a new head: r=16, and if wanted alpha=32, dropout=0.1 and
    targets=query,value, the linear layers that get one. Needs maskery[lora]."""
    checkpoint_activations: bool = False
    """Compute what layers remember for their gradients again, not keep it: less memory, the same
    run, and about a third more time."""
    group_column: str | None = None
    """Rows with one value in this column, such as patient_id, stand on one side of the split; may
    be nested, as --text-column."""
    probe: str | None = None
    """A label file: how well the encoder's vectors tell its classes apart, before and after, and at
    every evaluation (--best-metric probe). Default: halves of held-out texts find each other."""
    probe_text: Annotated[str, Needs("probe")] = "text"
    """The column of the texts in --probe."""
    probe_label: Annotated[str, Needs("probe")] = ""
    """The column of the labels in --probe. Default: label."""
    max_length: Annotated[int | None, Range(3, unit="tokens", hint="try 128")] = None
    """Most tokens of a sequence; longer documents become windows. Default: 512, or the model's."""
    rope_base: Annotated[float | None, Range(1, above=True, hint="try {flag} 160000")] = None
    """Base of rotary positions in layers that see all of a text; with it --max-length may be above
    the model's own (ModernBERT: 160000 for 8,192 tokens)."""
    layout: Literal["auto", "packed", "padded"] = "auto"
    """packed computes no padding; padded groups by length. auto: packed where the family can."""
    attention_dropout: bool = False
    """Keep the model's own attention dropout; off, training is about twice as fast."""
    hidden_dropout: Annotated[float | None, Range(0, 1, below=True)] = None
    """Dropout of hidden states. Default: the model's own."""
    masked_capacity: Annotated[
        float | None, Range(0, 1, above=True, hint="leave it out to have it estimated")
    ] = None
    """With --compile: rows for masked tokens, as a share of a step's tokens. Default: estimated."""
    add_words: str | None = None
    """A file of words, one a line, that become single tokens; their vectors start from the mean of
    their pieces."""
    cache_dir: Path | None = None
    """The folder of tokenised corpora. Default: $MASKERY_CACHE, or ~/.cache/maskery."""
    streaming: StreamingConfig = StreamingConfig()
    reading: CorpusConfig = CorpusConfig()
    masking: MaskingConfig = MaskingConfig()
    objectives: TextMLMConfig = TextMLMConfig()
    training: TrainingConfig = TrainingConfig()

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("corpus", "eval_data", "lora", "mix"):
            value = getattr(self, name)
            if isinstance(value, str | Path):  # else it would count as a list of letters
                value = (value,)
            value = () if value is None else value
            if isinstance(value, Iterable):  # read once: an iterator has nothing left after that
                value = tuple(str(one) if isinstance(one, str | Path) else one for one in value)
            object.__setattr__(self, name, value)
        for name in ("model", "probe", "add_words"):
            value = getattr(self, name)
            if isinstance(value, Path):
                object.__setattr__(self, name, str(value))
        if self.head_share and self.model.startswith(SCRATCH):
            problem = f"--head-first {self.head_first} and --model {self.model}"
            why = "nothing of it is trained yet, so no head comes first"
            raise ConfigError(f"{problem}: {why}; leave out --head-first")
        if self.frozen_layers is not None:
            self._refuse_partial(f"--freeze {self.freeze}")
        if self.lora:
            self._refuse_partial(f"--lora {' '.join(self.lora)}")
            import_module("maskery.models.lora").Lora.of(self.lora)  # few runs need it
        if not self.corpus:
            raise ConfigError("no corpus is named: give at least one file, folder, glob or hub id")
        _ = self.shares  # what is no mixture is refused
        if self.add_words is not None and self.model.startswith(SCRATCH):
            problem = f"--add-words {self.add_words} and --model {self.model}"
            why = "a vocabulary from scratch is learnt from the corpus"
            raise ConfigError(f"{problem}: {why}; raise --vocab-size instead")
        if self.shape != "bert" and not self.model.startswith(SCRATCH):
            problem = f"--shape {self.shape} is of --model scratch:..., and it is {self.model}"
            fix = "leave it out, or name one of scratch:tiny, scratch:small, scratch:base"
            raise ConfigError(f"{problem}; {fix}")
        if self.lr_restart and self.from_run is None:
            raise ConfigError("--lr-restart needs --from: a schedule begins with its run anyway")
        if self.group_column == "":
            problem = "--group-column is empty: it must be a name"
            raise ConfigError(f"{problem}; leave it out or name one")
        texts = list(map(named_text, self.eval_data))
        if not all(path for _, path in texts):
            raise ConfigError("--eval-data NAME= names no file; write --eval-data NAME=PATH")
        for kind, found in (("name", [n for n, _ in texts if n]), ("path", [p for _, p in texts])):
            twice = next((one for one in found if found.count(one) > 1), None)
            if twice is not None:
                problem = f"--eval-data gives the {kind} '{twice}' twice"
                raise ConfigError(f"{problem}; give each text once, with a name of its own")
        if self.group_column is not None and self.deciding_data:
            problem = f"--group-column {self.group_column} and --eval-data do not go together"
            why = "with held-out text of its own the corpus is not split"
            raise ConfigError(f"{problem}: {why}; leave out one of them")
        if self.objectives.has_twin and self.training.compile:
            why = "the text that the model reads depends on the twin's samples"
            fix = "leave out --compile, or --objective and --momentum"
            raise ConfigError(f"--compile and a momentum twin do not go together: {why}; {fix}")
        if self.objectives.objective == DIFFUSION:
            self._require_diffusion_alone()
        if self.masked_capacity is not None and not self.training.compile:
            why = "other steps predict as many tokens as are masked"
            raise ConfigError(f"--masked-capacity needs --compile: {why}; leave it out")

    def _require_diffusion_alone(self) -> None:
        masking, usual = vars(self.masking), vars(MaskingConfig())
        flags = [f"--{name.replace('_', '-')}" for name in usual if masking[name] != usual[name]]
        if self.training.compile:
            flags.append("--compile")
        if flags:
            problem = f"--objective diffusion does not go with {', '.join(flags)}"
            why = "it masks tokens at rates that it draws, always as [MASK], in no constant shapes"
            raise ConfigError(f"{problem}: {why}; leave out one")

    @property
    def deciding_data(self) -> tuple[str, ...]:
        """The part of `eval_data` without names: the held-out text that decides."""
        return tuple(text for text in self.eval_data if not named_text(text)[0])

    @property
    def other_data(self) -> dict[str, str]:
        """The part of `eval_data` that is measured beside it, by name."""
        return {name: path for name, path in map(named_text, self.eval_data) if name}

    @property
    def shares(self) -> list[float]:
        """The shares of `--mix`, one for each corpus; none without."""
        if not self.mix:  # few runs need it
            return []
        shares: list[float] = import_module("maskery.data.mixture").shares_of(self.mix, self.corpus)
        return shares

    @property
    def head_share(self) -> float:
        """The share of `--head-first`; 0 for off, and for auto until a run has chosen."""
        share = Range(0, 1, below=True, hint="try 0.2")
        return number_or_word("head_first", self.head_first, AUTO_OFF, share) or 0.0

    @property
    def frozen_layers(self) -> int | None:
        """The layers that `--freeze` names, 0 for the embeddings alone; None for off."""
        words = {"off": None, "embeddings": 0}
        number = number_or_word("freeze", self.freeze, tuple(words), Range(0, hint="try 6"))
        if number is not None and number % 1:
            raise ConfigError(f"freeze is {self.freeze}: it must be a whole number; try 6")
        return words[self.freeze] if number is None else int(number)

    def _refuse_partial(self, flag: str) -> None:
        """Refuse what goes with no weights that stay the start's."""
        others = {
            f"--model {self.model}": self.model.startswith(SCRATCH),
            f"--add-words {self.add_words}": self.add_words,
            "--lora": self.lora and "--lora" not in flag,
            "a momentum twin": self.lora and self.objectives.has_twin,
        }
        if found := [other for other, given in others.items() if given]:
            problem = f"{flag} and {found[0]} do not go together"
            why = "what is new there would stay untrained, or be another whole model"
            raise ConfigError(f"{problem}: {why}; leave out one of them")

    def anchored(self) -> Self:
        """Return a copy with absolute paths of the data, which mean the same from any folder."""
        corpus = tuple(map(_anchored, self.corpus))
        mixed = zip(corpus, self.shares, strict=False)
        named = (f"{name}={_anchored(path)}" for name, path in self.other_data.items())
        return replace(
            super().anchored(),
            corpus=corpus,
            mix=tuple(f"{path}={share!r}" for path, share in mixed),
            eval_data=(*map(_anchored, self.deciding_data), *named),
            probe=None if self.probe is None else _anchored(self.probe),
        )


def named_text(text: str) -> tuple[str, str]:
    """Return the name and the path of an `eval_data`; a name is empty where there is none."""
    name, sign, path = text.partition("=")
    # A folder may be called year=2020.
    if not sign or not re.fullmatch(r"[A-Za-z][\w.-]*", name) or Path(text).exists():
        return "", text
    return name, path


def _anchored(source: str) -> str:
    """Make the path of a file, folder or glob absolute; a hub id or an address stays."""
    is_glob = "://" not in source and set(source) & set("*?[")
    return str(Path(source).resolve()) if Path(source).exists() or is_glob else source
