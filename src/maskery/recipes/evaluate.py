"""`evaluate`: a run before and after, or any model on any text."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from maskery.core.errors import ConfigError
from maskery.data.corpus.config import CorpusConfig
from maskery.data.tokenise import default_cache_dir
from maskery.evaluation.bootstrap import Interval
from maskery.evaluation.held_out import require_same_tokenizer, score_text
from maskery.evaluation.masked import ExampleSums, MaskedScores, compare, summarise
from maskery.evaluation.opening import open_model
from maskery.masking.config import MaskingConfig
from maskery.recipes.run_folder import CONFIG, MODEL, load_config
from maskery.recipes.text import prepare_text
from maskery.recipes.text_config import TextRunConfig


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Held-out figures of one model, or of two with their paired difference.

    Attributes:
        scores: By heading; `before` and `after` of a run, or model names.
        difference: The last minus the first, where there are two.
    """

    scores: dict[str, MaskedScores]
    difference: dict[str, Interval] | None


def evaluate_run(folder: Path, *, batch_tokens: int | None = None) -> Evaluation:
    """A run's model against the model it started from, on what the run held out.

    Raises:
        ConfigError: The run has no model yet.
    """
    config = load_config(folder / CONFIG, TextRunConfig)
    if not (folder / MODEL / "config.json").is_file():
        raise ConfigError(
            f"the run '{folder}' has no model yet; finish it with: maskery train --config "
            f"{folder / CONFIG} --resume auto"
        )
    if batch_tokens is not None:
        config = replace(config, training=replace(config.training, batch_tokens=batch_tokens))
    run = prepare_text(config, progress=False)
    before = run.score()
    after = run.score(open_model(str(folder)).model)
    return _both({"before": before, "after": after})


def evaluate_model(
    model: str,
    data: tuple[str, ...],
    *,
    against: str | None,
    reading: CorpusConfig,
    masking: MaskingConfig,
    cache_dir: Path | None = None,
    batch_tokens: int = 4096,
    seed: int = 0,
    progress: bool = True,
) -> Evaluation:
    """One model, or two, on held-out text."""
    opened = [open_model(name) for name in ([against] if against else []) + [model]]
    if len(opened) == 2:
        require_same_tokenizer(*opened)
    scored: dict[str, ExampleSums] = {}
    for one in opened:
        # The same model twice is a legitimate question, with the answer 0.
        heading = one.name if one.name not in scored else f"{one.name} (again)"
        scored[heading] = score_text(
            one,
            data,
            reading,
            masking,
            cache_dir=cache_dir or default_cache_dir(),
            batch_tokens=batch_tokens,
            seed=seed,
            progress=progress,
        )
    return _both(scored)


def _both(scored: dict[str, ExampleSums]) -> Evaluation:
    first, *rest = scored.values()
    return Evaluation(
        scores={name: summarise(sums) for name, sums in scored.items()},
        difference=compare(rest[0], first) if rest else None,
    )
