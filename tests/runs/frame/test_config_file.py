"""A run's file says its kind, cannot load code, and neither its size nor its nesting stalls us."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import yaml

from maskery.core.errors import ConfigError, PluginError
from maskery.core.registry import FromFile, Registry
from maskery.runs.frame.config_file import (
    KINDS,
    kind_of,
    load_config,
    open_run,
    read_config,
    read_settings,
    run_kind,
    save_config,
)
from maskery.runs.text.config import TextRunConfig


@dataclass(frozen=True, kw_only=True)
class Config:
    kind: ClassVar[str] = "text"
    policy: str = "token"
    rate: float = 0.15
    steps: int = 10
    words: tuple[str, ...] = ()


def test_the_kind_is_written_and_read(tmp_path: Path) -> None:
    save_config(tmp_path, Config(rate=0.5, words=("a", "b")))
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["kind"] == "text"
    assert load_config(tmp_path / "config.yaml", Config) == Config(rate=0.5, words=("a", "b"))
    assert run_kind(tmp_path) == run_kind(str(tmp_path)) == "text"


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_of_before_the_kind_is_told_by_its_settings(kind: str, tmp_path: Path) -> None:
    """Each kind has a setting that the others lack, and its class says the same kind."""
    config = KINDS[kind].load("config")
    needed = {
        "text": {"corpus": ["a.txt"]},
        "pairs": {"pairs": "a.jsonl"},
        "person-search": {"data": {"dataset": "jsonl", "root": "a.jsonl"}},
    }[kind]
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(needed))
    assert config.kind == kind == kind_of(read_settings(path), path)
    old = read_config(path)
    assert isinstance(old, config)
    save_config(tmp_path, old)
    assert open_run(tmp_path).config == old
    others = [KINDS[other].load("config") for other in KINDS if other != kind]
    for other in others:
        with pytest.raises(ConfigError, match=f"this is a run of kind {kind}"):
            load_config(path, other)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("rate: 0.5\n", "no kind of run is named; add kind: text or pairs or person-search"),
        ("kind: images\n", "kind is 'images': it must be one of text, pairs, person-search"),
        ("kind: [text]\n", "it must be one of"),
        ("- a\n", "expected named settings"),
        ("kind: text\ncorpus: [a.txt]\nratte: 1\n", "unknown setting 'ratte'"),
        (
            "kind: text\ncorpus: [a]\nmask_rate: 1\nmask_rate: 2\n",
            "line 4 has 'mask_rate' again",
        ),
        ("kind: text\ncorpus: [a]\ntraining: !!map [1]\n", "expected a mapping node"),
        ("kind: pairs\npairs: a\nview: {erase_scale: []}\n", "it must be a list of 2"),
        ("kind: pairs\npairs: a\nview: {mean: [1, 2]}\n", "it must be a list of 3"),
    ],
)
def test_a_file_of_no_known_kind_is_one_line(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(ConfigError, match=message) as caught:
        open_run(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_model_folder_is_no_run(tmp_path: Path) -> None:
    assert run_kind(tmp_path) is None
    (tmp_path / "config.yaml").write_text("anything: 1\n")
    (tmp_path / "config.json").write_text("{}")
    assert run_kind(tmp_path) is None
    with pytest.raises(ConfigError, match="no run folder"):
        open_run(tmp_path / "missing")


BILLION = "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}' if n else 'x'] * 10)}]\n" for n in range(12)
)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (BILLION, r"line 2 has an alias"),
        ("rate: " + "[" * 100_000, "cannot be read"),
        ("rate:\n" + "".join(f"{' ' * n}a:\n" for n in range(1, 2_000)), "cannot be read"),
        ("steps: " + "9" * 1_000_000, "digits"),
        ("steps: 0x" + "f" * 1_000_000, "digits"),
        ("steps: 1" + ":59" * 300_000, "digits"),
        ("rate: " + "9" * 24, None),
        ("rate: 1" + "0" * 400, "digits"),
        ("words: [" + "a, " * 1_000_000 + "]", "more than"),
        ("steps: " + "x" * 1_000_000, "must be of type int"),
    ],
    ids=["aliases", "flow", "block", "digits", "hex", "sixties", "float", "huge", "long", "text"],
)
def test_a_hostile_file_is_refused_at_once(
    content: str, message: str | None, tmp_path: Path
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(content)
    if message is None:
        assert load_config(path, Config).rate == pytest.approx(1e24)
    else:
        with pytest.raises(ConfigError, match=message) as caught:
            load_config(path, Config)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 1_000


def test_a_plug_in_is_read_as_a_name_that_loads_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text("raise AssertionError('it was loaded')")
    monkeypatch.chdir(tmp_path)
    save_config(tmp_path, Config(policy="mine.py:policy", words=("a.py:b", "c")))
    saved = load_config(tmp_path / "config.yaml", Config)
    # It means the same from any folder.
    assert saved.policy == f"{tmp_path / 'mine.py'}:policy"
    assert isinstance(saved.policy, FromFile)
    assert [isinstance(word, FromFile) for word in saved.words] == [True, False]
    registry: Registry[object] = Registry("--policy", "a policy", {})
    with pytest.raises(PluginError, match=f"add --policy {saved.policy}") as caught:
        registry.find(saved.policy)
    assert "\n" not in str(caught.value)
    save_config(tmp_path, saved)  # it is written as any string
    assert load_config(tmp_path / "config.yaml", Config) == saved


def test_settings_of_a_text_run_come_back_equal(tmp_path: Path) -> None:
    config = TextRunConfig(corpus=("a.txt",), add_words=Path("words.txt"), hidden_dropout=0.1)
    save_config(tmp_path, config)
    assert load_config(tmp_path / "config.yaml", TextRunConfig) == config
