"""Read finished text runs for a comparison; score those that have kept no held-out sums."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from maskery.core.errors import CheckpointError, ConfigError
from maskery.evaluation.text.comparison import Row, ScoredRun, compare_runs
from maskery.evaluation.text.masked import ExampleSums
from maskery.evaluation.text.opening import open_model
from maskery.runs.frame.config_file import open_run, to_plain
from maskery.runs.frame.run_folder import write_bytes
from maskery.runs.text.config import TextRunConfig
from maskery.runs.text.held_out import HELD_OUT
from maskery.runs.text.prepare import prepare_text

log = logging.getLogger(__name__)

# Where a run lies and how it was called; not how its model was made.
PLACES = ("output", "resume", "cache_dir")


def compare_folders(folders: Sequence[Path], against: Path | None = None) -> list[Row]:
    """Compare finished text runs.

    Raises:
        ConfigError: There are not two runs, or one is no finished text run.
        DataError: Their held-out texts or masks differ.
    """
    named = [*folders, *([] if against is None else [against])]
    # The later of equal keys would win: the name as it was given first is kept.
    places = {path.resolve(): path for path in reversed(named)}
    unique = [places[place] for place in dict.fromkeys(path.resolve() for path in named)]
    if len(unique) < 2:
        raise ConfigError("a comparison needs at least two runs; name the folders of two or more")
    configs = [(path, open_run(path).finished(TextRunConfig)) for path in unique]
    runs = [_scored(path, config) for path, config in configs]
    return compare_runs(runs, None if against is None else str(places[against.resolve()]))


def course_of(config: TextRunConfig) -> dict[str, Any]:
    """Return every setting but those of `PLACES`, as `training.seed`."""
    return _flat({name: v for name, v in to_plain(config).items() if name not in PLACES})


def _flat(plain: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in plain.items():
        inside = isinstance(value, dict)
        found |= _flat(value, f"{prefix}{name}.") if inside else {prefix + name: value}
    return found


def _scored(folder: Path, config: TextRunConfig) -> ScoredRun:
    path = folder / HELD_OUT
    if path.is_file():
        sums, identity = ExampleSums.read(path)
    else:
        log.warning("'%s' has kept no held-out sums; its model is scored now", folder)
        run = prepare_text(config, progress=False)
        sums, identity = run.score(open_model(folder).model), run.identity
        with contextlib.suppress(CheckpointError):  # a folder that is only read is compared, too
            write_bytes(path, sums.to_bytes(identity))
    try:
        tokenizer = json.loads(identity)["tokenizer_fingerprint"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"'{path}' does not say which tokenizer its masks are of; remove the file, and they "
            f"are computed again"
        ) from error
    return ScoredRun(name=str(folder), settings=course_of(config), tokenizer=tokenizer, sums=sums)
