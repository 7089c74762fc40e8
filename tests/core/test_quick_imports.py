"""The collector waits while a command imports, and goes on afterwards."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Iterator

import pytest

from maskery.core.quick_imports import quick_imports


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
