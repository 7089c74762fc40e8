"""The base of all commands, and what they share: flags, logging, JSON and tables.

Nothing heavy is imported here, so that `maskery --help` answers at once.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import re
import socket
import sys
import threading
import warnings
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar
from urllib.parse import urlparse

from maskery.core.errors import ConfigError, harmless
from maskery.core.ranges import take_text_as_paths
from maskery.core.system import is_main_process

if TYPE_CHECKING:
    from maskery.report.tables import Table

# Seconds to wait for a name server; one that is there answers in far less.
LOOKUP_SECONDS = 3.0
ConfigT = TypeVar("ConfigT")


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command: its fields are its flags, and its docstring is its help."""

    # False: messages of progress are shown, unless --json is given.
    quiet: ClassVar[bool] = True

    json: bool = False
    """Print JSON on standard output."""

    def execute(self) -> None:
        """Do what the flags say, and print the result."""
        raise NotImplementedError

    def answer(self, data: Any, text: str) -> None:
        """Print a result: with --json its data (also dataclasses, arrays, paths), else its text."""
        if self.json:
            print_json(data)
        else:
            print(harmless(text))
        # A page may be served, or a report drawn, while somebody waits for this in a pipe.
        sys.stdout.flush()


def parse(
    kind: type[ConfigT],
    command: str,
    arguments: Sequence[str],
    default: ConfigT | None = None,
    *,
    program: str = "maskery",
) -> ConfigT:
    """Turn flags into a config; `--help` prints and ends the program."""
    import tyro  # `maskery --help` does without it

    report = io.StringIO()
    try:
        with contextlib.redirect_stderr(report):
            parsed: ConfigT = tyro.cli(  # type: ignore[assignment]
                kind, prog=f"{program} {command}", args=gathered(arguments), default=default
            )
    except SystemExit as end:
        if not end.code:
            raise
        raise ConfigError(one_line(report.getvalue())) from end
    take_text_as_paths(parsed)  # type: ignore[arg-type]
    return parsed


def gathered(arguments: Sequence[str], flag: str = "--eval-data") -> list[str]:
    """Return arguments in which the values of a flag that is given several times stand together.

    The parser would keep those of the last time alone.
    """
    if sum(word.partition("=")[0] == flag for word in arguments) < 2:
        return list(arguments)
    others, values, taken = [], [], False
    for word in arguments:
        name, sign, value = word.partition("=")
        if name == flag:
            values += [value] if sign else []
            taken = not sign
        elif taken and not word.startswith("--"):
            values.append(word)
        else:
            taken = False
            others.append(word)
    return [*others, flag, *values]


def one_line(report: str) -> str:
    """Return the flag parser's boxed report as one line."""
    # Where its stream has no encoding, as here, the parser draws in ASCII.
    boxes = re.compile(r"^╭─* *(.*?) *─*╮$|^╰.*╯$|[─-]{3,}|│", re.MULTILINE)
    words = " ".join(boxes.sub(" ", report).split())
    return words.replace("For full helptext, see", "see").replace("For full helptext, run", "see")


def go_offline_without_a_network() -> None:
    """Tell the hub's library where no network answers; it would try for half a minute."""
    if "HF_HUB_OFFLINE" in os.environ:
        return
    endpoint = urlparse(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    found = threading.Event()

    def look_up() -> None:
        with contextlib.suppress(OSError):
            socket.getaddrinfo(endpoint.hostname, endpoint.port or 443)
            found.set()

    # A name server that never answers would keep everyone waiting, local folders or not.
    asking = threading.Thread(target=look_up, daemon=True)
    asking.start()
    asking.join(LOOKUP_SECONDS)
    if not found.is_set():
        os.environ["HF_HUB_OFFLINE"] = "1"


class _Harmless(logging.Formatter):
    """Formats messages so that a name in them cannot steer the terminal."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the message."""
        return harmless(super().format(record))


def set_up_logging(*, quiet: bool = False) -> None:
    """Write Maskery's messages as plain lines to standard error, and silence other libraries."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Harmless("%(message)s"))
    logger = logging.getLogger("maskery")
    logger.handlers[:] = [handler]
    logger.propagate = False
    # Every process warns of the same things; one of them says so.
    logger.setLevel(logging.WARNING if quiet else logging.INFO)
    if not is_main_process():
        logger.setLevel(logging.ERROR)
    go_offline_without_a_network()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    warnings.filterwarnings("ignore", module=r"(transformers|torch|accelerate|datasets)\b")


def print_json(data: Any) -> None:
    """Print one JSON document; numbers that JSON lacks become null."""
    from maskery.runs.frame.run_folder import without_nan

    def plain(value: Any) -> Any:
        if is_dataclass(value) and not isinstance(value, type):
            return without_nan(asdict(value))
        return shown(value) if isinstance(value, Path) else value.tolist()

    print(json.dumps(without_nan(data), indent=1, ensure_ascii=False, default=plain))


def table(rows: Sequence[Sequence[str]], left: Collection[int] = (0,)) -> str:
    """Return rows with aligned columns: some to the left, as texts are, the others to the right."""
    columns = []
    for index, column in enumerate(zip(*rows, strict=True)):
        align = str.ljust if index in left else str.rjust
        columns.append([align(cell, max(map(len, column))) for cell in column])
    return "\n".join("  ".join(cells).rstrip() for cells in zip(*columns, strict=True))


def as_text(shown: Table, *, titled: bool = False) -> str:
    """Return a table of figures with its notes below, and if wanted with its title above."""
    heading = [shown.title] if titled and shown.title else []
    return "\n".join([*heading, table(shown.lines()), *shown.notes])


def as_texts(tables: Iterable[Table]) -> str:
    """Return several tables with their titles."""
    return "\n\n".join(as_text(one, titled=True) for one in tables)


def percent(share: float | None) -> str:
    """Return a share in percent; nothing where it is not known."""
    return "" if share is None else f"{100 * share:.1f}%"


def prepare_output(path: Path, flag: str) -> None:
    """Make the folder of a file that a flag names, and check that the file can be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        there = path.exists()
        with path.open("ab"):
            pass
        if not there:
            path.unlink()
    except OSError as error:
        raise ConfigError(
            f"{flag} is '{path}', and no file can be written there ({error.strerror}); name another"
        ) from error


def check_png(path: Path, flag: str) -> None:
    """Refuse a picture's file with another ending."""
    if path.suffix.lower() != ".png":
        raise ConfigError(f"{flag} is '{path}': it is written as PNG; end it with .png")


def shown(path: Path) -> str:
    """Return a path for print and JSON, with bytes that are no UTF-8 escaped."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")
