"""Ranges of settings, declared where a field is declared and checked by one call.

    @dataclass(frozen=True, kw_only=True)
    class Config(Settings):
        epochs: Count = 3
        rate: Annotated[float, Range(0, 1, above=True, hint="try {flag} 0.15")] = 0.15
        shape: Literal["linear", "cosine"] = "linear"

Fields of type `Literal[...]` are checked too, without a declaration.
"""

import math
import re
import types
import typing
from dataclasses import dataclass, fields, replace
from functools import cache
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self, TypeAlias

from maskery.core.errors import ConfigError, meant
from maskery.core.registry import anchored_choice

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

# `Path` makes one slash of two. A single letter is a drive.
ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.*)", re.DOTALL)
MOST = (1 << 53) - 1  # of a whole number without another limit: sums of such fit into 64 bits
WRITTEN_AS_POWERS = 1 << 31  # Limits from here on, one below a power of two: 2**63 - 1


@dataclass(frozen=True)
class Range:
    """Numbers that a setting may have; NaN and infinities are in no range.

    None is always allowed: a setting that may be None is not set then. Of a tuple, every number
    must be in the range.
    """

    low: float | None = None  # The smallest; None for no limit
    high: float | None = None  # The largest; None for no limit
    above: bool = False  # True if `low` itself is not allowed
    below: bool = False  # True if `high` itself is not allowed
    words: tuple[str, ...] = ()  # Also allowed, such as `auto`
    unit: str = ""  # Follows the limits in messages, such as `pixels`
    hint: str = ""  # Ends the message with what to do; `{flag}` in it becomes the flag of the field
    whole: bool = False  # True for whole numbers alone; set for fields of the type int

    def __contains__(self, value: object) -> bool:
        number: Any = value
        if value in self.words:
            return True
        # Any comparison with NaN is False, so each condition is one that must hold.
        if isinstance(value, bool) or not isinstance(value, Integral if self.whole else Real):
            return False
        if not -math.inf < number < math.inf:
            return False
        if self.whole and self.high is None and number > MOST:
            return False
        above = self.low is None or (number > self.low if self.above else number >= self.low)
        below = self.high is None or (number < self.high if self.below else number <= self.high)
        return bool(above and below)

    @property
    def rule(self) -> str:
        """Return the words after "it must" in a message, such as `be from 0 to 1`."""
        low, high = _shown(self.low), _shown(self.high)
        if self.low is None:
            words = f"be {'below' if self.below else 'at most'} {high}"
            words = "be finite" if self.high is None else words
        elif self.high is None:
            words = f"be above {low}" if self.above else f"be at least {low}"
            words = "be 0 or more" if words == "be at least 0" else words
        elif self.above:
            words = f"be above {low} and at most {high}"
            words = f"lie between {low} and {high}" if self.below else words
        else:
            words = f"be from {low} to {'below ' if self.below else ''}{high}"
        return " or ".join((f"{words} {self.unit}".strip(), *self.words))


@dataclass(frozen=True)
class Needs:
    """Marks a setting that has no effect unless another one of its group has a certain value."""

    name: str  # The other setting
    value: str = ""  # It must be this, or begin with it where it ends with a colon; "": not 0, set
    unless: str = ""  # A setting that takes the other's place, where it is set

    def lack_in(self, group: Any) -> str:
        """Return what takes the effect away, and what to do; empty where there is an effect."""
        if getattr(group, self.unless, None) is not None:
            return f"beside {_flag(self.unless)}; leave out that"
        found, begins = getattr(group, self.name), self.value.endswith(":")
        if begins and str(found).startswith(self.value):
            return ""
        if str(found) == self.value if self.value else found:
            return ""
        return f"without {_flag(self.name)} {self.value}{'...' * begins}".rstrip() + "; add that"


Allowed: TypeAlias = Range | tuple[Any, ...] | type[Path]  # Choices are a tuple
Count: TypeAlias = Annotated[int, Range(1)]
Share: TypeAlias = Annotated[float, Range(0, 1)]
Weight: TypeAlias = Annotated[float, Range(0)]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """A group of settings: ranges are checked, and text becomes paths, when it is made."""

    # Where results go is kept as it was typed, for people read it.
    AS_TYPED: ClassVar[frozenset[str]] = frozenset({"output", "cache_dir"})

    def __post_init__(self) -> None:
        kind: type[DataclassInstance] = type(self)
        for name, allowed in _declared(kind):
            value = getattr(self, name)
            if isinstance(value, Real) and hasattr(value, "item"):
                value = value.item()  # a number of NumPy's, which JSON and YAML do not take
                object.__setattr__(self, name, value)
            if not isinstance(allowed, type):
                _check(name, value, allowed)
            elif isinstance(value, str | Path):  # in Python either is given
                object.__setattr__(self, name, local_path(value, name))

    def anchored(self) -> Self:
        """Return a copy with absolute paths, also of plug-ins, which hold from any folder."""
        names = {field.name for field in fields(self)} - self.AS_TYPED
        return replace(self, **{name: _anchored(getattr(self, name)) for name in names})


def _anchored(value: Any) -> Any:
    if isinstance(value, Settings):
        return value.anchored()
    if isinstance(value, tuple):
        return tuple(map(_anchored, value))
    if isinstance(value, Path):
        return value.absolute()
    return anchored_choice(value) if isinstance(value, str) else value


def _check(name: str, value: Any, allowed: Range | tuple[Any, ...]) -> None:
    """Refuse the value of a field that is not in its range, or not among its choices."""
    values = value if isinstance(value, tuple) else (value,)
    # A preset has `tyro.MISSING` where the user must give a flag.
    if all(v is None or type(v).__module__.startswith("tyro") or v in allowed for v in values):
        return
    shown = f"'{value}'" if isinstance(value, str) else value
    if not isinstance(allowed, Range):
        choices = [str(one) for one in allowed]
        rule, hint = f"be one of {', '.join(choices)}", meant(str(value), choices)[2:]
    else:
        rule, hint = allowed.rule, allowed.hint.replace("{flag}", _flag(name))
        if any(isinstance(v, bool) for v in values):
            rule = f"be a number, and {rule}"
        elif allowed.whole and not all(v is None or isinstance(v, Integral) for v in values):
            rule = f"be a whole number, and {rule}"
        elif allowed.whole and any(v is not None and v > MOST for v in values):
            rule = f"be at most {_shown(MOST)}" if allowed.high is None else rule
    subject = "each" if isinstance(value, tuple) else "it"
    raise ConfigError(f"{name} is {shown}: {subject} must {rule}{hint and f'; {hint}'}")


def refuse_idle(group: Any, usual: Any = None) -> None:
    """Refuse settings that were given, as they differ from the `usual` ones, and have no effect."""
    hints = typing.get_type_hints(type(group), include_extras=True)
    for field in fields(group):
        value, default = getattr(group, field.name), getattr(usual, field.name, field.default)
        if isinstance(value, Settings):
            refuse_idle(value, default)
        for need in getattr(hints[field.name], "__metadata__", ()):
            if isinstance(need, Needs) and value != default and (lack := need.lack_in(group)):
                flag = _flag(field.name)
                raise ConfigError(f"{flag} has no effect {lack}, or leave out {flag}")


def number_or_word(name: str, value: str, words: tuple[str, ...], allowed: Range) -> float | None:
    """Return the number that a setting holds as text; None where it is one of some words."""
    if value in words:
        return None
    try:
        number = float(value)
    except ValueError:
        number = math.nan  # which is in no range
    if number not in allowed:
        rule = f"it must be {', '.join(words)} or a number {allowed.rule.removeprefix('be ')}"
        raise ConfigError(f"{name} is '{value}': {rule}; {allowed.hint}")
    return number


@cache
def _declared(kind: "type[DataclassInstance]") -> list[tuple[str, Allowed]]:
    """Return the fields that have a range or choices or are paths, with these."""
    hints = typing.get_type_hints(kind, include_extras=True)
    found = [(field.name, _allowed(hints[field.name])) for field in fields(kind)]
    return [(name, allowed) for name, allowed in found if allowed is not None]


def _allowed(hint: Any) -> Allowed | None:
    """Return the range or the choices of a type, or Path; Annotated, Optional and tuples count."""
    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal or hint is Path:
        return inside or Path
    if origin is Annotated:
        ranges = [limits for limits in hint.__metadata__ if isinstance(limits, Range)]
        whole = int in (inside[0], *typing.get_args(inside[0]))
        return replace(ranges[0], whole=whole) if ranges else _allowed(inside[0])
    if origin in (typing.Union, types.UnionType, tuple):
        kinds = set(inside) - {type(None), Ellipsis}
        # Of `Literal[...] | str` any text is allowed, so there is nothing to check.
        return _allowed(kinds.pop()) if len(kinds) == 1 else None
    return None


def _flag(name: str) -> str:
    """Return the flag of a setting."""
    return f"--{name.replace('_', '-')}"


def _shown(limit: float | None) -> str:
    if isinstance(limit, int) and limit >= WRITTEN_AS_POWERS and (limit + 1).bit_count() == 1:
        return f"2**{limit.bit_length()} - 1"
    return f"{limit:g}" if isinstance(limit, float) else str(limit)


def local_path(value: str | Path, name: str) -> Path:
    """Return a setting as a path, without `file://`; a ConfigError says that it is an address."""
    address = ADDRESS.fullmatch(str(value))
    if address is None:
        return Path(value)
    if address[1] != "file":
        rule = "it must be a path on this machine; name one, and copy to or from the address"
        raise ConfigError(f"{name} is the address '{address[1]}://{address[2]}': {rule}")
    return Path(f"/{address[2]}")
