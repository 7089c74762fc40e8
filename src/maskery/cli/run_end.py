"""The end of every `maskery train`: the report, what machines read, how long it was."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from maskery.cli.console import print_json
from maskery.cli.report import finish_report
from maskery.core.startup import is_main_process

if TYPE_CHECKING:
    from maskery.training.loop import Summary


class RunResult(Protocol):
    """What the result of any kind of run tells."""

    @property
    def folder(self) -> Path:
        """The run folder."""

    @property
    def summary(self) -> Summary:
        """Its steps and time."""

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""


def told_by_figures(result: RunResult, *, as_json: bool, notes: Sequence[str] = ()) -> bool:
    """Draw the report, then print JSON or how long the run was; on the main process.

    Args:
        result: Of a run that is over.
        as_json: Print it as JSON, and nothing else.
        notes: What was left out on the way, a line each.

    Returns:
        Whether its figures are to be printed next.
    """
    if not is_main_process():
        return False
    finish_report(result.folder)
    if as_json:
        print_json(result.to_json())
        return False
    for line in (*length_of(result.summary), *notes):
        print(line)
    return True


def length_of(summary: Summary) -> list[str]:
    """Steps, tokens and time in a line; none where no time was spent."""
    if summary.resumed_from >= summary.steps:
        return [f"the run was already finished: {summary.steps} steps"]
    if summary.seconds <= 0:
        return []
    return [
        f"{summary.steps} steps; {summary.tokens:,} tokens in {summary.seconds:,.0f} s, "
        f"{summary.tokens / summary.seconds:,.0f} tokens/s"
    ]
