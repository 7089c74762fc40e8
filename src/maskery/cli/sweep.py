"""`maskery sweep`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from maskery.cli.compare import Outputs, show
from maskery.cli.main import parse, set_up_logging
from maskery.core.system import quick_imports


@dataclass(frozen=True, kw_only=True)
class Sweep(Outputs):
    """Train a text run with several values of its settings, one after the other, and compare.

    Every combination of the values is a run in a folder of its own, SWEEP/NAME-VALUE. The same
    command goes on after an interruption: finished runs are kept, an interrupted one resumes.

    Examples:
      maskery sweep runs/notes-minilm/config.yaml --over learning_rate=1e-4,3e-4
      maskery sweep notes.yaml --over mask_rate=0.15,0.3 --over seed=0,1 --output runs/rates
    """

    config: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="CONFIG")]
    """The config.yaml of a text run."""
    over: tyro.conf.UseAppendAction[tuple[str, ...]]
    """A setting and its values, as mask_rate=0.15,0.3; may be given several times."""
    output: Path | None = None
    """The folder of the runs' folders. Default: that of CONFIG's run, with -sweep after its
    name."""


def main(arguments: Sequence[str]) -> int:
    """Parse, train what is missing, compare, report."""
    wanted = parse(Sweep, "sweep", arguments)
    set_up_logging(quiet=wanted.json)
    wanted.check()
    with quick_imports():
        from maskery.runs.text.compare import compare_folders
        from maskery.runs.text.sweep import plan_sweep, run_sweep
    runs = plan_sweep(wanted.config, wanted.over, wanted.output)
    show(compare_folders(run_sweep(runs, progress=not wanted.json)), wanted)
    return 0
