"""`maskery playground`."""

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from maskery.cli.main import Command
from maskery.core.ranges import Range
from maskery.core.system import quick_imports


@dataclass(frozen=True, kw_only=True)
class Playground(Command):
    """Try a model in the browser: mask words, read predictions, compare two models.

    Serves a page on this machine alone, which asks for nothing outside of it. Ctrl-C ends it.

    Examples:
      maskery playground runs/meditations-minilm
      maskery playground runs/a --against bert-base-uncased
      maskery playground runs/people --gallery photos --port 9000
    """

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """A run folder, a model folder or a hub name."""
    against: str | None = None
    """Another model, shown beside it."""
    gallery: Path | None = None
    """A folder of pictures to search, for a model that looks at pictures."""
    cache_dir: Path | None = None
    """The folder of the gallery's index. Default: $MASKERY_CACHE, or ~/.cache/maskery."""
    port: Annotated[int, Range(0, 65_535)] = 8765
    """The port of the page, on 127.0.0.1; 0 for any free port."""

    def execute(self) -> None:
        """Open the models, and serve the page until Ctrl-C."""
        with quick_imports():
            from maskery.data.tokenise import default_cache_dir
            from maskery.playground.app import serve
            from maskery.playground.session import Session

        names = [name for name in (self.model, self.against) if name is not None]
        cache_dir = self.cache_dir or default_cache_dir()
        command = shlex.join(["maskery", *sys.argv[1:]])
        session = Session(*names, gallery=self.gallery, cache_dir=cache_dir, command=command)
        serve(session, self.port, self.tell)

    def tell(self, address: str) -> None:
        """Print where the page is."""
        self.answer({"address": address}, f"the playground is at {address} (Ctrl-C ends it)")
