from __future__ import annotations

import ctypes
import gc
import platform
import subprocess
import sys
from collections.abc import Iterator

import pytest

from maskery.core.startup import (
    is_main_process,
    keep_freed_memory,
    launched_rank,
    launched_world_size,
    quick_imports,
)

# Page faults of the tenth time that 64 MB are taken, written to and given back.
FAULTS = """
import ctypes, resource, sys
from maskery.core.startup import keep_freed_memory
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
