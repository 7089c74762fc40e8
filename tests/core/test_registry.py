"""Choices: ours by name, a user's file, an object; and what is refused in one line."""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest

from maskery.core.errors import MaskeryError, MissingExtraError, PluginError
from maskery.core.registry import (
    FromFile,
    Registry,
    anchored_choice,
    plugin_identity,
    require,
    trust,
)

CONTRACT = "a number"


@pytest.fixture
def registry() -> Registry[float]:
    ours: dict[str, float | str] = {"one": 1.0, "pi": "math:pi"}
    return Registry("--number", CONTRACT, ours, fits=lambda _: True)


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    path = tmp_path / "own.py"
    path.write_text("RUNS = []\nRUNS.append(1)\nTWO = 2.0\nclass Thing: pass\n", "utf-8")
    return path


def test_ours_lazy_plugins_and_objects(registry: Registry[float], plugin: Path) -> None:
    assert registry.find("one") == 1.0
    assert registry.find("pi") == pytest.approx(3.14159, abs=1e-5)
    assert registry.find(f"{plugin}:TWO") == 2.0
    assert registry.find(7.0) == 7.0
    registry.register("seven", 7.0)
    with pytest.raises(PluginError, match=r"'six': it must be one, pi, seven, or FILE"):
        registry.check("six")
    assert registry.find("seven") == 7.0
    with pytest.raises(PluginError, match=r"'one' is registered already"):
        registry.register("one", 3.0)


def test_a_file_that_prints_leaves_standard_output_to_results(
    registry: Registry[float], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "loud.py"
    path.write_text("print('hello')\nTWO = 2.0\n", "utf-8")
    assert registry.find(f"{path}:TWO") == 2.0
    assert capsys.readouterr() == ("", "hello\n")


def test_what_does_not_fit_is_refused(plugin: Path) -> None:
    registry: Registry[object] = Registry("--call", "a callable", {})
    assert registry.find(len) is len
    with pytest.raises(
        PluginError, match=r"^--call .*own\.py:TWO: it is of type float; it must be"
    ):
        registry.find(f"{plugin}:TWO")


def test_a_file_runs_once_and_its_objects_are_pickled(
    registry: Registry[object], plugin: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert registry.find(f"{plugin}:RUNS") == [1]
    monkeypatch.chdir(plugin.parent)
    thing = registry.find("own.py:Thing")
    assert registry.find("own.py:RUNS") == [1]
    assert pickle.loads(pickle.dumps(thing)) is thing


@pytest.mark.parametrize(
    ("code", "name", "said"),
    [
        (None, "TWO", r"there is no file '.*own\.py'; .* a number in it"),
        ("A = 1\nB = 2", "TWO", r"has no 'TWO' \(it has A, B\); it must be a number"),
        ("x = 1\nx / 0", "TWO", r"fails when it is loaded \(line 2\): ZeroDivisionError"),
        ("x = 1\0", "TWO", r"own\.py' fails when it is loaded: SyntaxError"),
        ("x = = 1", "TWO", r"fails when it is loaded \(line 1\): SyntaxError"),
        ("import sys\nsys.exit(0)", "TWO", r"fails when it is loaded \(line 2\): SystemExit"),
    ],
)
def test_what_cannot_be_loaded(
    registry: Registry[float], tmp_path: Path, code: str | None, name: str, said: str
) -> None:
    path = tmp_path / "own.py"
    if code is not None:
        path.write_text(code, "utf-8")
    with pytest.raises(PluginError, match=said) as caught:
        registry.find(f"{path}:{name}")
    assert "\n" not in str(caught.value)


def test_unknown_names_and_broken_contracts(registry: Registry[float]) -> None:
    with pytest.raises(PluginError, match=r"'two': it must be one, pi, or FILE\.py:NAME"):
        registry.find("two")
    assert "own.py:F: it returned a list; it must be a number" in str(
        registry.misfit("own.py:F", "it returned a list")
    )


def test_a_file_never_loads_code(registry: Registry[float], plugin: Path) -> None:
    with pytest.raises(PluginError, match=r"add --number .*own\.py:TWO"):
        registry.find(FromFile(f"{plugin}:TWO"))
    assert registry.find(FromFile("one")) == 1.0
    assert isinstance(anchored_choice(FromFile("own.py:TWO")), FromFile)


@pytest.mark.parametrize("flag", ["its own", "--trust"])
def test_a_file_names_what_the_user_has_named(
    registry: Registry[object], plugin: Path, flag: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(plugin.parent)
    if flag == "--trust":
        trust(["own.py:TWO"])
    else:
        registry.find("own.py:TWO")
    assert registry.find(FromFile(f"{plugin}:TWO")) == 2.0
    with pytest.raises(PluginError, match=r"--trust .*own\.py:RUNS"):
        registry.find(FromFile(f"{plugin}:RUNS"))
    with pytest.raises(PluginError, match=r"--trust is 'own\.py': it must be FILE\.py:NAME"):
        trust(["own.py"])


def test_identity_follows_the_code(plugin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = plugin_identity(f"{plugin}:TWO")
    monkeypatch.chdir(plugin.parent)
    assert plugin_identity("own.py:TWO") == first
    assert plugin_identity(anchored_choice("own.py:TWO")) == first
    plugin.write_text("TWO = 3.0", "utf-8")
    assert plugin_identity("own.py:TWO") != first
    assert plugin_identity("token") == "token"


def test_identity_follows_what_a_plugin_says_it_depends_on(
    registry: Registry[float], plugin: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    choice = f"{plugin}:Thing"
    plain = plugin_identity(choice)
    thing: Any = registry.find(choice)
    assert plugin_identity(choice) == plain
    table = plugin.with_name("table")
    thing.run_identity = staticmethod(table.read_bytes)
    assert plugin_identity(choice) == choice  # there is no table: making it says so
    found = []
    for content in (b"one", b"two"):
        table.write_bytes(content)
        found.append(plugin_identity(choice))
    assert len({plain, *found}) == 3
    thing.run_identity = staticmethod(lambda: {}["SETTING"])
    with pytest.raises(PluginError, match=r"own\.py:Thing: run_identity fails with KeyError"):
        plugin_identity(choice)


def test_an_installed_module_is_returned() -> None:
    assert require("json", extra="none", purpose="test") is json
    assert require("json.decoder", extra="none", purpose="test") is json.decoder


def test_a_missing_module_names_the_package_the_purpose_and_the_extra() -> None:
    with pytest.raises(MissingExtraError) as caught:
        require("no_such_package.part", extra="vision", purpose="read images")
    assert str(caught.value) == (
        "no_such_package is needed to read images and is not installed; "
        "install it with: pip install 'maskery[vision]'"
    )
    assert isinstance(caught.value, MaskeryError)
    assert isinstance(caught.value, ImportError)


def test_the_package_named_is_the_one_that_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As torch.utils.tensorboard, which is there and imports tensorboard, which may not be.
    (tmp_path / "present_wrapper.py").write_text("import absent_backend.inner\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingExtraError, match=r"^absent_backend is needed to draw"):
        require("present_wrapper", extra="report", purpose="draw")
    assert "present_wrapper" not in sys.modules
