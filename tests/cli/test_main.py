from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from tiny_text import save_tiny_model

import maskery
from maskery.cli import main as main_module
from maskery.cli.main import COMMANDS, Command, find_command, main
from maskery.cli.train import take_config
from maskery.core import errors
from maskery.core.errors import ConfigError


@pytest.mark.parametrize("arguments", [[], ["-h"], ["--help"], ["help"]])
def test_help_lists_every_command(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    lines = [line.split("  ") for line in out.splitlines()]
    for name, (_, about) in COMMANDS.items():
        assert any(name in line and line[-1].strip() == about for line in lines)
    assert err == ""


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"maskery {maskery.__version__}\n"


@pytest.mark.parametrize("arguments", [["trian", "text"], ["text"]])
def test_an_unknown_command(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert f"no command '{arguments[0]}'" in err
    assert all(name in err for name in COMMANDS)


def test_the_command_and_its_arguments() -> None:
    assert find_command(["train", "text", "a.txt", "--epochs", "2"]) == (
        "train text",
        ["a.txt", "--epochs", "2"],
    )
    assert find_command(["fill", "model"]) == ("fill", ["model"])
    assert find_command(["train", "--config", "c.yaml"]) == ("train", ["--config", "c.yaml"])
    assert find_command([]) is None


@pytest.mark.parametrize(
    "kind",
    [
        errors.ConfigError,
        errors.DataError,
        errors.ModelError,
        errors.CheckpointError,
        errors.MissingExtraError,
    ],
)
def test_an_error_the_user_can_mend_is_one_line(
    kind: type[errors.MaskeryError],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(rest: list[str]) -> None:
        raise kind(f"{rest} is wrong; mend it")

    monkeypatch.setattr(
        main_module.importlib, "import_module", lambda name: SimpleNamespace(Fill=fail)
    )
    assert main(["fill", "x"]) == 2
    out, err = capsys.readouterr()
    assert (out, err) == ("", "maskery fill: ['x'] is wrong; mend it\n")


def let_fill_raise(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a command that fails in the place of `fill`."""

    def fail(rest: list[str]) -> None:
        raise error

    monkeypatch.setattr(
        main_module.importlib, "import_module", lambda name: SimpleNamespace(Fill=fail)
    )


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 8 GiB"),
        RuntimeError("std::bad_alloc"),  # of C++, where autograd allocates for itself
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
)
def test_memory_that_is_used_up_is_one_line(
    error: Exception, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    let_fill_raise(error, monkeypatch)
    assert main(["fill", "x"]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"maskery fill: the memory is used up ({error}")
    assert told.count("\n") == 1


@pytest.mark.parametrize("under_torchrun", [False, True])
def test_another_process_lets_the_first_one_speak(
    under_torchrun: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torchrun ends all at the first failure, which must not be that of a silent process."""
    waits: list[float] = []
    monkeypatch.setattr(main_module.time, "sleep", waits.append)
    for name, value in {"RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    if under_torchrun:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "run")

    let_fill_raise(ConfigError("seed is -1"), monkeypatch)
    assert main(["fill", "x"]) == 2
    assert waits == [main_module.FIRST_SPEAKS] * under_torchrun
    alone = "maskery fill (process 1): seed is -1\n"
    assert capsys.readouterr().err == alone * under_torchrun


def test_other_errors_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    let_fill_raise(ZeroDivisionError(), monkeypatch)
    with pytest.raises(ZeroDivisionError):
        main(["fill", "x"])


def test_an_interrupt_is_said_and_has_its_own_code(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    let_fill_raise(KeyboardInterrupt(), monkeypatch)
    assert main(["fill", "x"]) == 130
    assert capsys.readouterr().err == "maskery fill: stopped\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{tmp}/missing.txt"], "missing.txt"),
        (["{tmp}/text.txt", "--mask-rate", "1.5"], "1.5"),
        (["{tmp}/text.txt", "--learning-rate", "-1"], "-1.0"),
        (["{tmp}/text.txt", "--policy", "span", "--mask-rate", "0.9"], "--span-max"),
        (["{tmp}/text.txt", "--warmup-share", "nan"], "nan"),
        (["{tmp}/text.txt", "--model", "scratch:huge"], "scratch:huge"),
        (["{tmp}/empty.txt"], "empty"),
        (["{tmp}/text.txt", "--span-max", "3"], "--span-max has no effect without --policy span"),
    ],
)
def test_bad_input_to_training_is_one_line_with_code_2(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MASKERY_CACHE", str(tmp_path / "cache"))
    (tmp_path / "text.txt").write_text("one line\nanother line\n")
    (tmp_path / "empty.txt").write_text("")
    given = [argument.format(tmp=tmp_path) for argument in arguments]
    if "--model" not in given:
        given += ["--model", "scratch:tiny"]
    assert main(["train", "text", *given]) == 2
    out, err = capfd.readouterr()
    assert message in err
    assert "Traceback" not in out + err
    # A progress bar overwrites itself; what stays is one line.
    assert err.strip().count("\n") == 0
    assert not (tmp_path / "runs").exists() or not any((tmp_path / "runs").iterdir())


@pytest.mark.parametrize("arguments", [["--no-such-flag", "1"], ["--epochs", "many"]])
def test_a_flag_that_cannot_be_read_is_one_line_with_code_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "text", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert arguments[0] in err
    assert "---" not in err.replace(arguments[0], "")
    assert "Traceback" not in err


def test_the_command_line_needs_nothing_heavy_to_answer_help() -> None:
    code = (
        "import sys; from maskery.cli.main import main; main(['--help']); "
        "print([m for m in ('torch', 'transformers', 'datasets', 'numpy', 'tyro') "
        "if m in sys.modules], file=sys.stderr)"
    )
    seen = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert seen.stderr.strip() == "[]"


@pytest.mark.parametrize("arguments", [[], ["--verbose"], ["texts"]])
def test_training_nothing_in_particular_says_what_there_is(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "text, pairs, person-search, or --config" in err


def test_the_benchmark_is_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "corpus.txt", "--json"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "PYTHONPATH=benchmarks python -m bench" in err


def test_the_package_can_be_run() -> None:
    command = [sys.executable, "-m", "maskery", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"maskery {maskery.__version__}\n"


def test_a_configuration_file_is_taken_from_anywhere_among_the_flags() -> None:
    assert take_config(["a.txt", "--config", "b.yaml", "--json"]) == (
        ["a.txt", "--json"],
        Path("b.yaml"),
    )
    assert take_config(["a.txt"]) == (["a.txt"], None)
    assert take_config(["--config=b=c.yaml", "-x"]) == (["-x"], Path("b=c.yaml"))
    with pytest.raises(ConfigError, match="--config names no file"):
        take_config(["--config="])
    with pytest.raises(ConfigError, match="--config names no file"):
        take_config(["a.txt", "--config"])


@pytest.mark.parametrize(
    ("arguments", "trains"),
    [(["train", "text", "--nonsense"], True), (["fill", "--nonsense"], False)],
)
def test_training_commands_keep_freed_memory(
    arguments: list[str], trains: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[bool] = []
    monkeypatch.setattr(main_module, "keep_freed_memory", lambda: called.append(True))
    assert main(arguments) == 2
    assert called == [True] * trains


def test_standard_output_that_is_closed_or_full_is_one_line(tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path / "model")
    for where in (">&-", "> /dev/full"):
        command = f'"$0" -m maskery fill "$1" "the [MASK]" {where}'
        ended = subprocess.run(
            ["sh", "-c", command, sys.executable, str(model)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert ended.returncode == 2
        assert len(ended.stderr.strip().splitlines()) == 1, ended.stderr


def test_words_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    Command().answer({}, "a\x1b[2J\x07\u202eb\n\tc")
    assert capsys.readouterr().out == "a\\x1b[2J\\x07\\u202eb\n\tc\n"
