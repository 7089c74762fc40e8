"""Checkpoints: written aside, flushed, checksummed and renamed into place; no pickle.

`checkpoints/step-00000500/` holds `model.safetensors`, `optimiser.safetensors`,
`extra.safetensors`, `state.json` and a `manifest.json` with the sha256 of each. A folder whose
files differ from its manifest is skipped, with a warning, for the one before it. Beside the newest
stay the one that `best.json` names, with the best held-out figure, and each with a file `kept`.
"""

import contextlib
import json
import logging
import shutil
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file

from maskery.core.errors import CheckpointError, explained
from maskery.core.system import replace_folder, sha256_of, write_whole
from maskery.training.snapshot import EXTRA, MODEL, OPTIMISER, STATE, Snapshot

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
BEST = "best.json"
KEPT = "kept"
FILES = (MODEL, OPTIMISER, EXTRA, STATE)
RETRY = "free some space there and continue with --resume auto"
HEADROOM = 1 << 20  # Bytes of a checkpoint besides its tensors: file headers, state, manifest


class Checkpoints:
    """The checkpoints of one run folder, written one at a time in a thread; `keep` stay."""

    def __init__(self, folder: Path, keep: int = 2, keep_at: Collection[int] = ()) -> None:
        self.folder, self.keep, self.keep_at = folder, keep, keep_at
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None
        # Steps and folders of what this process has written, for whoever empties the list.
        self.written: list[tuple[int, Path]] = []

    def begin(
        self, snapshot: Snapshot, *, must: bool, first: Callable[[], None] = lambda: None
    ) -> None:
        """Write a checkpoint in the thread, after calling `first` there, if the disk has room.

        The write before must be over (`finish`). With `must` it is tried in any case, because
        nothing comes after it; otherwise the checkpoint before is kept, with a warning.
        """
        assert self._writing is None

        def flush_and_write() -> None:
            problem = f"the lines of the run in '{self.folder.parent}' could not be brought to disk"
            with explained(problem, RETRY, kind=CheckpointError):
                first()
            self.write(snapshot)

        missing = self.room_for(snapshot)
        if missing is None or must:
            self._writing = self._thread.submit(flush_and_write)
            return
        newest = self.complete()[-1:]
        start = f"'{newest[0].name}'" if newest else "its beginning"
        place = (snapshot.position.step, missing, self.folder, start)
        told = "no checkpoint at step %d: %s in '%s'; the run goes on, and could be resumed from %s"
        log.warning(f"{told}; free some space", *place)

    def begin_mark_best(self, step: int) -> None:
        """Mark the checkpoint of a step as the best once it is written; in the thread."""
        writing = self._writing

        def mark() -> None:
            if writing is not None:
                writing.result()  # over, for there is one thread; it may have failed
            self.mark_best(step)

        self._writing = self._thread.submit(mark)

    @property
    def failed(self) -> bool:
        """Return True if the thread has ended with an error, which `finish` raises."""
        writing = self._writing
        return writing is not None and writing.done() and writing.exception() is not None

    def finish(self) -> None:
        """Wait until the last checkpoint is on disk; raises the error of its thread."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def room_for(self, snapshot: Snapshot) -> str | None:
        """Return what the disk lacks for a checkpoint, in words; None if there is room."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(self.folder).free
        except OSError:
            return None  # writing will say what is wrong
        tensors = (tensor for content in snapshot.files.values() for tensor in content.values())
        needed = HEADROOM + sum(tensor.nbytes for tensor in tensors)
        told = f"it takes {needed / 1e6:,.0f} MB and {free / 1e6:,.0f} MB are free"
        return told if free < needed else None

    def write(self, snapshot: Snapshot) -> Path:
        """Write a checkpoint; what was there stays until it is complete."""
        step = snapshot.position.step
        final = self.path_of(step)
        partial = final.with_name(f"{final.name}.partial")
        try:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            for name, tensors in snapshot.files.items():
                save_file(dict(tensors), partial / name)
            (partial / STATE).write_text(snapshot.position.to_json(), "utf-8")
            if step in self.keep_at:
                (partial / KEPT).touch()
            # The manifest comes last, because a folder with a manifest counts as complete.
            manifest = {file.name: sha256_of(file) for file in sorted(partial.iterdir())}
            write_whole(partial / MANIFEST, json.dumps(manifest).encode())
            replace_folder(partial, final)
        except (OSError, RuntimeError, SafetensorError) as error:
            shutil.rmtree(partial, ignore_errors=True)
            problem = f"the checkpoint '{final}' could not be written ({error})"
            raise CheckpointError(f"{problem}; {RETRY}") from error
        self._prune()
        self.written.append((step, final))
        return final

    def path_of(self, step: int) -> Path:
        """Return the folder of the checkpoint of a step, written or not."""
        return self.folder / f"step-{step:08d}"

    def mark_best(self, step: int) -> None:
        """Mark a checkpoint as the best, unless the disk had no room for it."""
        if self.best() == self.path_of(step) or not (self.path_of(step) / MANIFEST).is_file():
            return
        named = {"step": step, "checkpoint": self.path_of(step).name}
        write_whole(self.folder / BEST, json.dumps(named).encode())

    def best(self) -> Path | None:
        """Return the best checkpoint, if one is marked and there."""
        try:
            step = json.loads((self.folder / BEST).read_text("utf-8"))["step"]
            path = self.path_of(int(step))
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return path if (path / MANIFEST).is_file() else None

    def best_sound(self) -> Path | None:
        """Return the best checkpoint, or the newest sound one if that is missing or damaged."""
        best = self.best()
        sound = best is not None and _is_sound(best, "the best", "using the newest")
        return best if sound else self.newest_sound()

    def complete(self) -> list[Path]:
        """Return the finished checkpoints, oldest first; their content is not checked."""
        found = self.folder.glob("step-*")
        return sorted(p for p in found if p.suffix == "" and (p / MANIFEST).is_file())

    def newest_sound(self) -> Path | None:
        """Return the newest checkpoint whose checksums hold; warn of damaged ones."""
        paths = reversed(self.complete())
        return next((p for p in paths if _is_sound(p, "the", "using the one before it")), None)

    def to_resume_from(self) -> str | None:
        """Return `newest_sound`, or None if there is no checkpoint; all damaged is an error."""
        complete, path = self.complete(), self.newest_sound()
        if not complete:
            return None
        if path is None:
            fix = "start afresh with another --output"
            raise CheckpointError(f"every checkpoint in '{self.folder}' is damaged; {fix}")
        # `keep` would count them instead of those that the run writes next.
        for damaged in complete[complete.index(path) + 1 :]:
            aside = damaged.with_name(f"{damaged.name}.damaged")
            shutil.rmtree(aside, ignore_errors=True)
            with contextlib.suppress(OSError):  # a folder that cannot be written says so soon
                damaged.rename(aside)
        return str(path)

    def _prune(self) -> None:
        for leftover in (*self.folder.glob("step-*.old"), *self.folder.glob("step-*.partial")):
            shutil.rmtree(leftover, ignore_errors=True)
        best = self.best()
        for old in self.complete()[: -self.keep]:
            if old != best and not (old / KEPT).exists():
                # Away from its name first, so that no half of it is ever taken for a checkpoint.
                with contextlib.suppress(OSError):
                    gone = old.rename(old.with_name(f"{old.name}.old"))
                    shutil.rmtree(gone, ignore_errors=True)


def _is_sound(path: Path, which: str, instead: str) -> bool:
    damage = find_damage(path)
    if damage is not None:
        log.warning("%s checkpoint '%s' is damaged (%s); %s", which, path, damage, instead)
    return damage is None


def find_damage(path: Path) -> str | None:
    """Return what is wrong with a checkpoint, or None."""
    try:
        manifest: dict[str, str] = json.loads((path / MANIFEST).read_text("utf-8"))
        for name in FILES:
            if sha256_of(path / name) != manifest[name]:
                return f"{name} does not match its checksum"
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        return str(error)
    return None
