"""The `maskery` command, a table of others, and what all of them share: flags, logging, tables.

Nothing heavy is imported here, so that `maskery --help` answers at once.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import io
import json
import logging
import os
import re
import socket
import sys
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlparse

from maskery.core.errors import ConfigError, MaskeryError, OtherProcessError, StoppedError
from maskery.core.system import is_main_process, keep_freed_memory, launched_rank

COMMANDS: dict[str, tuple[str, str]] = {
    "quickstart": ("quickstart", "train on an embedded corpus in three minutes, no downloads"),
    "train text": ("train:text", "adapt an encoder to your text, or train one from scratch"),
    "quickstart person-search": ("quickstart:person_search", "draw people and learn to find them"),
    "train person-search": ("train:person_search", "learn to find people by their descriptions"),
    "train pairs": ("train:pairs", "learn to fill the words of captions from their pictures"),
    "train": ("train", "repeat any run with --config RUN/config.yaml, in the next free folder"),
    "tokenize": ("tokenize", "prepare token shards of a large corpus, in parallel"),
    "data draw-people": ("quickstart:draw_people", "draw a dataset of people with captions"),
    "inspect": ("inspect", "look before a long run: lengths, waste, words, time and memory"),
    "evaluate": ("evaluate", "held-out loss, perplexity and accuracy, with intervals"),
    "compare": ("compare", "one table of text runs: settings, figures, paired differences"),
    "fill": ("fill", "fill the [MASK]s of a sentence"),
    "search": ("search", "find pictures in a folder by describing them"),
    "score": ("score", "how likely sentences and their words are; which of two is likelier"),
    "report": (
        "train:redraw",
        "draw the report of a run again: curves, figures, fills, changed words",
    ),
    "probe": ("probe", "how good an encoder is for your task, beside counted words"),
    "explain": ("explain", "show where a model looks for each word of a caption"),
    "playground": ("playground", "try a model in the browser, on this machine alone"),
    "convert": ("convert", "turn ALBEF, RaSa and BERT checkpoints into a model folder"),
}
MOVED = {
    "bench": "the benchmark is no longer part of the package; in a clone of its repository, run: "
    "PYTHONPATH=benchmarks python -m bench CORPUS"
}
# What a full or protected disk raises; everything else is a fault of ours and keeps its traceback.
DISK_TROUBLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)
# Read by tqdm where a progress bar goes to a file.
SECONDS_BETWEEN_LOGGED_BARS = "30"
# Seconds to wait for a name server; one that is there answers in far less.
LOOKUP_SECONDS = 3.0
ConfigT = TypeVar("ConfigT")
EXAMPLES = """examples:
  maskery quickstart
  maskery train text notes/*.txt --model minilm --epochs 3
  maskery train --config runs/notes-minilm/config.yaml
  maskery evaluate runs/notes-minilm
  maskery fill runs/notes-minilm "The [MASK] of the matter."
"""


def usage() -> str:
    """Return the text of `maskery --help`."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {about}" for name, (_, about) in COMMANDS.items()]
    return (
        "usage: maskery COMMAND ...\n\n"
        "Masked language modelling for text and image-text.\n\n"
        "commands:\n" + "\n".join(lines) + "\n\n"
        "maskery COMMAND --help says more.\n\n" + EXAMPLES
    )


def find_command(arguments: Sequence[str]) -> tuple[str, list[str]] | None:
    """Return the command that arguments start with, and the rest of them."""
    for count in (2, 1):
        name = " ".join(arguments[:count])
        if name in COMMANDS:
            return name, list(arguments[count:])
    return None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit code is 2 for anything the user can mend."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage(), end="")
        return 0
    if arguments[0] == "--version":
        from maskery import __version__

        print(f"maskery {__version__}")
        return 0
    found = find_command(arguments)
    if arguments[0] in MOVED:
        print(f"maskery {arguments[0]}: {MOVED[arguments[0]]}", file=sys.stderr)
        return 2
    if found is None:
        known = ", ".join(COMMANDS)
        print(f"maskery: there is no command '{arguments[0]}'; there are {known}", file=sys.stderr)
        return 2
    name, rest = found
    if not sys.stderr.isatty():  # a log file wants a line now and then, not every step
        os.environ.setdefault("TQDM_MININTERVAL", SECONDS_BETWEEN_LOGGED_BARS)
    if name.startswith(("train", "quickstart")):
        keep_freed_memory()
    try:
        module, _, function = COMMANDS[name][0].partition(":")
        command = getattr(importlib.import_module(f"maskery.cli.{module}"), function or "main")
        return int(command(rest))
    except StoppedError as end:
        if is_main_process():
            print(f"maskery {name}: {end}", file=sys.stderr)
        return end.exit_code
    except MaskeryError as error:
        # What is wrong with the arguments is found by every process, and said once.
        if is_main_process() or not isinstance(error, ConfigError | OtherProcessError):
            process = "" if is_main_process() else f" (process {launched_rank()})"
            print(f"maskery {name}{process}: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # Whoever read our output has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno not in DISK_TROUBLE:
            raise
        where = f" '{error.filename}'" if error.filename else ""
        print(
            f"maskery {name}: writing{where} failed ({error.strerror}); free some space or choose "
            f"another folder; a training run goes on with --resume auto",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print(f"maskery {name}: stopped", file=sys.stderr)
        return 130


def parse(
    kind: type[ConfigT],
    command: str,
    arguments: Sequence[str],
    default: ConfigT | None = None,
    *,
    program: str = "maskery",
) -> ConfigT:
    """Turn flags into a config; `--help` prints and ends the program.

    Raises:
        ConfigError: A flag is unknown or missing, or its value is wrong.
    """
    import tyro  # `maskery --help` does without it

    report = io.StringIO()
    try:
        with contextlib.redirect_stderr(report):
            parsed: ConfigT = tyro.cli(  # type: ignore[assignment]
                kind, prog=f"{program} {command}", args=list(arguments), default=default
            )
    except SystemExit as end:
        if not end.code:
            raise
        raise ConfigError(one_line(report.getvalue())) from end
    return parsed


def take_config(arguments: Sequence[str]) -> tuple[list[str], Path | None]:
    """Take `--config FILE` or `--config=FILE` out of the arguments, wherever it stands.

    Raises:
        ConfigError: No file is named.
    """
    rest: list[str] = []
    path = None
    words = iter(arguments)
    for word in words:
        flag, _, file = word.partition("=")
        if flag != "--config":
            rest.append(word)
            continue
        file = file or next(words, "")
        if not file:
            raise ConfigError("--config names no file; give the config.yaml of a run")
        path = Path(file)
    return rest, path


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


def set_up_logging(*, quiet: bool = False) -> None:
    """Write Maskery's messages as plain lines to standard error, and silence other libraries."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
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

    print(json.dumps(without_nan(data), indent=1, ensure_ascii=False))


def table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows with aligned columns: the first to the left, the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def percent(share: float | None) -> str:
    """Return a share in percent; nothing where it is not known."""
    return "" if share is None else f"{100 * share:.1f}%"


def prepare_output(path: Path, flag: str) -> None:
    """Make the folder of a file that a flag names, and check that the file can be written.

    Raises:
        ConfigError: It is a folder, or cannot be written.
    """
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


def shown(path: Path) -> str:
    """Return a path for print and JSON, with bytes that are no UTF-8 escaped."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


if __name__ == "__main__":
    sys.exit(main())
