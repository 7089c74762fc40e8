"""Shared settings: quiet libraries, a cache of the tests' own, the shared data where it is."""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# No test is timed: a busy machine must not fail one. CI tries the same examples every time, so that
# it fails for what a change did; new examples are tried wherever people run the tests.
settings.register_profile("maskery", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("maskery")
# Tiny models on workers that share two cores: more threads would only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Tests that run in the background begin with Ctrl-C ignored, and so would all that they start.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# Test helpers stand beside the tests that use them.
HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "models"), str(HERE / "support"), str(HERE.parent / "benchmarks")]
# Files that take long and would be among the last: begun first, lest a worker wait for the other.
FIRST = ("test_many_processes.py", "test_loop.py")
# Imports make millions of objects that stay; the collector would go over them again and again.
gc.disable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files first that take long; all else stays in its order."""
    gc.freeze()
    gc.enable()
    items.sort(key=lambda item: item.path.name not in FIRST)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Set up what a file's tests share in one worker only, unless --dist says otherwise."""
    if config.getoption("dist") != "load":
        return None
    from by_file import ByFile

    return ByFile(config, log)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's cache."""
    monkeypatch.setenv("MASKERY_CACHE", str(tmp_path / "cache"))


@pytest.fixture(autouse=True)
def _own_messages() -> None:
    """A command that an earlier test ran took Maskery's messages for the terminal."""
    logger = logging.getLogger("maskery")
    logger.setLevel(logging.NOTSET)
    logger.propagate, logger.handlers[:] = True, []


@pytest.fixture(scope="session")
def server() -> Iterator[Any]:
    """A process that has imported everything and forks for commands and scripts."""
    from fork_server import ForkServer

    with ForkServer() as found:
        yield found


# One for each module: while Playwright is open, asyncio.run fails in the tests of other modules.
@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A Chromium for the tests of one module; they are skipped where there is none."""
    from browser import open_browser

    with open_browser() as found:
        yield found
