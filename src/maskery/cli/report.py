"""`maskery report`, and the report that ends every run."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from maskery.cli.console import parse, set_up_logging
from maskery.core.errors import MaskeryError, MissingExtraError

log = logging.getLogger(__name__)


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
    from maskery.runs.frame.run_folder import has_model
    from maskery.runs.open_run import SAMPLES, open_run

    run = open_run(wanted.run)
    if has_model(run.folder) and (wanted.resample or not (run.folder / SAMPLES).is_file()):
        run.save_samples()
    print(f"the report is {write_report(run.folder)}")
    return 0


def finish_report(folder: Path) -> None:
    """Draw the report at the end of a run; if it cannot be drawn, warn and go on."""
    from maskery.report.page import write_report
    from maskery.runs.open_run import open_run

    log.info("drawing the report")
    try:
        open_run(folder).save_samples()
        log.info("the report is %s", write_report(folder))
    except MissingExtraError as error:
        log.warning("no report is drawn: %s; then: maskery report %s", error, folder)
    except MaskeryError as error:
        log.warning("no report is drawn: %s", error)
