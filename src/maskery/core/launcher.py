"""What a launcher (`torchrun`, `accelerate launch`) says before the processes have met.

Light to import: commands ask it before anything heavy is loaded.
"""

from __future__ import annotations

import os


def launched_world_size() -> int:
    """How many processes a launcher started for this run; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def launched_rank() -> int:
    """This process's number among them, from 0."""
    return int(os.environ["RANK"]) if launched_world_size() > 1 else 0


def is_main_process() -> bool:
    """Whether this is the process that prints and writes."""
    return launched_rank() == 0
