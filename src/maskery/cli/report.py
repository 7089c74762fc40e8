"""`maskery report`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from maskery.cli.console import parse, set_up_logging


@dataclass(frozen=True, kw_only=True)
class Report:
    """Draw the report of a run again: report.html and curves.png in its folder.

    Examples:
      maskery report runs/meditations-minilm
      maskery report runs/meditations-minilm --resample
    """

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """A run folder; a run that is still going gets a report of what there is."""
    resample: bool = False
    """Also compute the sample fills and changed words again, as after a change of the corpus."""


def main(arguments: Sequence[str]) -> int:
    """Parse, draw, report."""
    wanted = parse(Report, "report", arguments)
    set_up_logging(quiet=True)
    from maskery.report.page import write_report
    from maskery.runs.frame.config_file import SAMPLES, open_run
    from maskery.runs.frame.run_folder import has_model

    run = open_run(wanted.run)
    if has_model(run.folder) and (wanted.resample or not (run.folder / SAMPLES).is_file()):
        run.save_samples()
    print(f"the report is {write_report(run.folder)}")
    return 0
