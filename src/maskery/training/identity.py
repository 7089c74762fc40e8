"""What a run and its continuation must share, and what to say where they do not.

The identity of a run is a JSON object: every setting that decides its course, by name, and
fingerprints of its data. Checkpoints carry it, so that a refusal can name what differs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from maskery.core.errors import CheckpointError

MOST_TOLD = 3


def require_same_run(checkpoint: Path, stored: str, own: str) -> None:
    """Make sure that a checkpoint may be gone on from.

    Args:
        checkpoint: For the message.
        stored: The identity in the checkpoint.
        own: That of the run now.

    Raises:
        CheckpointError: They are not the same; it says which settings differ.
    """
    if stored == own:
        return
    found = differences(stored, own)
    told = f": {', '.join(found[:MOST_TOLD])}" if found else ""
    more = f" and {len(found) - MOST_TOLD} more" if len(found) > MOST_TOLD else ""
    raise CheckpointError(
        f"the checkpoint '{checkpoint}' belongs to a run with another model, corpus or "
        f"setting{told}{more}; repeat that run's settings, as its config.yaml has them, or start "
        f"afresh with another --output"
    )


def differences(stored: str, own: str) -> list[str]:
    """What differs between two identities, a phrase for each setting; empty if one is no JSON."""
    try:
        there, here = dict(_flat(json.loads(stored))), dict(_flat(json.loads(own)))
    except (ValueError, AttributeError, RecursionError):
        return []
    return [
        f"{path[-1]} is {_shown(here.get(path))} here and {_shown(there.get(path))} in the run"
        for path in sorted(there.keys() | here.keys())
        if there.get(path) != here.get(path)
    ]


def _flat(
    values: dict[str, Any], parents: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every setting within settings, by the names that lead to it."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, (*parents, name))
        else:
            yield (*parents, name), value


def _shown(value: Any) -> str:
    return "not set" if value is None else repr(value)
