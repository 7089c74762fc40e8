"""One process at a time, nothing left behind, and file systems that have no locks."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from maskery.core.errors import CheckpointError
from maskery.runs.frame.run_folder import LOCK, hold_folder


def test_only_one_has_the_lock_and_its_release_leaves_nothing(tmp_path: Path) -> None:
    first = hold_folder(tmp_path)
    assert first is not None
    assert first.lock is not None
    assert hold_folder(tmp_path) is None
    first.release()
    assert list(tmp_path.iterdir()) == []
    second = hold_folder(tmp_path)
    assert second is not None
    second.release()


def test_another_process_is_kept_out_until_the_holder_is_killed(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; "
        "from maskery.runs.frame.run_folder import hold_folder; "
        "held = hold_folder(Path(sys.argv[1])); print(held is not None, flush=True); "
        "sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "True\n"
        assert hold_folder(tmp_path) is None
        holder.kill()
    assert (tmp_path / LOCK).exists()
    own = hold_folder(tmp_path)
    assert own is not None
    own.release()


def test_a_lock_on_a_file_that_was_removed_meanwhile_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its holder removes the file between our opening and our locking it."""
    real, calls = fcntl.flock, []

    def late(descriptor: int, operation: int) -> None:
        calls.append(os.fstat(descriptor).st_ino)
        if len(calls) == 1:
            (tmp_path / LOCK).unlink()
        real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    lock = hold_folder(tmp_path)
    assert lock is not None
    assert len(calls) == 2
    assert (tmp_path / LOCK).stat().st_ino == calls[1]
    lock.release()


@pytest.mark.parametrize("number", [errno.ENOTSUP, errno.ENOLCK, errno.ENOSYS])
def test_a_file_system_without_locks_is_warned_about(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    number: int,
) -> None:
    def cannot(descriptor: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", cannot)
    with caplog.at_level(logging.WARNING, logger="maskery"):
        lock = hold_folder(tmp_path)
    assert lock is not None
    assert lock.lock is None
    assert "has no locks" in caplog.text
    lock.release()
    assert list(tmp_path.iterdir()) == []


def test_other_errors_are_not_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(descriptor: int, operation: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", broken)
    with pytest.raises(CheckpointError, match="Input/output error"):
        hold_folder(tmp_path)
