"""`maskery evaluate`: one command whose flags are those of the model that it is given."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from maskery.cli import figures
from maskery.cli.main import parse, print_json, set_up_logging
from maskery.core.errors import ConfigError
from maskery.core.ranges import Count, Range, Weight, check_ranges
from maskery.core.system import quick_imports
from maskery.data.corpus.config import CorpusConfig
from maskery.data.pairs.config import PairsConfig
from maskery.masking.config import MaskingConfig
from maskery.runs.frame.config_file import run_kind

USAGE = """usage: maskery evaluate RUN_OR_MODEL ...

Did it get better? Held-out figures with 95% intervals. The flags depend on the model, and
maskery evaluate RUN_OR_MODEL --help shows those of the one that is named:

  text           loss, perplexity and accuracy of masked words; before and after for a run
  pairs          the same for a run of train pairs, with the right picture, a wrong one and none
  image-text     the same for any image-text model on pairs that --data names
  person search  R@1 to mAP: captions find pictures; for runs of train person-search, for models
                 that only find pictures, and wherever --rerank, --score, --odds-weight,
                 --held-out or --clean-captions is set or several runs are named

examples:
  maskery evaluate runs/meditations-minilm
  maskery evaluate runs/a --data held_out.txt --against bert-base-uncased
  maskery evaluate runs/people --data people/pairs_test.jsonl --score-words drawn-people
  maskery evaluate models/a --data pairs.json --pairs.images pictures --against models/b
  maskery evaluate runs/search-0 runs/search-1 runs/search-2
  maskery evaluate models/rasa --data persons.jsonl --rerank 128
"""
Model = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN_OR_MODEL")]
BatchTokens = Annotated[int, Range(8)]


@dataclass(frozen=True, kw_only=True)
class EvaluateText:
    """Held-out loss, perplexity and accuracy with 95% intervals.

    The masks are frozen: the same text gets the same masks at any batch size and for any model with
    the same tokenizer, so two models are compared token by token.
    """

    model: Model
    """A run folder, a model folder, a hub name or minilm."""
    data: tuple[str, ...] = ()
    """Held-out text: files, folders, globs or a hub id. Default: what the run held out."""
    against: str | None = None
    """Another model with the same tokenizer, for the paired difference."""
    batch_tokens: BatchTokens | None = None
    """Tokens scored at once; the figures do not depend on it. Default: 4096, or the run's."""
    mask_seed: int = 0
    """Of the frozen masks, with --data."""
    cache_dir: Path | None = None
    """The folder of tokenised text. Default: $MASKERY_CACHE, or ~/.cache/maskery."""
    json: bool = False
    """Print JSON on standard output."""
    reading: Annotated[CorpusConfig, tyro.conf.OmitArgPrefixes] = field(
        default_factory=CorpusConfig
    )
    masking: Annotated[MaskingConfig, tyro.conf.OmitArgPrefixes] = field(
        default_factory=MaskingConfig
    )

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.against is not None and not self.data:
            raise ConfigError("--against needs --data FILE: the text to compare the models on")


@dataclass(frozen=True, kw_only=True)
class OwnReader:
    """The reader of a run's pairs; everything else is read as the run read it."""

    reader: str | None = None
    """FILE.py:NAME of the reader that the run was trained with, which its file does not load."""


@dataclass(frozen=True, kw_only=True)
class EvaluatePairs:
    """Held-out figures of a run of train pairs, with the right picture, a wrong one and none."""

    model: Model
    """The run folder."""
    data: tuple[str, ...] = ()
    """Other pairs than those that the run held out."""
    score_words: tuple[str, ...] = ()
    """Words scored one at a time, as in train pairs. Default: the run's."""
    json: bool = False
    """Print JSON on standard output."""
    pairs: OwnReader = field(default_factory=OwnReader)


@dataclass(frozen=True, kw_only=True)
class EvaluateImageText:
    """Masked words of captions with the right picture, a wrong one and none: one model or two."""

    model: Model
    """A folder of an image-text model, or of a run."""
    data: tuple[str, ...] = ()
    """Pairs, as for train pairs; all count as held out."""
    against: str | None = None
    """Another model with the same tokenizer, for the paired difference."""
    score_words: tuple[str, ...] = ()
    """Words scored one at a time, as in train pairs."""
    mask_seed: int = 0
    """Of the frozen masks."""
    json: bool = False
    """Print JSON on standard output."""
    masking: Annotated[MaskingConfig, tyro.conf.OmitArgPrefixes] = field(
        default_factory=MaskingConfig
    )
    pairs: PairsConfig = field(default_factory=PairsConfig)


@dataclass(frozen=True, kw_only=True)
class EvaluateSearch:
    """Captions find their pictures: R@1, R@5, R@10, mAP and mINP with 95% intervals."""

    model: Model
    """A run folder, or with --data a model folder."""
    more: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN ...")] = ()
    """Other runs on the same pictures: all are measured, and their mean and spread are given, with
    their seeds."""
    data: tuple[str, ...] = ()
    """Pairs that name persons. Default: the pictures that the run held out."""
    held_out: Literal["test", "val"] = "test"
    """Which split of the run's dataset."""
    root: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """The folder of the run's dataset now. Default: where it was."""
    images: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Likewise the folder that its image paths are relative to."""
    rerank: Annotated[int | None, Range(0)] = None
    """The best pictures of each caption that the matching head ranks anew; 0: none. Default: the
    model's, or 128."""
    score: Literal["matching", "odds", "sum"] | None = None
    """The ranking of those, as in train person-search. Default: the model's, or matching."""
    odds_weight: Weight | None = None
    """The weight of the odds in --score sum. Default: the model's, or 1."""
    clean_captions: Literal["auto", "yes", "no"] = "auto"
    """Lower-case captions and strip them of punctuation. auto: as the captions were that the model
    was trained on, where that is known."""
    batch_tokens: BatchTokens | None = None
    """Text tokens computed at once; the figures do not depend on it. Default: the run's or
    4096."""
    memory_mb: Count | None = None
    """Megabytes for image tokens, beyond which they are kept in a temporary file (in TMPDIR); the
    figures do not depend on it. Default: the run's, or 1024."""
    json: bool = False
    """Print JSON on standard output."""
    pairs: PairsConfig = field(default_factory=PairsConfig)

    def __post_init__(self) -> None:
        check_ranges(self)
        if not self.data:
            if self.pairs != PairsConfig():
                raise ConfigError("--pairs... tells how --data is read; name it, or leave them out")
            return
        for name in ("held_out", "root", "images"):
            value = getattr(self, name)
            if value not in ("test", None):
                raise ConfigError(
                    f"--{name.replace('_', '-')} is {value}, and --data names other pairs than the "
                    f"run's; leave one out"
                )


SEARCH_FLAGS = {"--rerank", "--score", "--odds-weight", "--clean-captions", "--held-out"}


def split_arguments(
    arguments: Sequence[str], commands: Iterable[type[Any]]
) -> tuple[list[str], set[str]]:
    """Return positional arguments and flags without values, for any of some commands."""
    sizes: dict[str, int | None] = {}
    for command in commands:
        sizes |= flags_of(command)
    positional: list[str] = []
    flags: set[str] = set()
    skip: int | None = 0
    for word in arguments:
        if word.startswith("-") and word != "-":
            name, equals, _ = word.partition("=")
            flag = name.replace("_", "-")
            flags.add(flag)
            skip = 0 if equals else sizes.get(flag, 0)
        elif skip == 0:
            positional.append(word)
        elif skip is not None:
            skip -= 1
    return positional, flags


def flags_of(kind: type[Any], prefix: str = "--") -> dict[str, int | None]:
    """Return the flags of a dataclass and how many words each takes; None for any number."""
    found: dict[str, int | None] = {}
    hints = typing.get_type_hints(kind, include_extras=True)
    for one in fields(kind):
        hint, marks = hints[one.name], ()
        if typing.get_origin(hint) is Annotated:
            hint, *marks = typing.get_args(hint)  # type: ignore[assignment]
        name = one.name.replace("_", "-")
        if is_dataclass(hint):
            inner = prefix if tyro.conf.OmitArgPrefixes in marks else f"{prefix}{name}."
            found |= flags_of(hint, inner)  # type: ignore[arg-type]
        elif tyro.conf.Positional not in marks:
            found[prefix + name] = words_of(hint)
            if hint is bool:
                found[f"{prefix}no-{name}"] = 0
    return found


def words_of(hint: Any) -> int | None:
    """Return how many words a value of a type is; None for any number."""
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    tuples = [option for option in options if typing.get_origin(option) is tuple]
    if not tuples:
        return 0 if hint is bool else 1
    parts = typing.get_args(tuples[0])
    return None if Ellipsis in parts else len(parts)


def only(data: Sequence[str]) -> str | None:
    """Return the one source that `--data` names, or None; several are an error."""
    if len(data) > 1:
        raise ConfigError(
            f"--data names {len(data)} sources, and a model with pictures is evaluated on one; "
            f"give a pattern"
        )
    return data[0] if data else None


def main(arguments: Sequence[str]) -> int:
    """Find out what is measured, parse its flags, evaluate, report."""
    models, flags = split_arguments(arguments, [way[0] for way in WAYS.values()])
    if not models:
        if {"-h", "--help"} & flags:
            print(USAGE, end="")
            raise SystemExit(0)
        raise ConfigError("no run or model is named; see maskery evaluate --help")
    set_up_logging(quiet=True)
    command, about, report = WAYS[way_of(models, flags)]
    for flag in sorted(flags - flags_of(command).keys()):
        others = [name for other, name, _ in WAYS.values() if flag in flags_of(other)]
        if others:
            raise ConfigError(
                f"{flag} is for {' and '.join(others)}, and '{models[0]}' is evaluated as {about}; "
                f"leave it out (maskery evaluate {models[0]} --help lists its flags)"
            )
    report(parse(command, "evaluate", arguments))
    return 0


def way_of(models: Sequence[str], flags: Iterable[str]) -> str:
    """Return what is measured, a key of `WAYS`: by the kind of the run, or by the model."""
    model, kind = models[0], run_kind(models[0])
    searches = len(models) > 1 or not SEARCH_FLAGS.isdisjoint(flags)
    if kind == "text":
        return "text"
    if kind == "person-search":
        return "search"
    if kind == "pairs" and not searches:
        return "image-text" if "--against" in flags else "pairs"
    with quick_imports():
        from maskery.evaluation.image_text.opening import is_image_text
        from maskery.runs.person_search.settings import finds_alone

    if not is_image_text(model):
        return "text"
    return "search" if searches or finds_alone(model) else "image-text"


def report_text(wanted: EvaluateText) -> None:
    """Evaluate a text run, or one or two models on any text."""
    with quick_imports():
        from maskery.evaluation.image_text.opening import is_image_text
        from maskery.runs.text.evaluate import evaluate_model, evaluate_run

    if wanted.against is not None and is_image_text(wanted.against):
        raise ConfigError(
            f"'{wanted.against}' reads pictures and '{wanted.model}' text alone, so they cannot be "
            f"compared; name two of a kind"
        )
    if wanted.data:
        result = evaluate_model(
            wanted.model,
            wanted.data,
            against=wanted.against,
            reading=wanted.reading,
            masking=wanted.masking,
            cache_dir=wanted.cache_dir,
            batch_tokens=wanted.batch_tokens or 4096,
            seed=wanted.mask_seed,
            progress=not wanted.json,
        )
    elif run_kind(wanted.model) is not None:
        result = evaluate_run(Path(wanted.model), batch_tokens=wanted.batch_tokens)
    else:
        if "/" in wanted.model and not Path(wanted.model).exists():
            raise ConfigError(f"there is no folder '{wanted.model}'; name a run or model folder")
        raise ConfigError(
            f"'{wanted.model}' is no run folder, so there is no held-out text of its own; "
            f"name some with --data FILE"
        )
    if wanted.json:
        print_json(asdict(result))
    else:
        print(figures.scores_table(result.scores, result.difference, result.mrtd_auc))


def report_pairs(wanted: EvaluatePairs) -> None:
    """Evaluate a run of `train pairs`: the same model with right, wrong and no pictures."""
    from maskery.runs.pairs.run import evaluate_pairs_run

    result = evaluate_pairs_run(
        Path(wanted.model),
        score_words=wanted.score_words,
        eval_pairs=only(wanted.data),
        reader=wanted.pairs.reader,
    )
    if wanted.json:
        print_json(result.to_json())
    else:
        print(figures.sights_table(result))


def report_image_text(wanted: EvaluateImageText) -> None:
    """Evaluate an image-text model, or two, on pairs of the user's."""
    from maskery.runs.pairs.evaluate import evaluate_image_text

    data = only(wanted.data)
    if data is None:
        raise ConfigError(
            f"'{wanted.model}' is no run folder, so there are no held-out pairs of its own; name "
            f"some with --data PAIRS"
        )
    result = evaluate_image_text(
        wanted.model,
        data,
        against=wanted.against,
        reading=wanted.pairs,
        masking=wanted.masking,
        seed=wanted.mask_seed,
        words=wanted.score_words,
    )
    if wanted.json:
        print_json(result.to_json())
    else:
        print(figures.models_table(result))


def report_search(wanted: EvaluateSearch) -> None:
    """Evaluate person-search runs, or any image-text models on pairs: captions find pictures."""
    from maskery.runs.person_search.evaluate import Overrides, evaluate_retrieval_models

    clean = None if wanted.clean_captions == "auto" else wanted.clean_captions == "yes"
    names = ("rerank", "score", "odds_weight", "batch_tokens", "memory_mb", "root", "images")
    asked = Overrides(clean_captions=clean, **{name: getattr(wanted, name) for name in names})
    result = evaluate_retrieval_models(
        [wanted.model, *wanted.more],
        data=only(wanted.data),
        reading=wanted.pairs,
        split=wanted.held_out,
        overrides=asked,
        progress=not wanted.json,
    )
    if wanted.json:
        print_json(result.to_json())
        return
    for name, found in result.figures.items():
        heading = f"{figures.run_heading(name, result.seeds[name])}\n"
        print(f"{heading if len(result.figures) > 1 else ''}{figures.retrieval_table(found)}\n")
    if result.spread is not None:
        print(figures.spread_table(result.spread, list(result.seeds.values())))


# By what is measured: its flags, what they are for, in messages, and what measures and prints.
WAYS: dict[str, tuple[type[Any], str, Any]] = {
    "text": (EvaluateText, "text models", report_text),
    "pairs": (EvaluatePairs, "runs of train pairs", report_pairs),
    "image-text": (EvaluateImageText, "image-text models with --data", report_image_text),
    "search": (EvaluateSearch, "person search", report_search),
}
