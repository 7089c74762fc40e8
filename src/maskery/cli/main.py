"""The `maskery` command, a table of others.

Nothing heavy is imported here, so that `maskery --help` answers at once.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import sys
from collections.abc import Sequence

from maskery.cli.command import parse, set_up_logging
from maskery.core.errors import (
    ConfigError,
    MaskeryError,
    OtherProcessError,
    StoppedError,
    reason_of,
)
from maskery.core.system import is_main_process, keep_freed_memory, launched_rank

# The module of each command with its class, or with a function that makes it of the arguments, as
# where one command is several; and what it does.
COMMANDS: dict[str, tuple[str, str]] = {
    "quickstart": ("quickstart:Text", "train on an embedded corpus in three minutes, no downloads"),
    "train text": ("train:text", "adapt an encoder to your text, or train one from scratch"),
    "quickstart person-search": ("quickstart:People", "draw people and learn to find them"),
    "quickstart pairs": ("quickstart:Emoji", "learn words and pictures from emoji"),
    "train person-search": ("train:person_search", "learn to find people by their descriptions"),
    "train pairs": ("train:pairs", "learn to fill the words of captions from their pictures"),
    "train": ("train:repeat", "repeat any run with --config FILE, in the next free folder"),
    "tokenize": ("tokenize:Tokenize", "prepare token shards of a large corpus, in parallel"),
    "data draw-people": ("quickstart:DrawPeople", "draw a dataset of people with captions"),
    "inspect": (
        "inspect:Inspect",
        "look before a long run: lengths, waste, words, time and memory",
    ),
    "evaluate": ("evaluate:evaluate", "held-out loss, perplexity and accuracy, with intervals"),
    "compare": ("compare:Compare", "one table of text runs: settings, figures, paired differences"),
    "sweep": ("compare:Sweep", "train a run with several values of its settings, then compare"),
    "fill": ("fill:Fill", "fill the [MASK]s of a sentence"),
    "search": ("search:Search", "find pictures in a folder by describing them"),
    "score": ("score:Score", "how likely sentences and their words are; which of two is likelier"),
    "report": ("train:Report", "draw a run's report again: curves, figures, fills, changed words"),
    "probe": ("probe:Probe", "how good an encoder is for your task, beside counted words"),
    "explain": ("explain:Explain", "show where a model looks for each word of a caption"),
    "playground": ("playground:Playground", "try a model in the browser, on this machine alone"),
    "convert": (
        "convert:Convert",
        "turn a checkpoint of ALBEF, RaSa, BERT, ... into a model folder",
    ),
}
MOVED = {
    "bench": "the benchmark is no longer part of the package; in a clone of its repository, run: "
    "PYTHONPATH=benchmarks python -m bench CORPUS"
}
# What a full or protected disk raises; everything else is a fault of ours and keeps its traceback.
DISK_TROUBLE = (
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG,
)  # fmt: skip
# Read by tqdm where a progress bar goes to a file.
SECONDS_BETWEEN_LOGGED_BARS = "30"
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
    if sys.stdout is None:
        return complain(
            "", "standard output is closed, so no result could be seen; send it to a file"
        )
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage(), end="")
        return 0
    if arguments[0] == "--version":
        from maskery import __version__

        print(f"maskery {__version__}")
        return 0
    found = find_command(arguments)
    if arguments[0] in MOVED:
        return complain(arguments[0], MOVED[arguments[0]])
    if found is None:
        known = ", ".join(COMMANDS)
        return complain("", f"there is no command '{arguments[0]}'; there are {known}")
    name, rest = found
    try:
        run(name, rest)
        return 0
    except StoppedError as end:
        return complain(name, end, end.exit_code) if is_main_process() else end.exit_code
    except MaskeryError as error:
        if is_main_process():
            return complain(name, error)
        # Every process finds the same fault in the arguments; the first one says so.
        if not isinstance(error, ConfigError | OtherProcessError):
            complain(f"{name} (process {launched_rank()})", error)
        return 2
    except BrokenPipeError:
        _forget_output()  # whoever read it has seen enough
        return 0
    except OSError as error:
        if error.errno not in DISK_TROUBLE:
            raise
        _forget_output()
        where = f" '{error.filename}'" if error.filename else ""
        return complain(
            name,
            f"writing{where} failed ({error.strerror}); free some space or choose another folder; "
            f"a training run goes on with --resume auto",
        )
    except KeyboardInterrupt:
        return complain(name, "stopped", 130)
    except Exception as error:
        # Weights are written by a library with an error of its own, too heavy to import here.
        if type(error).__name__ != "SafetensorError" or "I/O error" not in str(error):
            raise
        return complain(name, f"writing weights failed ({reason_of(error)}); free some space")


def _forget_output() -> None:
    """Let what is still to be printed go nowhere: it cannot be written, and the end would fail."""
    with contextlib.suppress(OSError):  # a stream that is no file, as in a notebook
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def run(name: str, arguments: Sequence[str]) -> None:
    """Read the flags of a command, set up the process for it, and execute it."""
    if not sys.stderr.isatty():  # a log file wants a line now and then, not every step
        os.environ.setdefault("TQDM_MININTERVAL", SECONDS_BETWEEN_LOGGED_BARS)
    if name.startswith(("train", "quickstart", "sweep")):
        keep_freed_memory()
    module, _, made = COMMANDS[name][0].partition(":")
    command = getattr(importlib.import_module(f"maskery.cli.{module}"), made)
    wanted = parse(command, name, arguments) if isinstance(command, type) else command(arguments)
    set_up_logging(quiet=wanted.quiet or wanted.json)
    wanted.execute()


def complain(name: str, message: object, code: int = 2) -> int:
    """Print one line on standard error. Returns the exit code."""
    print(f"{f'maskery {name}'.rstrip()}: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
