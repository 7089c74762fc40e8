"""The flags of a command, read from its dataclass: its help, and advice where they are mistyped."""

import inspect
import math
import os
import shutil
import sys
import textwrap
import types
import typing
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from typing import Any

from maskery.core.errors import meant
from maskery.core.flags import conf

# The flags that --help shows where a command has many; --help-all shows all.
TEXT = """model output resume epochs max-steps batch-tokens micro-batch-tokens learning-rate
max-length mask-rate text-column unit eval-data"""
PICTURES = """resume epochs max-steps batch-pairs learning-rate model text-model vision-model"""
COMMON = {
    "train text": TEXT,
    "inspect": f"{TEXT} timed-steps words words-out json",
    "train pairs": f"output {PICTURES} images image-column caption-column eval-pairs score-words",
    "train person-search": f"dataset root images output preset {PICTURES} rerank",
    "tokenize": "model workers shard-mb held-out-share executor slurm text-column unit json",
    "evaluate": """data against rerank score held-out mask-seed mask-rate score-words text-column
    pairs.images batch-tokens json""",
}
# Characters for a name before its description, and of a line: wider ones are hard to read.
NAMES_WIDTH, MOST_COLUMNS = 24, 100


@dataclass(frozen=True, kw_only=True)
class Flag:
    """A flag or a positional argument."""

    names: tuple[str, ...]  # Of a positional argument, what stands for it
    values: str  # What follows the name, such as `INT INT`; empty for a switch
    most: float  # Most values that it takes
    choices: tuple[str, ...]
    about: str
    required: bool
    positional: bool
    group: str  # What the settings are about that it belongs to; empty for the command's own

    @property
    def shown(self) -> str:
        """Return the name with what follows it."""
        return f"{self.names[0]} {self.values}".rstrip()


def flags_of(
    kind: type[Any],
    values: Any = None,
    *,
    prefix: str = "--",
    bare: bool = False,
    group: str = "",
    described: bool = True,  # False where only names and sizes count: descriptions take 0.1 s
) -> Iterator[Flag]:
    """Yield the flags of a dataclass; `values` is one of its kind whose values are the defaults.

    Fields of nested dataclasses start with the name of theirs, unless they are `bare`.
    """
    hints = typing.get_type_hints(kind, include_extras=True)
    abouts: dict[str, str] = _abouts(kind) if described else {}  # type: ignore[arg-type]
    for one in fields(kind):
        marks, hint = getattr(hints[one.name], "__metadata__", ()), _unmarked(hints[one.name])
        factory: Any = one.default_factory
        default = one.default if factory is MISSING else factory()
        default = getattr(values, one.name, default)
        name = one.name.replace("_", "-")
        if conf.Suppress in marks:
            continue
        if is_dataclass(hint):
            omits = bare or conf.OmitArgPrefixes in marks or hasattr(hint, "__tyro_markers__")
            yield from flags_of(
                typing.cast("type[Any]", hint),
                None if default is MISSING else default,
                prefix=prefix if omits else f"{prefix}{name}.",
                bare=omits,
                group="" if one.name == "run" else (hint.__doc__ or "").partition(".\n")[0],
                described=described,
            )
            continue
        told: Any = next((mark for mark in marks if hasattr(mark, "metavar")), None)
        word, most, choices = _takes(hint, once=conf.UseAppendAction in marks)
        names = (*((told and told.aliases) or ()), f"{prefix}{name}")
        off = f"{prefix}no-{name}"
        if hint is bool:
            names += (off,)
        if positional := conf.Positional in marks:
            names, word = (told.metavar,), ""
        required = default is MISSING or type(default).__module__.startswith("tyro.")
        about = (told and told.help) or abouts.get(one.name, "")
        usual = "" if required else f"on; {off}: off" if default is True else _typed(default)
        yield Flag(
            names=names,
            values=(told and not positional and told.metavar) or word,
            most=most,
            choices=choices,
            about=f"{about} Default: {usual}." if usual and "Default:" not in about else about,
            required=required,
            positional=positional,
            group=group,
        )


@cache
def _abouts(kind: type[Any]) -> dict[str, str]:
    """Return what is written below each field, in one line."""
    from docstring_parser import parse_from_object

    found: dict[str, str] = {}
    for one in filter(is_dataclass, reversed(kind.__mro__)):
        described = parse_from_object(one).params
        found |= {p.arg_name: " ".join((p.description or "").split()) for p in described}
    return found


def _unmarked(hint: Any) -> Any:
    """Return a type without its marks, and without None."""
    if hasattr(hint, "__metadata__"):
        return _unmarked(hint.__origin__)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return _unmarked(next(one for one in typing.get_args(hint) if one is not type(None)))
    return hint


def _takes(hint: Any, *, once: bool = False) -> tuple[str, float, tuple[str, ...]]:
    """Return what stands for the values of a type, the most that it takes, and its choices."""
    inside = typing.get_args(hint)
    if typing.get_origin(hint) is tuple:
        word, _, choices = _takes(_unmarked(inside[0]))
        if once:
            return word, 1, choices
        if inside[-1] is Ellipsis:
            return f"{word} ...", math.inf, choices
        return " ".join([word] * len(inside)), len(inside), choices
    if inside:
        choices = tuple(map(str, inside))
        return f"{{{','.join(choices)}}}", 1, choices
    return ("", 0, ()) if hint is bool else (hint.__name__.upper(), 1, ())


def _typed(value: Any) -> str:
    """Return a default as one types it; nothing for what is off or not set."""
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    if value is None or value is False:
        return ""
    return repr(value) if isinstance(value, str) and value != "".join(value.split()) else str(value)


def help_of(
    command: str,  # without the program, such as `train text`
    kind: type[Any],
    values: Any = None,
    *,
    everything: bool = False,
    program: str = "maskery",
) -> str:
    """Return the help of a command: the flags that most people need, or all."""
    width = min(MOST_COLUMNS, shutil.get_terminal_size().columns)
    found = list(flags_of(kind, values))
    places, flags = ([one for one in found if one.positional is at] for at in (True, False))
    needed = [flag for flag in flags if flag.required]
    by_name = {name.removeprefix("--"): flag for flag in flags for name in flag.names}
    common = [by_name[name] for name in COMMON.get(command, "").split() if name in by_name]
    first = list(dict.fromkeys([*needed, *common])) if common else flags
    blocks: dict[str, list[Flag]] = {"arguments": places, "options": first}
    for flag in (flag for flag in flags if everything and flag not in first):
        blocks.setdefault(flag.group or "other options", []).append(flag)
    shown = [flag.shown for flag in (*places, *needed)]
    lines = [" ".join([bold("usage:"), program, command, *shown, "[OPTIONS]"])]
    for part in inspect.cleandoc(kind.__doc__ or "").split("\n\n"):
        heading, _, examples = part.partition("\n")
        listed = f"{bold(heading.lower())}\n{examples}"
        words = textwrap.fill(part, width, break_on_hyphens=False)
        lines += ["", listed if examples.startswith(" ") else words]
    for title, members in blocks.items():
        if members:
            lines += ["", bold(f"{title}:"), *(row for one in members for row in _rows(one, width))]
    if not everything and len(first) < len(flags):
        lines += ["", f"--help-all shows all {len(flags)} options."]
    return "\n".join(lines) + "\n"


def _rows(flag: Flag, width: int) -> list[str]:
    """Return the lines of help about a flag."""
    text = f"{flag.about} Required." if flag.required and not flag.positional else flag.about
    lines = textwrap.wrap(text, width - NAMES_WIDTH - 4, break_on_hyphens=False) or [""]
    rows = [f"  {bold(flag.shown.ljust(NAMES_WIDTH))}  {lines[0]}".rstrip()]
    if len(flag.shown) > NAMES_WIDTH:
        rows, lines = [f"  {bold(flag.shown)}"], ["", *lines]
    return [*rows, *(" " * (NAMES_WIDTH + 4) + line for line in lines[1:])]


def bold(text: str) -> str:
    """Return a text in bold, where colours are wanted (no-color.org, force-color.org)."""
    terminal = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
    wanted = terminal or os.environ.get("FORCE_COLOR")
    return f"\x1b[1m{text}\x1b[0m" if wanted and not os.environ.get("NO_COLOR") else text


def split_arguments(
    arguments: Sequence[str], sizes: Mapping[str, float]
) -> tuple[list[str], dict[str, list[str]]]:
    """Return positional arguments, and flags with their values, at most `sizes` of each."""
    positional: list[str] = []
    flags: dict[str, list[str]] = {}
    into, room = positional, math.inf
    for word in arguments:
        if word.startswith("-") and word[1:2] not in ".0123456789":  # - and -1 are values
            name, equals, value = word.partition("=")
            into = flags.setdefault(flag := name.replace("_", "-"), [value] if equals else [])
            room = 0 if equals else sizes.get(flag, 0)
        elif room:
            into.append(word)
            room -= 1
        else:
            positional.append(word)
    return positional, flags


def sizes_of(flags: Collection[Flag]) -> dict[str, float]:
    """Return the most values of each flag, by all its names."""
    return {name: flag.most for flag in flags if not flag.positional for name in flag.names}


def advice(
    command: str,  # without the program
    flags: Collection[Flag],
    arguments: Sequence[str],
    told: str,  # what the parser says of them
    commands: Collection[str],  # one of which may be meant
) -> str:
    """Return one line about arguments that the parser refuses."""
    sizes = sizes_of(flags)
    positional, given = split_arguments(arguments, sizes)
    by_name = {name: flag for flag in flags for name in flag.names}
    for name, values in given.items():
        if name not in sizes:
            return f"there is no flag {name}{meant(name, sizes)}"
        flag = by_name[name]
        wrong = [value for value in values if flag.choices and value not in flag.choices]
        if wrong:
            rule = f"it must be one of {', '.join(flag.choices)}"
            return f"{name} is '{wrong[0]}': {rule}{meant(wrong[0], flag.choices)}"
        if f"Error parsing {name}:" in told or len(values) < min(flag.most, 1):
            return f"{' '.join([name, *values])}: it takes {flag.values}. {flag.about}"
    places = [flag for flag in flags if flag.positional]
    needed = [flag for flag in flags if flag.required and flag not in places[: len(positional)]]
    missing = [flag for flag in needed if given.keys().isdisjoint(flag.names)]
    if missing:
        names, verb = " and ".join(flag.shown for flag in missing), "are" if missing[1:] else "is"
        return f"{names} {verb} missing. {' '.join(flag.about for flag in missing)}"
    stray = "".join(positional[len(places) :][:1])
    if stray and all(flag.most == 1 for flag in places):
        close = meant(f"{command} {stray}", {*commands} - {command})
        return f"'{stray}' is one argument too many{close}"
    return told
