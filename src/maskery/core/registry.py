"""One registry: a choice is a name of ours, `FILE.py:NAME`, or an object of the user's own.

Code of a user's runs only where the user names it, on the command line or in Python. What a
`config.yaml` or a model folder says is a `FromFile`, and is never loaded by itself: only if the
user has named the same in this process, by its own flag or by `--trust`.
"""

import hashlib
import importlib
import importlib.util
import math
import pkgutil
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, TypeVar

from maskery.core.errors import MaskeryError, MissingExtraError, PluginError, meant, reason_of

T = TypeVar("T")
PLUGIN = re.compile(r"(?P<file>.+\.py):(?P<name>[^\W\d]\w*)")
# A loss term is named with its weight; any other flag refuses that.
WEIGHTED = re.compile(r"(?P<choice>.+?\.py:[^\W\d]\w*|[^\W\d]\w*)=(?P<weight>[^=:/]*)")

_named: set[tuple[str, str]] = set()  # modules and names of plug-ins that the user has named


class FromFile(str):
    """A string that was read from a file: it may name a plug-in, and never loads one."""

    __slots__ = ()


class Registry(Generic[T]):
    """The things of one kind that a flag or an argument chooses among."""

    def __init__(
        self,
        flag: str,  # that names one, such as `--policy`; messages say it
        contract: str,  # what a thing of this kind is, in a phrase that follows "it must be"
        # By name, a thing, or `package.module:attribute` that is imported when it is chosen
        ours: Mapping[str, T | str],
        *,
        fits: Callable[[Any], bool] = callable,  # True if a user's thing looks like one
    ) -> None:
        self.flag, self.contract, self._fits = flag, contract, fits
        self._things: dict[str, T | str] = dict(ours)

    def register(self, name: str, thing: T) -> None:
        """Add a thing under a name of its own; a name that is taken is a PluginError."""
        if name in self._things:
            raise PluginError(f"{self.flag} '{name}' is registered already; choose another name")
        self._things[name] = thing

    def check(self, choice: str) -> None:
        """Check that a name is registered or of the form `FILE.py:NAME`; nothing is loaded."""
        if choice not in self._things and not is_plugin(choice):
            rule = f"it must be {', '.join(self._things)}, or FILE.py:NAME with {self.contract}"
            raise PluginError(f"{self.flag} is '{choice}': {rule}{meant(choice, self._things)}")

    def find(self, choice: T | str) -> T:
        """Return the thing that is chosen; objects are returned as they are."""
        found: Any = choice
        if isinstance(choice, str):
            self.check(choice)
            found = self._things.get(choice)
            if isinstance(found, str):
                return pkgutil.resolve_name(found)  # type: ignore[no-any-return]
            if found is None:
                found = load_plugin(choice, flag=self.flag, contract=self.contract)
        if not self._fits(found):
            raise self.misfit(choice, f"it is of type {type(found).__name__}")
        return found  # type: ignore[no-any-return]

    def misfit(self, choice: object, found: str) -> PluginError:
        """Return the error of a plug-in that did `found`, such as "select returned a list"."""
        name = choice if isinstance(choice, str) else type(choice).__name__
        return PluginError(f"{self.flag} {name}: {found}; it must be {self.contract}")

    @contextmanager
    def running(self, choice: object, doing: str) -> Iterator[None]:
        """Turn an error of a plug-in's own code in the block into a `misfit`: "`doing` fails"."""
        try:
            yield
        except MaskeryError:
            raise
        except Exception as error:
            # After this function and our call; nothing is left where the call itself does not fit.
            frames = traceback.extract_tb(error.__traceback__)[2:]
            # The user's file and not the library that it calls.
            own = [frame for frame in frames if frame.filename == frames[0].filename]
            place = f" ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else ""
            found = f"{doing} fails{place}: {type(error).__name__}: {reason_of(error)}"
            raise self.misfit(choice, found) from error


def from_file(text: str) -> str:
    """Return a string of a configuration file, marked if it may name a plug-in."""
    weighted = WEIGHTED.fullmatch(text)
    return FromFile(text) if is_plugin(weighted["choice"] if weighted else text) else text


def split_weight(choice: str, default: float = 1.0) -> tuple[str, float]:
    """Split `NAME=WEIGHT` into both; without a weight it is the default."""
    weighted = WEIGHTED.fullmatch(choice)
    if weighted is None:
        return choice, default
    try:
        weight = float(weighted["weight"])
    except ValueError:
        weight = math.nan
    if not 0 <= weight < math.inf:  # not-a-number fails both comparisons
        raise PluginError(f"'{choice}': the weight after = must be a number of 0 or more; try 0.5")
    return type(choice)(weighted["choice"]), weight


def is_plugin(choice: object) -> bool:
    """Return True for `FILE.py:NAME`."""
    return isinstance(choice, str) and PLUGIN.fullmatch(choice) is not None


def trust(choices: Iterable[str]) -> None:
    """Let files name these plug-ins, `FILE.py:NAME` each, in this process."""
    for choice in choices:
        match = PLUGIN.fullmatch(choice)
        if match is None:
            rule = "it must be FILE.py:NAME, as config.yaml says"
            raise PluginError(f"--trust is '{choice}': {rule}")
        _named.add((_module_name(Path(match["file"])), match["name"]))


def load_plugin(choice: str, *, flag: str, contract: str) -> Any:
    """Load the object that `FILE.py:NAME` names; the file runs once in a process."""
    match = PLUGIN.fullmatch(choice)
    assert match is not None, choice
    path, name = Path(match["file"]), match["name"]
    if isinstance(choice, FromFile) and (_module_name(path), name) not in _named:
        problem = f"the configuration names the plug-in '{choice}'"
        rule = "a file never loads code by itself"
        fix = f"add {flag} {choice}, or where there is no such flag --trust {choice}"
        raise PluginError(f"{problem}, and {rule}; if you trust it, {fix}")
    trust([choice])
    if not path.is_file():
        fix = f"name a Python file and {contract} in it"
        raise PluginError(f"{flag} {choice}: there is no file '{path}'; {fix}")
    module = _run_file(path, flag=flag, choice=choice, contract=contract)
    if not hasattr(module, name):
        own = ", ".join(sorted(n for n in vars(module) if not n.startswith("_"))) or "nothing"
        problem = f"'{path}' has no '{name}' (it has {own})"
        raise PluginError(f"{flag} {choice}: {problem}; it must be {contract}")
    return getattr(module, name)


def _run_file(path: Path, *, flag: str, choice: str, contract: str) -> ModuleType:
    # Registered under a name of its own, so that its objects can be pickled for worker processes
    # and two flags that name one file share its state.
    resolved, module_name = path.resolve(), _module_name(path)
    if module_name in sys.modules:
        return sys.modules[module_name]
    spec = importlib.util.spec_from_file_location(module_name, resolved)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        # What a file prints while it is read must not stand before the JSON of a command.
        with redirect_stdout(sys.stderr):
            spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[module_name]
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == str(resolved)]
        # A file that is no Python has no frame of its own.
        lines += [error.lineno] if isinstance(error, SyntaxError) and error.lineno else []
        place = f" (line {lines[-1]})" if lines else ""
        problem = f"{flag} {choice}: '{path}' fails when it is loaded{place}"
        reason = f"{type(error).__name__}: {reason_of(error)}"
        raise PluginError(f"{problem}: {reason}; it must define {contract}") from error
    return module


def _module_name(path: Path) -> str:
    digest = hashlib.blake2b(str(path.resolve()).encode(), digest_size=6).hexdigest()
    return f"maskery_plugin_{path.stem}_{digest}"


def plugin_identity(choice: str) -> str:
    """Return a plug-in's name with its file's hash; a run resumed with a changed one is another.

    One that depends on more than its file (a table, a model) returns that as bytes from a function
    `run_identity` of its own. Other names stay.
    """
    match = PLUGIN.fullmatch(choice)
    if match is None:
        return choice
    path = Path(match["file"])
    loaded = getattr(sys.modules.get(_module_name(path)), match["name"], None)
    try:
        code = path.read_bytes() + getattr(loaded, "run_identity", bytes)()
    except OSError:
        return choice  # loading or making it says why
    except Exception as error:
        fails = f"run_identity fails with {type(error).__name__}: {reason_of(error)}"
        raise PluginError(f"{choice}: {fails}; it must return bytes") from error
    digest = hashlib.blake2b(code, digest_size=8).hexdigest()
    return f"{path.name}:{match['name']}@{digest}"


def anchored_choice(choice: str) -> str:
    """Return a plug-in's name with an absolute path, so that it holds from any folder."""
    weighted = WEIGHTED.fullmatch(choice)
    match = PLUGIN.fullmatch(weighted["choice"] if weighted else choice)
    if match is None or Path(match["file"]).is_absolute():
        return choice
    return type(choice)(f"{Path(match['file']).absolute()}{choice[match.end('file') :]}")


def require(module: str, *, extra: str, purpose: str) -> ModuleType:
    """Import `module`, or say which extra of Maskery brings it, and that it is needed to ..."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        # The missing one may be another that `module` imports, as torch.utils.tensorboard does.
        missing = (error.name or module).partition(".")[0]
        problem = f"{missing} is needed to {purpose} and is not installed"
        fix = f"install it with: pip install 'maskery[{extra}]'"
        raise MissingExtraError(f"{problem}; {fix}") from error
