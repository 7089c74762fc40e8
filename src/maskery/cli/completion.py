"""`maskery completion`: scripts by which a shell completes commands, flags and choices."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from maskery.cli.evaluate import WAYS
from maskery.cli.flags import Flag, flags_of
from maskery.cli.main import COMMANDS, Command, command_of
from maskery.cli.train import command_class

# Where a word completes to nothing, `-o default` offers files.
BASH = """_maskery() {
  local cur="${COMP_WORDS[COMP_CWORD]}" words=""
  case "$COMP_CWORD" in
    1) words="FIRST" ;;
    2) case "${COMP_WORDS[1]}" in
SECOND
    esac ;;
  esac
  case "$cur" in -*) case "${COMP_WORDS[1]} ${COMP_WORDS[2]} " in
FLAGS
  esac ;; esac
  case "${COMP_WORDS[COMP_CWORD-1]}" in
CHOICES
  esac
  COMPREPLY=($(compgen -W "$words" -- "$cur"))
}
complete -o default -F _maskery maskery"""
ZSH = "#compdef maskery\nautoload -U +X bashcompinit && bashcompinit\n"


@dataclass(frozen=True, kw_only=True)
class Completion(Command):
    """Print a script by which a shell completes maskery's commands, flags and choices.

    Examples:
      source <(maskery completion bash)
      maskery completion zsh > ~/.maskery.zsh; echo source ~/.maskery.zsh >> ~/.zshrc
      maskery completion fish > ~/.config/fish/completions/maskery.fish
    """

    shell: Annotated[
        Literal["bash", "zsh", "fish"], tyro.conf.Positional, tyro.conf.arg(metavar="SHELL")
    ]
    """The shell: bash, zsh or fish."""

    def execute(self) -> None:
        """Print the script."""
        flags = {name: command_flags(name) for name in COMMANDS}
        script = fish(flags) if self.shell == "fish" else bash(flags)
        self.answer({"script": script}, (ZSH if self.shell == "zsh" else "") + script)


def command_flags(name: str) -> list[Flag]:
    """Return the flags of a command, of any of its ways where it has several."""
    kind = command_of(name)
    kinds = {"evaluate": WAYS, "train": ()}.get(name)
    if kinds is None:
        kinds = (kind if isinstance(kind, type) else command_class(name.partition(" ")[2]),)
    found = {one.names: one for way in kinds for one in flags_of(way) if not one.positional}
    return list(found.values())


def bash(flags: dict[str, list[Flag]]) -> str:
    """Return a script for bash, which zsh reads too."""
    seconds: dict[str, list[str]] = {}
    for first, _, second in (name.partition(" ") for name in flags):
        seconds.setdefault(first, []).extend([second] if second else [])
    # Commands of two words come first: those of one word are their beginnings.
    names = sorted(flags, key=lambda name: -name.count(" "))
    parts: dict[str, dict[str, Sequence[str]]] = {
        "SECOND": {first: words for first, words in seconds.items() if words},
        "FLAGS": {
            f'"{name} "*': ["--help", "--help-all", *(n for one in flags[name] for n in one.names)]
            for name in names
        },
        "CHOICES": {one.names[0]: one.choices for own in flags.values() for one in own if one.most},
    }
    script = BASH.replace("FIRST", " ".join([*seconds, "--help", "--version"]))
    for mark, cases in parts.items():
        lines = (f'    {case}) words="{" ".join(words)}" ;;' for case, words in cases.items())
        script = script.replace(mark, "\n".join(lines))
    return script


def fish(flags: dict[str, list[Flag]]) -> str:
    """Return a script for fish."""
    lines, typed = [], "(commandline -opc | string join ' ')"
    for name, own in flags.items():
        *before, last = name.split()
        here = " ".join(["maskery", *before])
        about = f"-a {last} -d '{COMMANDS[name][1]}'"
        lines.append(f"complete -c maskery -n \"test {typed} = '{here}'\" {about}")
        within = f"string match -q 'maskery {name} *' {typed}' '"
        for one in own:
            given = f" -xa '{' '.join(one.choices)}'" if one.choices else " -r" * bool(one.most)
            lines += [f'complete -c maskery -n "{within}" -l {n[2:]}{given}' for n in one.names]
    return "\n".join(lines)
