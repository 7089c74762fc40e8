"""Files that commands write: looked at before the work begins, and named once it is done."""

from __future__ import annotations

import os
from pathlib import Path

from maskery.core.errors import ConfigError


def prepare_output(path: Path, flag: str) -> None:
    """Make the folder of a file, and be sure that the file can be written.

    Args:
        path: The file; what is in it stays.
        flag: That named it.

    Raises:
        ConfigError: It is a folder, or cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        there = path.exists()
        with path.open("ab"):
            pass
        if not there:
            path.unlink()
    except OSError as error:
        raise ConfigError(
            f"{flag} is '{path}', and no file can be written there ({error.strerror}); name another"
        ) from error


def shown(path: Path) -> str:
    """A path for print and JSON: what is not UTF-8 in it is escaped."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")
