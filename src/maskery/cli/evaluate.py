"""`maskery evaluate`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from maskery.cli.console import parse, print_json, set_up_logging
from maskery.cli.figures import (
    models_table,
    retrieval_table,
    run_heading,
    scores_table,
    sights_table,
    spread_table,
)
from maskery.core.errors import ConfigError
from maskery.core.startup import quick_imports
from maskery.data.corpus.config import CorpusConfig
from maskery.data.pairs.config import PairsConfig
from maskery.masking.config import MaskingConfig

# What a run with pictures has of its own.
FROZEN = ("mask_seed", "cache_dir", "reading", "masking")
# What is for person search alone.
SEARCH = ("held_out", "memory_mb", "root", "images")


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Did it get better? Held-out loss, perplexity and accuracy with 95% intervals.

    The masks are frozen: the same text gets the same masks at any batch size and for any model with
    the same tokenizer, so two models are compared token by token.

    Examples:
      maskery evaluate runs/meditations-minilm
      maskery evaluate runs/a --data held_out.txt --against bert-base-uncased
      maskery evaluate runs/a --data held_out.txt --json
      maskery evaluate runs/people --data people/pairs_test.jsonl --score-words drawn-people
      maskery evaluate models/a --data pairs.json --pairs.images pictures --against models/b
      maskery evaluate runs/search-0 runs/search-1 runs/search-2
      maskery evaluate models/rasa --data persons.jsonl --rerank 128
    """

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN_OR_MODEL")]
    """A run folder, a model folder, a hub name or minilm."""
    more: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN ...")] = ()
    """Other runs of train person-search on the same pictures: all are measured, and their mean and
    spread are given, with their seeds."""
    data: tuple[str, ...] = ()
    """Held-out text: files, folders, globs or a hub id; for a model with pictures, one source of
    pairs. Default: what the run held out."""
    held_out: Literal["test", "val"] = "test"
    """For a run of train person-search: which split of its dataset."""
    root: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """For a run of train person-search: where its dataset lies now. Default: where it was."""
    images: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Likewise the folder that its image paths are relative to."""
    rerank: int | None = None
    """For person search: the best pictures of each caption that the matching head ranks anew; 0:
    none. Default: the model's, or 128. An image-text model that can fill words, and is no such run,
    finds pictures where this or one of the next three is set, and fills words otherwise."""
    score: Literal["matching", "odds", "sum"] | None = None
    """For person search: what those are ranked by, as in train person-search. Default: the model's,
    or matching."""
    odds_weight: float | None = None
    """For person search: what the odds count for in --score sum. Default: the model's, or 1."""
    clean_captions: Literal["auto", "yes", "no"] = "auto"
    """For person search: lower-case captions and strip them of punctuation. auto: as the captions
    were that the model was trained on, where that is known."""
    score_words: tuple[str, ...] = ()
    """For image-text models: words scored one at a time, as in train pairs. Default: the run's."""
    against: str | None = None
    """Another model of the same kind and tokenizer, for the paired difference."""
    batch_tokens: int | None = None
    """Tokens scored at once; the figures do not depend on it. Default: 4096, or the run's."""
    memory_mb: int | None = None
    """For person search: megabytes for image tokens, beyond which they are kept in a temporary file
    (in TMPDIR); the figures do not depend on it. Default: the run's, or 1024."""
    mask_seed: int = 0
    """Of the frozen masks, with --data."""
    cache_dir: Path | None = None
    """Where tokenised text is kept. Default: $MASKERY_CACHE, or ~/.cache/maskery."""
    json: bool = False
    """Print JSON on standard output."""
    reading: Annotated[CorpusConfig, tyro.conf.OmitArgPrefixes] = field(
        default_factory=CorpusConfig
    )
    masking: Annotated[MaskingConfig, tyro.conf.OmitArgPrefixes] = field(
        default_factory=MaskingConfig
    )
    pairs: PairsConfig = field(default_factory=PairsConfig)

    def __post_init__(self) -> None:
        if self.batch_tokens is not None and self.batch_tokens < 8:
            raise ConfigError(f"batch_tokens is {self.batch_tokens}: it must be at least 8")
        if self.memory_mb is not None and self.memory_mb < 1:
            raise ConfigError(f"memory_mb is {self.memory_mb}: it must be at least 1")
        if self.against is not None and not self.data:
            raise ConfigError("--against needs --data FILE: the text to compare the models on")
        if self.rerank is not None and self.rerank < 0:
            raise ConfigError(f"rerank is {self.rerank}: it must be 0 (do not) or more")
        if self.odds_weight is not None and not 0.0 <= self.odds_weight < float("inf"):
            raise ConfigError(f"odds_weight is {self.odds_weight}: it must be 0 or more")

    @property
    def asks_retrieval(self) -> bool:
        """Whether something is set that finding pictures alone has."""
        return (
            bool(self.more)
            or self.held_out != "test"
            or self.clean_captions != "auto"
            or any(value is not None for value in (self.rerank, self.score, self.odds_weight))
        )


def main(arguments: Sequence[str]) -> int:
    """Parse, evaluate, report."""
    wanted = parse(Evaluate, "evaluate", arguments)
    set_up_logging(quiet=True)
    with quick_imports():
        from maskery.evaluation.image_text.opening import is_image_text
        from maskery.runs.pairs.measure import is_pairs_run
        from maskery.runs.person_search.settings import finds_alone, is_person_search_run

    asks_retrieval = wanted.asks_retrieval
    if is_pairs_run(Path(wanted.model)) and not asks_retrieval and wanted.against is None:
        return report_pairs(wanted)
    if is_person_search_run(Path(wanted.model)) or (
        is_image_text(wanted.model) and (asks_retrieval or finds_alone(wanted.model))
    ):
        return report_retrieval(wanted)
    if asks_retrieval:
        raise ConfigError(
            f"several runs, --rerank, --score, --odds-weight, --clean-captions and --held-out are "
            f"for models of maskery train person-search, and '{wanted.model}' is none"
        )
    if is_image_text(wanted.model):
        return report_image_text(wanted)
    for name in ("score_words", "pairs", *SEARCH):
        if getattr(wanted, name) != getattr(Evaluate(model=wanted.model), name):
            raise ConfigError(
                f"{name} is set, which is for image-text models, and '{wanted.model}' reads text "
                f"alone; leave it out"
            )
    if wanted.against is not None and is_image_text(wanted.against):
        raise ConfigError(
            f"'{wanted.against}' reads pictures and '{wanted.model}' text alone, so they cannot be "
            f"compared; name two of a kind"
        )
    from maskery.runs.text.evaluate import evaluate_model, evaluate_run

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
    elif (Path(wanted.model) / "config.yaml").is_file():
        result = evaluate_run(Path(wanted.model), batch_tokens=wanted.batch_tokens)
    else:
        if "/" in wanted.model and not Path(wanted.model).exists():
            raise ConfigError(f"there is no folder '{wanted.model}'; name a run or model folder")
        raise ConfigError(
            f"'{wanted.model}' is no run folder, so there is no held-out text of its own; "
            f"name some with --data FILE"
        )
    if wanted.json:
        scores = {name: asdict(value) for name, value in result.scores.items()}
        found = {"scores": scores, "difference": result.difference, "mrtd_auc": result.mrtd_auc}
        print_json(found)
    else:
        print(scores_table(result.scores, result.difference, result.mrtd_auc))
    return 0


def report_pairs(wanted: Evaluate) -> int:
    """Evaluate a run of `train pairs`: the same model with right, wrong and no pictures."""
    reader = wanted.pairs.reader
    plain = replace(wanted, pairs=replace(wanted.pairs, reader=None))
    refuse_settings(plain, *FROZEN, *SEARCH, "against", "batch_tokens", "pairs")
    from maskery.runs.pairs.measure import evaluate_pairs_run

    result = evaluate_pairs_run(
        Path(wanted.model),
        score_words=wanted.score_words,
        eval_pairs=wanted.data[0] if wanted.data else None,
        reader=reader,
    )
    if wanted.json:
        print_json(result.to_json())
    else:
        print(sights_table(result))
    return 0


def report_retrieval(wanted: Evaluate) -> int:
    """Evaluate person-search runs, or any image-text models on pairs: captions find pictures."""
    refuse_settings(wanted, *FROZEN, "against", "score_words", *(() if wanted.data else ("pairs",)))
    for name in ("held_out", "root", "images"):
        value = getattr(wanted, name)
        if wanted.data and value not in ("test", None):
            raise ConfigError(
                f"--{name.replace('_', '-')} is {value}, and --data names other pairs than the "
                f"run's; leave one out"
            )
    from maskery.runs.person_search.evaluate import Asked, evaluate_retrieval_models

    asked = Asked(
        rerank=wanted.rerank,
        score=wanted.score,
        odds_weight=wanted.odds_weight,
        clean_captions=None if wanted.clean_captions == "auto" else wanted.clean_captions == "yes",
        batch_tokens=wanted.batch_tokens,
        memory_mb=wanted.memory_mb,
        root=wanted.root,
        images=wanted.images,
    )

    result = evaluate_retrieval_models(
        [wanted.model, *wanted.more],
        data=wanted.data[0] if wanted.data else None,
        reading=wanted.pairs,
        split=wanted.held_out,
        asked=asked,
        progress=not wanted.json,
    )
    if wanted.json:
        print_json(result.to_json())
        return 0
    for name, figures in result.figures.items():
        heading = f"{run_heading(name, result.seeds[name])}\n" if len(result.figures) > 1 else ""
        print(f"{heading}{retrieval_table(figures)}\n")
    if result.spread is not None:
        print(spread_table(result.spread, list(result.seeds.values())))
    return 0


def report_image_text(wanted: Evaluate) -> int:
    """Evaluate an image-text model, or two, on pairs of the user's."""
    if not wanted.data:
        raise ConfigError(
            f"'{wanted.model}' is no run folder, so there are no held-out pairs of its own; name "
            f"some with --data PAIRS"
        )
    refuse_settings(wanted, *SEARCH, "batch_tokens", "cache_dir", "reading")
    from maskery.runs.pairs.evaluate import evaluate_image_text

    result = evaluate_image_text(
        wanted.model,
        wanted.data[0],
        against=wanted.against,
        reading=wanted.pairs,
        masking=wanted.masking,
        seed=wanted.mask_seed,
        words=wanted.score_words,
    )
    if wanted.json:
        print_json(result.to_json())
    else:
        print(models_table(result))
    return 0


def refuse_settings(wanted: Evaluate, *names: str) -> None:
    """Refuse what a model with pictures does not use, rather than drop it.

    Raises:
        ConfigError: Such a setting is set, or several sources are named.
    """
    default = Evaluate(model=wanted.model)
    for name in names:
        if getattr(wanted, name) != getattr(default, name):
            raise ConfigError(
                f"{name} is set, and '{wanted.model}' is a model with pictures, which is "
                f"evaluated with settings of its own; leave it out"
            )
    if len(wanted.data) > 1:
        raise ConfigError(
            f"--data names {len(wanted.data)} sources, and a model with pictures is evaluated on "
            f"one; give a pattern"
        )
