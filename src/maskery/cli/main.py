"""The `maskery` command, a table of others; their base, and the flags and messages that they share.

Nothing heavy is imported here, so that `maskery --help` answers at once.
"""

import contextlib
import errno
import importlib
import io
import logging
import os
import re
import socket
import sys
import threading
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar
from urllib.parse import urlparse

from maskery.cli.output import print_json
from maskery.core.errors import (
    ConfigError,
    MaskeryError,
    OtherProcessError,
    StoppedError,
    harmless,
    meant,
    reason_of,
)
from maskery.core.ranges import Settings, refuse_idle
from maskery.core.registry import trust
from maskery.core.system import is_main_process, keep_freed_memory, launched_rank

# Of each command: its module and class, or a function that makes it of the arguments; its help.
COMMANDS: dict[str, tuple[str, str]] = {
    "quickstart": ("quickstart:Text", "train on an embedded corpus in three minutes, no downloads"),
    "train text": ("train:text", "adapt an encoder to your text, or train one from scratch"),
    "quickstart person-search": ("quickstart:People", "draw people and learn to find them"),
    "quickstart pairs": ("quickstart:Emoji", "learn words and pictures from emoji"),
    "train person-search": ("train:person_search", "learn to find people by their descriptions"),
    "train pairs": ("train:pairs", "learn to fill the words of captions from their pictures"),
    "train": ("train:repeat", "repeat any run with --config FILE, in the next free folder"),
    "tokenize": ("corpus:Tokenize", "prepare token shards of a large corpus, in parallel"),
    "data draw-people": ("quickstart:DrawPeople", "draw a dataset of people with captions"),
    "inspect": ("corpus:Inspect", "look before a long run: lengths, waste, words, time and memory"),
    "evaluate": ("evaluate:evaluate", "held-out loss, perplexity and accuracy, with intervals"),
    "compare": ("compare:Compare", "one table of text runs: settings, figures, paired differences"),
    "merge": ("compare:Merge", "merge the weights of models, and measure what lies between two"),
    "sweep": ("compare:Sweep", "train a run with several values of its settings, then compare"),
    "fill": ("words:Fill", "fill the [MASK]s of a sentence"),
    "search": ("pictures:Search", "find pictures in a folder by describing them"),
    "score": ("words:Score", "how likely sentences and their words are; which of two is likelier"),
    "report": ("train:Report", "draw a run's report again: curves, figures, fills, changed words"),
    "verify": ("train:Verify", "recompute steps of a run, and certify that they come out the same"),
    "probe": ("probe:Probe", "how good an encoder is for your task, beside counted words"),
    "explain": ("pictures:Explain", "show where a model looks for each word of a caption"),
    "playground": ("playground:Playground", "try a model in the browser, on this machine alone"),
    "convert": (
        "convert:Convert",
        "turn a checkpoint of ALBEF, RaSa, BERT, ... into a model folder",
    ),
    "export": ("convert:Export", "write a model as ONNX, checked against the model itself"),
    "push": ("convert:Push", "upload a run's model with its card to the Hugging Face hub"),
    "completion": ("completion:Completion", "complete commands and flags in bash, zsh or fish"),
}
MOVED = {
    "bench": "the benchmark is no longer part of the package; in a clone of its repository, run: "
    "PYTHONPATH=benchmarks python -m bench CORPUS"
}
# What a full or protected disk raises; everything else is a fault of ours and keeps its traceback.
DISK_TROUBLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG)
# Of errors that PyTorch and the loader of libraries raise when no memory is left.
NO_MEMORY = ("allocate memory", "bad_alloc", "out of memory", "failed to map segment")
GO_ON = "a training run goes on with --resume auto"
FIRST_SPEAKS = 30.0  # seconds; processes of one machine start within a few of one another
WHEN = ("auto", "always", "never")  # what --color may be
HELP = frozenset({"-h", "--help", "--help-all"})
FIRST = """try first:
  maskery quickstart                        learn from Python's manual in three minutes
  maskery inspect notes.txt                 what training on your own text would take
  maskery train text notes.txt              learn from it, and see whether it got better
"""
LOOKUP_SECONDS = 3.0  # seconds to wait for a name server; one that is there answers in far less
ConfigT = TypeVar("ConfigT")


def usage() -> str:
    """Return the text of `maskery --help`."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {about}" for name, (_, about) in COMMANDS.items()]
    return (
        "usage: maskery COMMAND ...\n\n"
        f"Masked language modelling for text and image-text.\n\n{FIRST}\n"
        "commands:\n" + "\n".join(lines) + "\n\n"
        "maskery COMMAND --help says more, --help-all everything; with any command, --color never\n"
        "or always decides whether help has bold headings (auto: in a terminal, if not NO_COLOR).\n"
    )


def without_colour_flag(arguments: Sequence[str]) -> list[str]:
    """Take `--color WHEN` out of the arguments; the environment keeps it for what is started."""
    words = list(arguments)
    place = next((i for i, word in enumerate(words) if word.partition("=")[0] == "--color"), None)
    if place is None:
        return words
    _, equals, when = words.pop(place).partition("=")
    when = when if equals or place == len(words) else words.pop(place)
    if when not in WHEN:
        close = meant(when, WHEN)
        raise ConfigError(f"--color is '{when}': it must be auto, always or never{close}")
    if when != "auto":
        os.environ["NO_COLOR"] = "1" if when == "never" else ""
        os.environ["FORCE_COLOR"] = "1" if when == "always" else ""
    return words


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
        problem = "standard output is closed, so no result could be seen"
        return complain("", f"{problem}; send it to a file")
    try:
        arguments = without_colour_flag(arguments)
    except ConfigError as error:
        return complain("", error)
    if not arguments or arguments[0] in ("-h", "--help", "--help-all", "help"):
        print(usage(), end="")
        return 0
    if arguments[0] == "--version":
        from maskery import __version__

        print(f"maskery {__version__}")
        return 0
    if arguments[0] in MOVED:
        return complain(arguments[0], MOVED[arguments[0]])
    found = find_command(arguments)
    if found is None:
        known = ", ".join(COMMANDS)
        close = meant(" ".join(arguments[:2]), COMMANDS) or meant(arguments[0], COMMANDS)
        return complain("", f"there is no command '{arguments[0]}'; there are {known}{close}")
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
        first = isinstance(error, ConfigError) and _first_speaks()
        if not first and not isinstance(error, OtherProcessError):
            complain(f"{name} (process {launched_rank()})", error)
        return 2
    except BrokenPipeError:
        _forget_output()  # whoever read it has seen enough
        return 0
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            told = f"'{str(error.filename)[:60]}...' is too long for the name of a file"
            return complain(name, f"{told}; name a file or folder that is there")
        if error.errno not in DISK_TROUBLE:
            raise
        _forget_output()
        where = f" '{error.filename}'" if error.filename else ""
        problem = f"writing{where} failed ({error.strerror})"
        return complain(name, f"{problem}; free some space or choose another folder; {GO_ON}")
    except KeyboardInterrupt:
        return complain(name, "stopped", 130)
    except Exception as error:
        if isinstance(error, MemoryError) or any(told in str(error) for told in NO_MEMORY):
            problem = f"the memory is used up ({reason_of(error, most=120)})"
            fix = "make batches smaller, or let the process have more (ulimit -v)"
            return complain(name, f"{problem}; {fix}; {GO_ON}")
        # Weights are written by a library with an error of its own, too heavy to import here.
        if type(error).__name__ != "SafetensorError" or "I/O error" not in str(error):
            raise
        return complain(name, f"writing weights failed ({reason_of(error)}); free some space")


def _first_speaks() -> bool:
    """Return whether the first process tells of a fault; under torchrun, wait for its end."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return True
    # At the first failure torchrun ends all other processes: were that this one's, nobody would
    # say why. Who still lives after the wait is alone with the fault.
    time.sleep(FIRST_SPEAKS)
    return False


def _forget_output() -> None:
    """Let what is still to be printed go nowhere: it cannot be written, and the end would fail."""
    with contextlib.suppress(OSError):  # a stream that is no file, as in a notebook
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def command_of(name: str) -> Any:
    """Return the class of a command, or the function that makes it of the arguments."""
    module, _, made = COMMANDS[name][0].partition(":")
    return getattr(importlib.import_module(f"maskery.cli.{module}"), made)


def run(name: str, arguments: Sequence[str]) -> None:
    """Read the flags of a command, set up the process for it, and execute it."""
    # Commands that take steps; others would hold on to memory for nothing.
    if name.startswith(("train", "quickstart", "sweep")):
        keep_freed_memory()
    command = command_of(name)
    wanted = parse(command, name, arguments) if isinstance(command, type) else command(arguments)
    set_up_logging(quiet=wanted.quiet or wanted.json)
    wanted.execute()


def complain(name: str, message: object, code: int = 2) -> int:
    """Print one line on standard error. Returns the exit code."""
    print(f"{f'maskery {name}'.rstrip()}: {message}", file=sys.stderr)
    return code


@dataclass(frozen=True, kw_only=True)
class Command(Settings):
    """A command: its fields are its flags, and its docstring is its help."""

    quiet: ClassVar[bool] = True  # False: messages of progress are shown, but for --json

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


@dataclass(frozen=True, kw_only=True)
class Trusting(Command):
    """A command that reads the `config.yaml` of a run, and may load the plug-ins in it."""

    trust: tuple[str, ...] = ()
    """Plug-ins that the run's config.yaml names, FILE.py:NAME each, and that may be loaded."""

    def __post_init__(self) -> None:
        super().__post_init__()
        trust(self.trust)


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

    if asked := HELP.intersection(arguments):
        from maskery.cli.flags import help_of

        told = help_of(command, kind, default, everything="--help-all" in asked, program=program)
        print(told, end="")
        raise SystemExit(0)
    words, report = with_columns_joined(gathered(arguments)), io.StringIO()
    try:
        with contextlib.redirect_stderr(report):
            name = f"{program} {command}"
            parsed = tyro.cli(kind, prog=name, args=words, default=default, add_help=False)
    except SystemExit as end:
        from maskery.cli.flags import advice, flags_of

        # Where its stream has no encoding, as here, the parser draws its boxes in ASCII.
        boxes = re.compile(r"^╭─* *(.*?) *─*╮$|^╰.*╯$|[─-]{3,}|│", re.MULTILINE)
        told = " ".join(boxes.sub(" ", report.getvalue()).split())
        told = advice(command, list(flags_of(kind, default)), words, told, COMMANDS)
        raise ConfigError(f"{told} ({program} {command} --help)") from end
    refuse_idle(parsed, default)
    return parsed  # type: ignore[return-value]


def gathered(arguments: Sequence[str], flag: str = "--eval-data") -> list[str]:
    """Return arguments in which the values of a flag that is given several times stand together."""
    # The parser would keep those of the last time alone.
    if sum(word.partition("=")[0] == flag for word in arguments) < 2:
        return list(arguments)
    from argparse import ArgumentParser

    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(flag, dest="values", nargs="*", action="extend")
    taken, others = parser.parse_known_args(arguments)
    return [*others, flag, *taken.values]


def with_columns_joined(arguments: Sequence[str], flag: str = "--text-column") -> list[str]:
    """Return arguments in which several columns, each a word, are one word with commas."""
    words: list[str] = []
    for word in arguments:
        # Only behind the corpus: where it is still to come, the next word is the corpus.
        if words[-2:-1] == [flag] and "-" not in (words[0][:1], word[:1]):
            words[-1] += f",{word}"
        else:
            words.append(word)
    return words


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


class _Lines(logging.StreamHandler[Any]):
    """Writes each message once, on a line of its own, with no name in it steering the terminal."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)
        self.told: set[str] = set()

    def format(self, record: logging.LogRecord) -> str:
        return harmless(super().format(record))

    def emit(self, record: logging.LogRecord) -> None:
        """Write a message that is new; what opens a model twice says the same of it twice."""
        if (text := self.format(record)) not in self.told:
            self.told.add(text)
            # A bar is drawn only where this is imported, and would stand on the same line.
            bars = sys.modules.get("tqdm")
            aside = bars.tqdm.external_write_mode(self.stream) if bars else contextlib.nullcontext()
            with aside:
                super().emit(record)


def set_up_logging(*, quiet: bool = False) -> None:
    """Write Maskery's messages as plain lines to standard error, and silence other libraries."""
    logger = logging.getLogger("maskery")
    logger.handlers[:] = [_Lines()]
    logger.propagate = False
    # Every process warns of the same things; one of them says so.
    level = logging.WARNING if quiet else logging.INFO
    logger.setLevel(level if is_main_process() else logging.ERROR)
    go_offline_without_a_network()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    warnings.filterwarnings("ignore", module=r"(transformers|torch|accelerate|datasets)\b")


if __name__ == "__main__":
    sys.exit(main())
