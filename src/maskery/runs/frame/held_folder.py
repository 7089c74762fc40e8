"""Which folder a run gets, and that it has it alone until it ends."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from maskery.core.errors import CheckpointError
from maskery.runs.frame.folder_lock import LOCK, FolderLock, lock_folder
from maskery.runs.frame.run_folder import CONFIG, EVALUATION, TOKENIZER

if TYPE_CHECKING:
    from maskery.core.processes import Processes

log = logging.getLogger(__name__)

# What preparing a run leaves in its folder.
PREPARED = (TOKENIZER, f"{TOKENIZER}.partial", CONFIG)


@dataclass(frozen=True, kw_only=True)
class HeldFolder:
    """A run folder, and what this process knows of it.

    Attributes:
        path: The folder.
        lock: Keeps other runs out; None in processes that are not the main one.
        created: Whether this process has made the folder.
        fresh: Whether nothing was in it when the lock was taken.
    """

    path: Path
    lock: FolderLock | None = None
    created: bool = False
    fresh: bool = False

    def discard(self) -> None:
        """Remove what preparing left, where this process alone can have left it."""
        if self.lock is None or not (self.fresh and self.lock.exclusive):
            return
        for name in PREPARED:
            path = self.path / name
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

    def release(self) -> None:
        """Let others in; a folder that was made here and that nothing came into goes."""
        if self.lock is not None:
            self.lock.release()
        if self.created:
            with contextlib.suppress(OSError):  # something is in it
                self.path.rmdir()


@contextlib.contextmanager
def held_run_folder(
    processes: Processes, output: Path | None, default: Path, *, resume: bool
) -> Iterator[HeldFolder]:
    """`open_folder` once for all processes: the main one holds it, the others get its path.

    Raises:
        CheckpointError: It is in use, or cannot be written.
    """
    held: list[HeldFolder] = []

    def hold() -> str:
        held.append(open_folder(output, default, resume=resume))
        return str(held[0].path)

    try:
        path = processes.on_main(hold)
        yield held[0] if held else HeldFolder(path=Path(str(path)))
    finally:
        for folder in held:
            folder.release()


def open_folder(output: Path | None, default: Path, *, resume: bool) -> HeldFolder:
    """Choose the run folder, make it and lock it.

    Without `output`, a new run gets the first of the default's numbered folders that is free, and
    one that is resumed the last of them that is not finished.

    Raises:
        CheckpointError: It is in use, or cannot be written.
    """
    if output is None and not resume:
        return _next_free(default)
    folder = output or _newest(default)
    if not resume and _in_use(folder):
        raise _taken(folder)
    held = _hold(folder)
    if held is None:
        raise CheckpointError(
            f"the folder '{folder}' is in use by another process; wait for it, or name another "
            f"--output"
        )
    if not resume and not held.fresh:  # filled since the first look
        held.release()
        raise _taken(folder)
    if not held.fresh:
        log.info("resuming '%s'", folder)
    return held


def _newest(default: Path) -> Path:
    """The last of the default's numbered folders that is not finished, else the last of all."""
    numbered = re.compile(re.escape(default.name) + r"-([1-9]\d*)")
    begun = {1: default} if _in_use(default) else {}
    for path in default.parent.iterdir() if default.parent.is_dir() else ():
        match = numbered.fullmatch(path.name)
        if match and path.is_dir() and _in_use(path):
            begun[int(match[1])] = path
    newest_first = [begun[number] for number in sorted(begun, reverse=True)]
    unfinished = (path for path in newest_first if not (path / EVALUATION).exists())
    return next(unfinished, next(iter(newest_first), default))


def _next_free(default: Path) -> HeldFolder:
    """The first of the default's numbered folders that nobody has."""
    for number in count(1):
        folder = default if number == 1 else default.with_name(f"{default.name}-{number}")
        held = None if _in_use(folder) else _hold(folder)
        if held is not None and held.fresh:
            return held
        if held is not None:
            held.release()
    raise AssertionError("numbers do not end")


def _hold(folder: Path) -> HeldFolder | None:
    """Make a folder if it is not there, and lock it; None where another process holds it.

    Raises:
        CheckpointError: It cannot be made or written.
    """
    try:
        while True:
            created = _make(folder)
            try:
                lock = lock_folder(folder)
                break
            except FileNotFoundError:
                continue  # its maker has just removed it
    except OSError as error:
        raise CheckpointError(
            f"the run folder '{folder}' cannot be made ({error.strerror}); name another --output"
        ) from error
    if lock is None:
        return None
    return HeldFolder(path=folder, lock=lock, created=created, fresh=not _in_use(folder))


def _make(folder: Path) -> bool:
    """Make a folder that can be written; whether it was not there."""
    created = False
    try:
        folder.mkdir(parents=True)
        created = True
    except FileExistsError:
        if not folder.is_dir():
            raise
    if not os.access(folder, os.W_OK):
        raise PermissionError(13, "Permission denied")
    return created


def _in_use(folder: Path) -> bool:
    """Whether there is anything; the file of a lock is nothing."""
    if not folder.is_dir():
        return folder.exists()
    return any(path.name != LOCK for path in folder.iterdir())


def _taken(folder: Path) -> CheckpointError:
    return CheckpointError(
        f"the folder '{folder}' is in use: a run never writes over another; continue it with "
        f"--resume auto, or name another --output"
    )
