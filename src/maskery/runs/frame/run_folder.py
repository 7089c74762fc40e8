"""The run folder: `config.yaml`, `metrics.jsonl`, `checkpoints/`, `model/`, `evaluation.json`.

A run has its folder alone until it ends. The lock is the kernel's, on a hidden file: a process that
is killed lets go of it at that instant, so no lock is ever left behind; the file means nothing.
"""

import contextlib
import errno
import json
import logging
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from hashlib import blake2b
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from maskery.core.errors import CheckpointError, explained
from maskery.core.system import sha256_of, write_whole

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskery.core.processes import Processes

log = logging.getLogger(__name__)

MODEL = "model"
# Sums of the files of the model that the run has saved, and those files.
SUMS = "model_sums.json"
READ_BACK = ("*.safetensors", "*config.json", "tokenizer.json", "vocab.*")
TOKENIZER = "tokenizer"
EVALUATION = "evaluation.json"
LOCK = ".lock"
PREPARED = (TOKENIZER, f"{TOKENIZER}.partial", "config.yaml")  # all that preparing may leave
# The errors of a file system that has no locks.
NO_LOCKS = frozenset({errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.ENOSYS})


def fingerprint_of(numbers: "NDArray[Any]") -> str:
    """Return a hash of numbers that tell data apart, ids above all."""
    return blake2b(numbers.tobytes(), digest_size=16).hexdigest()


def default_folder(corpus: str, model: str) -> Path:
    """Return `runs/CORPUS-MODEL`."""
    stem = Path(corpus).name.partition(".")[0] or "corpus"
    name = f"{stem}-{Path(model).name or model}".replace("<", "").replace(">", "")
    return Path("runs") / re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-")


def has_model(folder: Path) -> bool:
    """Return True if a run has written its model, which it does at its end."""
    return (folder / MODEL / "config.json").is_file()


def model_sums(model: Path) -> dict[str, str]:
    """Return the sha256 of the files that a model is read from, by name."""
    files = (path for pattern in READ_BACK for path in model.glob(pattern))
    return {path.name: sha256_of(path) for path in sorted(files) if path.is_file()}


def warn_of_another_model(folder: Path, what_now: str) -> None:
    """Warn if the model in a run folder is not the one that the run has saved."""
    try:
        saved = json.loads((folder / SUMS).read_text("utf-8"))
    except FileNotFoundError:
        return  # an older run, or one without a model
    except (OSError, ValueError, RecursionError):
        saved = None
    # Earlier versions wrote none for a folder named by a relative path.
    if saved != {} and has_model(folder) and model_sums(folder / MODEL) != saved:
        log.warning("'%s' is not the model that the run saved; %s", folder / MODEL, what_now)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file whole or not at all; what cannot be written is a CheckpointError."""
    with explained(f"'{path}' cannot be written", "free some space there", kind=CheckpointError):
        write_whole(path, data)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text; see `write_bytes`."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, data: Any) -> None:
    """Write JSON whole or not at all; numbers that JSON lacks become null."""
    write_text(path, json.dumps(without_nan(data), indent=1) + "\n")


def without_nan(value: Any) -> Any:
    """Return plain data with null in place of numbers that JSON lacks (NaN, infinities)."""
    return each_leaf(
        value, lambda leaf: None if isinstance(leaf, float) and not math.isfinite(leaf) else leaf
    )


def each_text(value: Any, change: Callable[[str], str]) -> Any:
    """Return plain data with a function applied to every string; see `each_leaf`."""
    return each_leaf(value, lambda leaf: change(leaf) if isinstance(leaf, str) else leaf)


def each_leaf(value: Any, change: Callable[[Any], Any]) -> Any:
    """Return plain data with a function applied to every leaf; dataclasses become dictionaries."""
    if is_dataclass(value) and not isinstance(value, type):
        value = {one.name: getattr(value, one.name) for one in fields(value)}
    if isinstance(value, Mapping):
        return {name: each_leaf(item, change) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [each_leaf(item, change) for item in value]
    return change(value)


@dataclass(frozen=True, kw_only=True)
class HeldFolder:
    """A run folder and its lock."""

    path: Path
    lock: FileLock | None = None  # None in other processes than the main one, and without locks
    created: bool = False  # True if this process has made the folder
    fresh: bool = False  # True if nothing was in it when the lock was taken

    def discard(self) -> None:
        """Remove what preparing left, if nobody but this process can have left it."""
        if not self.fresh or self.lock is None:
            return
        for path in (self.path / name for name in PREPARED):
            shutil.rmtree(path, ignore_errors=True)
            if path.is_file():
                path.unlink()

    def release(self) -> None:
        """Release the lock, and delete the folder if we made it and it is still empty."""
        # Removed while it is locked: a process that has it open then sees that it is gone.
        (self.path / LOCK).unlink(missing_ok=True)
        if self.lock is not None:
            self.lock.release()
        if self.created:
            with contextlib.suppress(OSError):  # something is in it
                self.path.rmdir()


@contextlib.contextmanager
def held_run_folder(processes: "Processes", config: Any, default: Path) -> Iterator[HeldFolder]:
    """Choose and lock a folder once for all processes; only the main one holds the lock."""
    held: list[HeldFolder] = []

    def hold() -> str:
        held.append(open_folder(config.output, default, resume=config.resume == "auto"))
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
    """
    if output is None and not resume:
        for number in count(1):
            folder = default if number == 1 else default.with_name(f"{default.name}-{number}")
            held = None if _in_use(folder) else hold_folder(folder)
            if held is not None and held.fresh:
                return held
            if held is not None:
                held.release()
    folder = output or _newest(default)
    problem = f"the folder '{folder}' is in use: a run never writes over another"
    taken = CheckpointError(f"{problem}; continue it with --resume auto, or name another --output")
    if not resume and _in_use(folder):
        raise taken
    held = hold_folder(folder)
    if held is None:
        problem = f"the folder '{folder}' is in use by another process"
        raise CheckpointError(f"{problem}; wait for it, or name another --output")
    if not resume and not held.fresh:  # filled since the first look
        held.release()
        raise taken
    if not held.fresh:
        log.info("resuming '%s'", folder)
    return held


def repeated_folder(folder: Path) -> Path:
    """Return the folder that a repeated run is numbered after: `runs/a` for `runs/a-2`."""
    match = re.fullmatch(r"(.+)-[1-9]\d*", folder.name)
    first = folder.with_name(match[1]) if match else folder
    return first if first.is_dir() else folder


def _newest(default: Path) -> Path:
    """Return the last of the default's numbered folders that is not finished, else the last."""
    numbered = re.compile(re.escape(default.name) + r"(?:-([1-9]\d*))?")
    begun = {}
    for path in default.parent.iterdir() if default.parent.is_dir() else ():
        match = numbered.fullmatch(path.name)
        if match and path.is_dir() and _in_use(path):
            begun[int(match[1] or 1)] = path
    newest_first = [begun[number] for number in sorted(begun, reverse=True)]
    unfinished = (path for path in newest_first if not (path / EVALUATION).exists())
    return next(unfinished, next(iter(newest_first), default))


def hold_folder(folder: Path) -> HeldFolder | None:
    """Make a folder if it is not there, and lock it; None if another process holds its lock."""
    problem = f"the run folder '{folder}' cannot be made"
    with explained(problem, "name another --output", kind=CheckpointError):
        while True:
            created = not folder.is_dir()
            folder.mkdir(parents=True, exist_ok=True)
            if not os.access(folder, os.W_OK):
                raise PermissionError(13, "Permission denied")
            try:
                lock = _lock(folder)
                break
            except FileNotFoundError:
                continue  # its maker has just removed it
            except Timeout:
                if (folder / LOCK).exists():
                    return None
                # Whoever held it has removed it between our opening and our locking it.
    return HeldFolder(path=folder, lock=lock, created=created, fresh=not _in_use(folder))


def _lock(folder: Path) -> FileLock | None:
    """Lock a folder without waiting; None, and a warning, where the file system has no locks."""
    # The library's other lock, for file systems without any, outlives a process that is killed.
    lock = FileLock(folder / LOCK, blocking=False, fallback_to_soft=False, mode=0o666)
    try:
        lock.acquire()
    except OSError as error:
        if error.errno not in NO_LOCKS:  # as a Timeout, which has none
            raise
        problem = f"the file system of '{folder}' has no locks ({error.strerror})"
        log.warning("%s: make sure that no other process trains there", problem)
        return None
    return lock


def _in_use(folder: Path) -> bool:
    """Return True if the folder holds anything besides the lock file."""
    if not folder.is_dir():
        return folder.exists()
    return any(path.name != LOCK for path in folder.iterdir())
