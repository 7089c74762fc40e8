"""How several workers of pytest-xdist share the tests: file by file."""

from __future__ import annotations

from typing import Any

from xdist.scheduler import LoadFileScheduling

# Folders whose tests share servers and trained runs.
TOGETHER = ("tests/playground/", "tests/report/")


class ByFile(LoadFileScheduling):
    """Gives each file, or folder of `TOGETHER`, to one worker, in the order of collection."""

    def __init__(self, config: Any, log: Any = None) -> None:
        super().__init__(config, log)
        config.option.loadscopereorder = False  # the number of tests says little about their time

    def _split_scope(self, nodeid: str) -> str:
        file: str = super()._split_scope(nodeid)
        return next((folder for folder in TOGETHER if file.startswith(folder)), file)
