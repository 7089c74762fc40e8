"""What a person-search run came to."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from maskery.evaluation.retrieval.evaluate import RetrievalFigures
from maskery.runs.frame.run_folder import MODEL
from maskery.training.loop import Summary


@dataclass(frozen=True, kw_only=True)
class PersonSearchResult:
    """What a person-search run came to.

    Attributes:
        folder: The run folder.
        best_step: After which step the model that is kept was the best on `val`.
        val: Its figures there.
        test: Its figures on the test split; None where there is none.
        summary: Steps, tokens and time.
        notes: One line for each kind of thing that was left out or looks odd.
    """

    folder: Path
    best_step: int
    val: RetrievalFigures
    test: RetrievalFigures | None
    summary: Summary
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """For `--json` and `evaluation.json`."""
        return {
            "run": str(self.folder),
            "model": str(self.folder / MODEL),
            "best_step": self.best_step,
            "val": asdict(self.val),
            "test": None if self.test is None else asdict(self.test),
            "training": asdict(self.summary),
            "notes": list(self.notes),
        }
