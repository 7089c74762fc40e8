"""`maskery evaluate`: one command whose flags are those of the model that it is given."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import tyro

from maskery.cli.flags import flags_of, sizes_of, split_arguments
from maskery.cli.main import HELP, Command, Trusting, parse, set_up_logging
from maskery.cli.output import as_text, as_texts, check_ending, figures_csv, prepare_outputs
from maskery.core.errors import ConfigError, meant
from maskery.core.ranges import Range
from maskery.core.system import quick_imports
from maskery.data.corpus.config import CorpusConfig
from maskery.data.pairs.config import PairsConfig
from maskery.evaluation import tables
from maskery.masking.config import MaskingConfig
from maskery.runs.frame.config_file import run_kind
from maskery.runs.frame.run_folder import write_text
from maskery.runs.image_text.config import Overrides

if TYPE_CHECKING:
    from maskery.evaluation.retrieval.evaluate import Retrieval
    from maskery.evaluation.retrieval.retrieval_set import RetrievalSet

USAGE = """usage: maskery evaluate RUN_OR_MODEL ...

Did it get better? Held-out figures with 95% intervals. The flags depend on the model, and
maskery evaluate RUN_OR_MODEL --help shows those of the one that is named:

  text           loss, perplexity and accuracy of masked words; before and after for a run
  pairs          the same for a run of train pairs, with the right picture, a wrong one and none
  image-text     the same for any image-text model on pairs that --data names
  person search  R@1 to mAP: captions find pictures; for runs of train person-search, for models
                 that only find pictures, and wherever --rerank, --score, --odds-weight,
                 --held-out, --on, --ranks, --features or --clean-captions is set or several runs
                 are named

examples:
  maskery evaluate runs/meditations-minilm
  maskery evaluate runs/a --data held_out.txt --against bert-base-uncased
  maskery evaluate runs/people --data people/pairs_test.jsonl --score-words drawn-people
  maskery evaluate models/a --data pairs.json --pairs.images pictures --against models/b
  maskery evaluate runs/search-0 runs/search-1 runs/search-2
  maskery evaluate models/rasa --data persons.jsonl --rerank 128
  maskery evaluate runs/search-0 --on icfg-pedes:ICFG-PEDES rstpreid:RSTPReid
"""


@dataclass(frozen=True, kw_only=True)
class Way(Command):
    """One of the ways to evaluate, with the flags that it has."""

    about: ClassVar[str]  # The models that it is for, in messages

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN_OR_MODEL")]
    """A run folder, a model folder, a hub name or minilm."""
    data: tuple[str, ...] = ()
    """Held-out text: files, folders, globs or a hub id. Default: what the run held out."""

    @property
    def source(self) -> str | None:
        """Return the one source that `--data` names, or None; several are an error."""
        if len(self.data) > 1:
            rule = "a model with pictures is evaluated on one; give a pattern"
            raise ConfigError(f"--data names {len(self.data)} sources, and {rule}")
        return self.data[0] if self.data else None


@dataclass(frozen=True, kw_only=True)
class EvaluateText(Way, Trusting):
    """Held-out loss, perplexity and accuracy with 95% intervals.

    The masks are frozen: the same text gets the same masks at any batch size and for any model with
    the same tokenizer, so two models are compared token by token.
    """

    about = "text models"
    against: str | None = None
    """Another model with the same tokenizer, for the paired difference."""
    batch_tokens: Annotated[int | None, Range(8)] = None
    """Tokens scored at once; the figures do not depend on it. Default: 4096, or the run's."""
    mask_seed: int = 0
    """Of the frozen masks, with --data."""
    cache_dir: Path | None = None
    """The folder of tokenised text. Default: $MASKERY_CACHE, or ~/.cache/maskery."""
    reading: Annotated[CorpusConfig, tyro.conf.OmitArgPrefixes] = CorpusConfig()
    masking: Annotated[MaskingConfig, tyro.conf.OmitArgPrefixes] = MaskingConfig()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.against is not None and not self.data:
            raise ConfigError("--against needs --data FILE: the text to compare the models on")
        plain = CorpusConfig(), MaskingConfig(), 0, None
        if not self.data and (self.reading, self.masking, self.mask_seed, self.cache_dir) != plain:
            raise ConfigError(
                "settings of reading, masks and cache need --data FILE: what a run held out is "
                "read and masked as it was; leave them out (--trust FILE.py:NAME for its plug-ins)"
            )

    def execute(self) -> None:
        """Evaluate a text run, or one or two models on any text."""
        with quick_imports():
            from maskery.evaluation.image_text.opening import is_image_text
            from maskery.runs.text.evaluate import evaluate_model, evaluate_run

        if self.against is not None and is_image_text(self.against):
            problem = f"'{self.against}' reads pictures and '{self.model}' text alone"
            raise ConfigError(f"{problem}, so they cannot be compared; name two of a kind")
        if self.data:
            result = evaluate_model(
                self.model,
                self.data,
                against=self.against,
                reading=self.reading,
                masking=self.masking,
                cache_dir=self.cache_dir,
                batch_tokens=self.batch_tokens or 4096,
                seed=self.mask_seed,
                progress=not self.json,
            )
        elif run_kind(self.model) is not None:
            result = evaluate_run(Path(self.model), batch_tokens=self.batch_tokens)
        else:
            if "/" in self.model and not Path(self.model).exists():
                raise ConfigError(f"there is no folder '{self.model}'; name a run or model folder")
            problem = f"'{self.model}' is no run folder, so there is no held-out text of its own"
            raise ConfigError(f"{problem}; name some with --data FILE")
        found = asdict(result)
        scores, change, auc = found["scores"], found["difference"], found["mrtd_auc"]
        self.answer(found, as_text(tables.scores_table(scores, change, mrtd_auc=auc)))


@dataclass(frozen=True, kw_only=True)
class OwnReader:
    """The reader of a run's pairs; everything else is read as the run read it."""

    reader: str | None = None
    """FILE.py:NAME of the reader that the run was trained with, which its file does not load."""


@dataclass(frozen=True, kw_only=True)
class EvaluatePairs(Way, Trusting):
    """Held-out figures of a run of train pairs, with the right picture, a wrong one and none."""

    about = "runs of train pairs"
    data: tuple[str, ...] = ()
    """Other pairs than those that the run held out."""
    score_words: tuple[str, ...] = ()
    """Words scored one at a time, as in train pairs. Default: the run's."""
    pairs: OwnReader = field(default_factory=OwnReader)

    def execute(self) -> None:
        """Evaluate a run of `train pairs`: the same model with right, wrong and no pictures."""
        from maskery.runs.pairs.run import evaluate_pairs_run

        run, reader = Path(self.model), self.pairs.reader
        found = asdict(evaluate_pairs_run(run, self.score_words, self.source, reader))
        self.answer(found, as_text(tables.sights_table(found)))


@dataclass(frozen=True, kw_only=True)
class EvaluateImageText(Way):
    """Masked words of captions with the right picture, a wrong one and none: one model or two."""

    about = "image-text models with --data"
    data: tuple[str, ...] = ()
    """Pairs, as for train pairs; all count as held out."""
    against: str | None = None
    """Another model with the same tokenizer, for the paired difference."""
    score_words: tuple[str, ...] = ()
    """Words scored one at a time, as in train pairs."""
    mask_seed: int = 0
    """Of the frozen masks."""
    masking: Annotated[MaskingConfig, tyro.conf.OmitArgPrefixes] = MaskingConfig()
    pairs: PairsConfig = field(default_factory=PairsConfig)

    def execute(self) -> None:
        """Evaluate an image-text model, or two, on pairs of the user's."""
        from maskery.runs.pairs.evaluate import evaluate_image_text

        data = self.source
        if data is None:
            problem = f"'{self.model}' is no run folder, so there are no held-out pairs of its own"
            raise ConfigError(f"{problem}; name some with --data PAIRS")
        result = evaluate_image_text(
            self.model,
            data,
            against=self.against,
            reading=self.pairs,
            masking=self.masking,
            seed=self.mask_seed,
            words=self.score_words,
        )
        found = asdict(result)
        if result.difference is None:
            text = as_text(tables.sights_table(*found["models"].values()))
        else:
            text = as_texts(tables.models_tables(found["models"], found["difference"]))
        self.answer(found, text)


@dataclass(frozen=True, kw_only=True)
class EvaluateSearch(Way):
    """Captions find their pictures: R@1, R@5, R@10, mAP and mINP with 95% intervals."""

    about = "person search"
    more: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN ...")] = ()
    """Other runs on the same pictures: all are measured, and their mean and spread are given, with
    their seeds."""
    data: tuple[str, ...] = ()
    """Pairs that name persons. Default: the pictures that the run held out."""
    held_out: Literal["test", "val"] = "test"
    """Which split of the run's dataset."""
    on: Annotated[tuple[str, ...], tyro.conf.arg(metavar="KIND:DIR ...")] = ()
    """Other datasets, as cuhk-pedes:DIR icfg-pedes:DIR drawn-people:DIR jsonl:FILE: a table of runs
    by datasets (direct transfer)."""
    ranks: Path | None = None
    """Also write the rank of each caption's first right picture into this .jsonl or .csv file."""
    features: Path | None = None
    """Also write the features of pictures and captions, with their names, as .safetensors."""
    overrides: Annotated[Overrides, tyro.conf.OmitArgPrefixes] = field(default_factory=Overrides)
    pairs: PairsConfig = field(default_factory=PairsConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ending(self.ranks, "--ranks", ".jsonl", ".csv")
        check_ending(self.features, "--features", ".safetensors")
        given = {name for name, value in vars(self).items() if value and name != "pairs"}
        given |= self.overrides.of("root", "images").keys()
        given -= {"held_out"} if self.held_out == "test" else set()
        for one, others in EXCLUSIVE.items():
            for other in (name for name in others if {one, name} <= given):
                flags = (f"--{name.replace('_', '-')}" for name in (one, other))
                raise ConfigError(f"{' and '.join(flags)} exclude each other; leave one out")
        if self.pairs != PairsConfig() and not self.data:
            raise ConfigError("--pairs... tells how --data is read; name it, or leave them out")

    def execute(self) -> None:
        """Evaluate person-search runs, or any image-text models on pairs."""
        from maskery.runs.person_search.evaluate import evaluate_retrieval_models, evaluate_transfer

        names = [self.model, *self.more]
        how: Any = {"split": self.held_out, "overrides": self.overrides, "progress": not self.json}
        if self.on:
            found = evaluate_transfer(names, self.on, **how)
            self.answer(found, as_text(tables.transfer_table(found)))
            return
        prepare_outputs(ranks=self.ranks, features=self.features)
        how["each"] = self.export
        result = evaluate_retrieval_models(names, data=self.source, reading=self.pairs, **how)
        found = asdict(result)
        listed = []
        for name, seed in result.seeds.items():  # one model needs no heading: it was just named
            # Of a model folder the seed is not known, nor how its epoch was chosen.
            notes = [tables.CHOSEN] * (seed is not None)
            corner = tables.SPLITS.get(str(result.splits[name]), "held out")
            one = tables.rankings_table(found["figures"][name], corner, *notes)
            listed.append(replace(one, title=tables.seeded(name, seed) if self.more else ""))
        if result.spread is not None:
            listed.append(tables.spread_table(found["spread"], list(result.seeds.values())))
        self.answer(found, as_texts(listed))

    def export(self, measured: "RetrievalSet", found: "Retrieval") -> None:
        """Write the files that flags name."""
        from maskery.evaluation.retrieval.retrieval_set import ranks_jsonl

        if self.ranks is not None:
            rows = measured.rank_rows(found)
            as_lines = ranks_jsonl if self.ranks.suffix == ".jsonl" else figures_csv
            write_text(self.ranks, as_lines(rows))
        if self.features is not None:
            measured.save_features(self.features, found)


WAYS: tuple[type[Way], ...] = (EvaluateText, EvaluatePairs, EvaluateImageText, EvaluateSearch)
# Flags that say the same thing in two ways, or are for one model alone.
EXCLUSIVE = {
    "data": ("root", "images", "held_out", "on"),
    "on": ("root", "images", "ranks", "features"),
    "more": ("ranks", "features"),
}
SEARCH_FLAGS = {"--rerank", "--score", "--odds-weight", "--clean-captions", "--held-out", "--on"}
SEARCH_FLAGS |= {"--ranks", "--features"}


def evaluate(arguments: Sequence[str]) -> Command:
    """Find out what is measured, and parse the flags of that."""
    # The flags decide which parser reads them, so they are looked at before there is one.
    known = {way: sizes_of(list(flags_of(way, described=False))) for way in WAYS}
    every = {flag: size for sizes in known.values() for flag, size in sizes.items()}
    models, given = split_arguments(arguments, every)
    flags = set(given)
    if not models:
        if HELP & flags:
            print(USAGE, end="")
            raise SystemExit(0)
        raise ConfigError("no run or model is named; see maskery evaluate --help")
    for flag in flags - every.keys() - HELP:
        raise ConfigError(f"there is no flag {flag}{meant(flag, every)} (maskery evaluate --help)")
    set_up_logging(quiet=True)
    way = way_of(models, flags)
    for flag in sorted(flags - known[way].keys()):
        others = [other.about for other in WAYS if flag in known[other]]
        if others:
            problem = f"{flag} is for {' and '.join(others)}, and '{models[0]}' is evaluated as"
            fix = f"leave it out (maskery evaluate {models[0]} --help lists its flags)"
            raise ConfigError(f"{problem} {way.about}; {fix}")
    return parse(way, "evaluate", arguments)


def way_of(models: Sequence[str], flags: set[str]) -> type[Way]:
    """Choose by the kind of the run, or by the model."""
    kind = run_kind(models[0])
    searches = len(models) > 1 or not SEARCH_FLAGS.isdisjoint(flags)
    if kind == "text":
        return EvaluateText
    if kind == "person-search":
        return EvaluateSearch
    if kind == "pairs" and not searches:
        return EvaluateImageText if "--against" in flags else EvaluatePairs
    with quick_imports():
        from maskery.evaluation.image_text.opening import is_image_text
        from maskery.runs.person_search.evaluate import finds_alone

    if not is_image_text(models[0]):
        return EvaluateText
    return EvaluateSearch if searches or finds_alone(models[0]) else EvaluateImageText
