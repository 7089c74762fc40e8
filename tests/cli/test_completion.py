"""The shells themselves complete what a script says."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from maskery.cli.main import COMMANDS, main

COMPLETE = """
source {script}
COMP_WORDS=({words}) COMP_CWORD={last}
_maskery
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scripts")
    for shell in ("bash", "zsh", "fish"):
        with (folder / f"maskery.{shell}").open("w") as file, pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.stdout", file)
            assert main(["completion", shell]) == 0
    return folder


def completed(scripts: Path, *words: str) -> set[str]:
    """Return what bash offers for the last of the words."""
    quoted = " ".join(f"'{word}'" for word in ("maskery", *words))
    code = COMPLETE.format(script=scripts / "maskery.bash", words=quoted, last=len(words))
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return set(done.stdout.split())


def test_bash_completes_commands(scripts: Path) -> None:
    assert completed(scripts, "") == {name.split()[0] for name in COMMANDS} | {
        "--help",
        "--version",
    }
    assert completed(scripts, "sc") == {"score"}
    assert completed(scripts, "train", "") == {"text", "pairs", "person-search"}
    assert completed(scripts, "quickstart", "p") == {"person-search", "pairs"}
    assert completed(scripts, "data", "d") == {"draw-people"}


def test_bash_completes_flags_of_the_command(scripts: Path) -> None:
    assert completed(scripts, "train", "text", "a.txt", "--epo") == {"--epochs"}
    assert completed(scripts, "convert", "a", "--im") == {"--image-size"}
    assert completed(scripts, "fill", "m", "--epo") == set()
    assert completed(scripts, "quickstart", "--over") == {
        "--overwrite",
    }
    assert {"--help", "--help-all"} <= completed(scripts, "evaluate", "r", "--h")
    assert "--pairs.images" in completed(scripts, "evaluate", "r", "--pairs.")


def test_bash_completes_choices_and_leaves_files_to_the_shell(scripts: Path) -> None:
    assert completed(scripts, "train", "text", "a", "--unit", "") == {
        "line",
        "paragraph",
        "document",
    }
    assert completed(scripts, "score", "m", "f", "--method", "o") == {"original"}
    assert completed(scripts, "train", "text", "a", "--output", "") == set()
    assert completed(scripts, "fill", "") == set()
    registered = subprocess.run(
        ["bash", "-c", f"source {scripts / 'maskery.bash'}; complete -p maskery"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert registered.stdout == "complete -o default -F _maskery maskery\n"


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_read_their_scripts(shell: str, scripts: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    script = scripts / f"maskery.{shell}"
    done = subprocess.run([shell, "-n", str(script)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    if shell == "fish":
        code = f"source {script}; complete -C 'maskery train text --uni'"
        found = subprocess.run([shell, "-c", code], capture_output=True, text=True, check=True)
        assert [line.split()[0] for line in found.stdout.splitlines()] == ["--unit"]
