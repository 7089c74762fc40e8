from __future__ import annotations

import ctypes
import gc
import os
import platform
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from maskery.core.errors import StoppedError
from maskery.core.system import (
    SIGNALS,
    is_main_process,
    keep_freed_memory,
    launched_rank,
    launched_world_size,
    quick_imports,
    replace_folder,
    signals_held,
    signals_stop,
    write_whole,
)

# Page faults of the tenth time that 64 MB are taken, written to and given back.
FAULTS = """
import ctypes, resource, sys
from maskery.core.system import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
for _ in range(10):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = libc.malloc(1 << 26)
    ctypes.memset(block, 1, 1 << 26)
    libc.free(block)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has these settings")
def test_memory_that_was_freed_is_not_mapped_anew() -> None:
    def faults(kind: str) -> int:
        command = [sys.executable, "-c", FAULTS, kind]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    assert faults("keep") < 10
    assert faults("leave") > 1000


def test_other_systems_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert keep_freed_memory() is False
    monkeypatch.setattr(sys, "platform", "linux")

    def missing(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert keep_freed_memory() is False


@pytest.fixture(autouse=True)
def _unfrozen() -> Iterator[None]:
    gc.unfreeze()
    yield
    gc.unfreeze()
    gc.enable()


def test_the_collector_waits_and_goes_on() -> None:
    with quick_imports():
        assert not gc.isenabled()
    assert gc.isenabled()


def test_only_the_first_block_is_left_out_of_later_passes() -> None:
    with quick_imports():
        pass
    frozen = gc.get_freeze_count()
    assert frozen > 0
    later: list[object] = []
    later.append(later)
    with quick_imports():
        pass
    assert gc.get_freeze_count() <= frozen


def test_it_goes_on_after_an_import_that_fails() -> None:
    with pytest.raises(ModuleNotFoundError), quick_imports():
        import no_such_module  # noqa: F401
    assert gc.isenabled()


def test_a_collector_that_was_off_stays_off() -> None:
    gc.disable()
    with quick_imports():
        pass
    assert not gc.isenabled()


def test_a_text_run_does_not_wait_for_datasets() -> None:
    code = "import sys, maskery.runs.text.run; sys.exit('datasets' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, (1, 0, True)),
        ({"WORLD_SIZE": "8"}, (1, 0, True)),  # of a cluster, not of a launcher
        ({"RANK": "0", "WORLD_SIZE": "1"}, (1, 0, True)),
        ({"RANK": "0", "WORLD_SIZE": "4"}, (4, 0, True)),
        ({"RANK": "3", "WORLD_SIZE": "4"}, (4, 3, False)),
    ],
)
def test_what_a_launcher_says(
    monkeypatch: pytest.MonkeyPatch,
    environment: dict[str, str],
    expected: tuple[int, int, bool],
) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert (launched_world_size(), launched_rank(), is_main_process()) == expected


PRINT_BLOCKED = "import signal; print(*sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])))"


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)]
)
def test_a_signal_unwinds_and_has_its_code(number: signal.Signals, code: int) -> None:
    undone = []

    def interrupted() -> None:
        with signals_stop("go on so"):
            try:
                signal.raise_signal(number)
            finally:
                undone.append(True)

    with pytest.raises(StoppedError, match=f"stopped by {number.name}; go on so") as stopped:
        interrupted()
    assert (undone, stopped.value.exit_code) == ([True], code)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with signals_stop(""):
            signal.raise_signal(signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_waits_until_the_processes_are_started(number: signal.Signals) -> None:
    reached = []

    def interrupted() -> None:
        with signals_held():
            signal.raise_signal(number)
            # Another thread, which blocks nothing, may be the one that gets it.
            begun.set()
            sender.join()
            reached.append("started")
        reached.append("not reached")

    def send() -> None:
        begun.wait()
        signal.raise_signal(number)

    begun, sender = threading.Event(), threading.Thread(target=send)
    sender.start()
    with pytest.raises(StoppedError, match=number.name), signals_stop(""):
        interrupted()
    assert reached == ["started"]


def test_what_is_started_while_signals_are_held_never_gets_them() -> None:
    command = [sys.executable, "-c", PRINT_BLOCKED]
    with signals_held():
        started = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    printed, _ = started.communicate()
    assert printed.split() == [str(int(number)) for number in sorted(SIGNALS)]
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, []) & set(SIGNALS)


@pytest.fixture
def events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the disk is told, in order, with paths below `tmp_path`."""
    told: list[str] = []
    real = {name: getattr(os, name) for name in ("fsync", "replace", "rename")}

    def name_of(path: object) -> str:
        return str(Path(str(path)).relative_to(tmp_path))

    def fsync(descriptor: int) -> None:
        inode = os.fstat(descriptor).st_ino
        found = [p for p in (tmp_path, *tmp_path.rglob("*")) if p.stat().st_ino == inode]
        told.append(f"flush {name_of(found[0])}")
        real["fsync"](descriptor)

    def move(how: str) -> object:
        def moved(source: object, target: object) -> None:
            told.append(f"{name_of(source)} -> {name_of(target)}")
            real[how](source, target)

        return moved

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", move("replace"))
    monkeypatch.setattr(os, "rename", move("rename"))
    return told


@pytest.mark.parametrize("before", [None, b"old"])
def test_a_file_is_flushed_before_it_has_its_name(
    tmp_path: Path, events: list[str], before: bytes | None
) -> None:
    path = tmp_path / "config.yaml"
    if before is not None:
        path.write_bytes(before)
    write_whole(path, b"new")
    assert path.read_bytes() == b"new"
    assert events == ["flush config.yaml.partial", "config.yaml.partial -> config.yaml", "flush ."]
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_cannot_be_flushed_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "config.yaml"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_is_flushed_with_all_in_it_before_it_has_its_name(
    tmp_path: Path, events: list[str]
) -> None:
    new, final = tmp_path / "model.partial", tmp_path / "model"
    for folder, text in ((new, "new"), (final, "old")):
        (folder / "inner").mkdir(parents=True)
        (folder / "a").write_text(text)
        (folder / "inner" / "b").write_text(text)
    replace_folder(new, final)
    assert events == [
        "flush model.partial/a",
        "flush model.partial/inner/b",
        "flush model.partial/inner",
        "flush model.partial",
        "model -> model.old",
        "model.partial -> model",
        "flush .",
    ]
    assert (final / "inner" / "b").read_text() == "new"
    assert list(tmp_path.iterdir()) == [final]
