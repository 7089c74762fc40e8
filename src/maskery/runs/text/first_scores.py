"""What the initial model scored on the held-out text, kept in the run folder.

A resumed run compares with it as the first one did, and need not score the initial model again.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from maskery.core.errors import CheckpointError
from maskery.core.processes import join_processes
from maskery.evaluation.text.masked import COLUMNS, ExampleSums
from maskery.runs.frame.run_folder import write_bytes

FILE = "before.safetensors"


def first_scores(
    folder: Path, identity: str, score: Callable[[], ExampleSums], *, resume: bool
) -> ExampleSums:
    """The initial model's held-out sums: read where this very run has written them, else scored.

    Args:
        folder: Of the run.
        identity: Of the run; a file of another one is not read.
        score: Scores the initial model; every process of the run takes part.
        resume: Whether what is there may be read.

    Raises:
        CheckpointError: They could not be written, or the main process alone can read them.
    """
    path, processes = folder / FILE, join_processes()
    kept = _read(path, identity) if resume else None
    if resume and processes.on_main(lambda: None if kept is None else "sound"):
        if kept is None:
            raise CheckpointError(
                f"'{path}' can be read by the main process and not by process {processes.rank}; "
                f"put the run folder where all processes see it"
            )
        return kept
    scored = score()
    if processes.is_main:
        tensors = {"ids": scored.ids, "sums": scored.sums}
        write_bytes(path, save(tensors, metadata={"identity": identity}))
    return scored


def _read(path: Path, identity: str) -> ExampleSums | None:
    """The sums of a file; None where it is missing, damaged or of another run."""
    try:
        with safe_open(path, framework="numpy") as stored:
            if (stored.metadata() or {}).get("identity") != identity:
                return None
            ids, sums = stored.get_tensor("ids"), stored.get_tensor("sums")
    except (OSError, SafetensorError):
        return None
    if ids.dtype != "uint64" or sums.dtype != "float64" or sums.shape != (len(ids), len(COLUMNS)):
        return None
    return ExampleSums(ids=ids, sums=sums)
