"""Marks on settings that tell the command line how to show them; without tyro they are nothing."""

from types import SimpleNamespace
from typing import Any

conf: Any
try:
    from tyro import conf
except ModuleNotFoundError:  # only commands need it, and a run from Python has none
    names = ("Fixed", "OmitArgPrefixes", "Positional", "Suppress", "UseAppendAction")
    conf = SimpleNamespace(
        **dict.fromkeys(names), arg=lambda **_: None, configure=lambda *_: lambda kind: kind
    )
