"""The one exception tree of Maskery.

Every error a user can cause derives from `MaskeryError`. Its message is one line that names the
value, the rule it breaks and the fix; the command line prints that line and exits with code 2.
"""

from collections import abc
from contextlib import contextmanager
from difflib import get_close_matches

# Python's errors for JSON, or arrays, of another shape than expected.
MALFORMED = (ValueError, LookupError, TypeError, AttributeError, RecursionError)


def reason_of(error: BaseException, *, most: int = 300) -> str:
    """Return another library's error in one line of at most `most` characters."""
    words = " ".join(str(error).split()) or type(error).__name__
    return words if len(words) <= most else f"{words[: most - 3]}..."


# A terminal obeys control characters (not tab and newline), and those that turn the writing.
_OBEYED = (*range(9), *range(11, 32), *range(127, 160), *range(0x202A, 0x202F))
_HARMLESS = {code: ascii(chr(code))[1:-1] for code in (*_OBEYED, *range(0x2066, 0x206A))}


def harmless(text: str) -> str:
    """Return a text for a terminal: characters that would steer it are escaped."""
    return text.translate(_HARMLESS)


def counted(count: float, what: str, several: str = "") -> str:
    """Return a count with its word in the singular or plural: 1 step, 2 steps, 1,000 steps."""
    return f"{count:,.0f} {what if count == 1 else several or f'{what}s'}"


def listed(names: abc.Sequence[str], most: int) -> str:
    """Return the first names of a list, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if names[most:] else "")


def meant(word: str, known: abc.Iterable[str]) -> str:
    """Return the end of a message about a word that is not known: which one may be meant."""
    known = list(known) if word else []
    found = get_close_matches(word, known, n=1) or [one for one in known if one.startswith(word)]
    return f"; did you mean {found[0]}?" if found else ""


class MaskeryError(Exception):
    """An error that the user can mend; the message says how."""

    def __str__(self) -> str:
        # Names and values of the user's are quoted, and it is to stay one line on any terminal.
        return "".join(
            c if c.isprintable() else c.encode("unicode_escape").decode() for c in super().__str__()
        )


class ConfigError(MaskeryError):  # no ValueError: the flag parser makes reports of its own of those
    """A setting is outside its range, or two settings contradict each other."""


class PluginError(ConfigError):
    """A plug-in (`FILE.py:NAME`, or an object) cannot be loaded or breaks its contract."""


class DataError(MaskeryError):
    """A corpus, an image or an annotation file cannot be used as it is."""


class ModelError(MaskeryError):
    """A model or tokenizer is missing, unreadable or of the wrong kind."""


class CheckpointError(MaskeryError):
    """A checkpoint or run folder is damaged, in use or belongs to another run."""


class MissingExtraError(MaskeryError, ImportError):
    """An optional dependency is not installed."""


class TrainingError(MaskeryError):
    """A run cannot usefully go on, because its loss is not finite any more."""


class OtherProcessError(MaskeryError):
    """Another process of the run has failed, and reports it itself."""


class StoppedError(MaskeryError):
    """A signal asked for the end; everything that is needed to go on is written."""

    def __init__(self, message: str, *, exit_code: int = 143) -> None:
        super().__init__(message)
        self.exit_code = exit_code  # the command's: 128 plus the number of the signal


@contextmanager
def explained(
    problem: str,
    fix: str = "",
    *errors: type[Exception],  # the file system's where none are named
    kind: type[MaskeryError] = DataError,
    most: int = 300,
) -> abc.Iterator[None]:
    """Turn others' errors in a block into one line of ours: `problem (reason); fix`."""
    caught = errors or (OSError,)
    try:
        yield
    except MaskeryError:  # it says more, also where all errors are named
        raise
    except caught as error:
        # Of the file system's, the path is left out: the problem names it.
        reason = getattr(error, "strerror", None) or reason_of(error, most=most)
        raise kind(f"{problem} ({reason}){fix and f'; {fix}'}") from error
