from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pytest
import tyro

from maskery.core import ranges
from maskery.core.errors import ConfigError
from maskery.core.ranges import Count, Range, Share, refuse_idle
from maskery.masking.config import MaskingConfig
from maskery.runs.image_text.config import PairsRunConfig
from maskery.runs.text.config import TextRunConfig
from maskery.training.config import TrainingConfig

NAN, INF = float("nan"), float("inf")


@dataclass(frozen=True, kw_only=True)
class Settings(ranges.Settings):
    """Settings of a test."""

    share: Share = 0.5
    """A share."""
    times: Count | None = None
    """A count."""
    rate: Annotated[float, Range(0, 1, above=True, hint="try {flag} 1e-4")] = 0.1
    """A rate."""
    probability: Annotated[float, Range(0, 1, above=True, below=True)] = 0.1
    """A probability."""
    warm_up: Annotated[float, Range(0, 1, below=True)] = 0.1
    """A share below 1."""
    seed: Annotated[int, Range(0, 2**63 - 1)] = 0
    """A seed."""
    pad: Annotated[int, tyro.conf.arg(name="padding"), Range(0, unit="pixels")] = 0
    """A width."""
    deviations: Annotated[tuple[float, ...], Range(0, above=True)] = (1.0,)
    """Several."""
    anything: Annotated[float, Range()] = 0.0
    """A finite number."""
    cold: Annotated[float, Range(high=-1.5)] = -2.0
    """A temperature."""
    shape: Literal["linear", "cosine"] | None = None
    """A choice."""
    open: Literal["ours"] | str = "ours"
    """A name of ours or any other."""


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"share": 1.5}, "share is 1.5: it must be from 0 to 1"),
        ({"share": NAN}, "share is nan: it must be from 0 to 1"),
        ({"share": "0.5"}, "share is '0.5': it must be from 0 to 1"),
        ({"times": 0}, "times is 0: it must be at least 1"),
        ({"rate": 0.0}, "rate is 0.0: it must be above 0 and at most 1; try --rate 1e-4"),
        ({"probability": 1.0}, "probability is 1.0: it must lie between 0 and 1"),
        ({"warm_up": 1.0}, "warm_up is 1.0: it must be from 0 to below 1"),
        ({"seed": 2**63}, f"seed is {2**63}: it must be from 0 to 2**63 - 1"),
        ({"pad": -1}, "pad is -1: it must be 0 or more pixels"),
        ({"pad": INF}, "pad is inf: it must be a whole number, and be 0 or more pixels"),
        ({"times": 10**20}, f"times is {10**20}: it must be at most 2**53 - 1"),
        ({"times": 2.5}, "times is 2.5: it must be a whole number, and be at least 1"),
        ({"times": True}, "times is True: it must be a number, and be at least 1"),
        ({"share": True}, "share is True: it must be a number, and be from 0 to 1"),
        ({"deviations": (1.0, 0.0)}, "deviations is (1.0, 0.0): each must be above 0"),
        ({"anything": -INF}, "anything is -inf: it must be finite"),
        ({"cold": 0}, "cold is 0: it must be at most -1.5"),
        ({"shape": "step"}, "shape is 'step': it must be one of linear, cosine"),
    ],
)
def test_a_setting_outside_its_range_is_refused(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Settings(**setting)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    "setting",
    [
        {"share": 0, "times": 1, "rate": 1.0, "warm_up": 0.0, "seed": 2**63 - 1},
        {"share": 1.0, "pad": 0, "cold": -1.5, "shape": "cosine", "open": "theirs"},
    ],
)
def test_the_edges_of_a_range_are_in_it(setting: dict[str, Any]) -> None:
    Settings(**setting)


def test_numbers_of_numpy_become_pythons() -> None:
    settings = Settings(share=np.float32(0.5), times=np.int64(3))
    assert json.dumps([settings.share, settings.times]) == "[0.5, 3]"
    with pytest.raises(ConfigError, match="times is 0"):
        Settings(times=np.int64(0))


def test_a_subclass_is_checked_for_its_own_fields_and_the_inherited() -> None:
    @dataclass(frozen=True, kw_only=True)
    class More(Settings):
        share: Annotated[float, Range(0, 2)] = 0.5

    More(share=1.5)
    with pytest.raises(ConfigError, match="times is 0"):
        More(times=0)


def test_a_default_that_stands_for_a_required_flag_is_let_through() -> None:
    preset = Settings(shape=tyro.MISSING, times=tyro.MISSING)
    parsed = tyro.cli(Settings, default=preset, args=["--shape", "cosine", "--times", "3"])
    assert (parsed.shape, parsed.times) == ("cosine", 3)


def test_ranges_leave_flags_as_they_are() -> None:
    parsed = tyro.cli(Settings, args=["--share", "0.25", "--times", "3", "--padding", "2"])
    assert parsed == Settings(share=0.25, times=3, pad=2)
    with pytest.raises(ConfigError, match="share is"):
        tyro.cli(Settings, args=["--share", "1.5"])


@dataclass(frozen=True, kw_only=True)
class WithPaths(ranges.Settings):
    output: Path | None = None
    root: Annotated[Path, "note"] = Path("here")
    model: str = "minilm"


def test_text_is_taken_where_a_path_is_declared() -> None:
    config = WithPaths(output="runs/a", root="data", model="b")  # type: ignore[arg-type]
    assert (config.output, config.root, config.model) == (Path("runs/a"), Path("data"), "b")
    assert WithPaths().output is None


def test_a_run_takes_one_corpus_and_its_paths_as_text() -> None:
    config = TextRunConfig(corpus="notes.txt", output="runs/a")  # type: ignore[arg-type]
    assert (config.corpus, config.output) == (("notes.txt",), Path("runs/a"))
    named: Any = {"corpus": Path("a.txt"), "model": Path("m"), "eval_data": [Path("b.txt"), "c=d"]}
    config = TextRunConfig(**named)
    assert (config.corpus, config.model) == (("a.txt",), "m")
    assert config.eval_data == ("b.txt", "c=d")


def test_names_may_come_from_any_iterable(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).touch()
    everything: Any = tmp_path.glob("*.txt")
    assert len(TextRunConfig(corpus=everything).corpus) == 2
    listed: Any = {"corpus": np.array(["a", "b"]), "lora": [], "eval_data": None}
    config = TextRunConfig(**listed)
    assert (config.corpus, config.lora, config.eval_data) == (("a", "b"), (), ())


MUON = TrainingConfig(optimiser="muon", muon_learning_rate=0.05)
IDLE: list[tuple[dict[str, Any], str]] = [
    ({"vocab_size": 500}, "--vocab-size has no effect without --model scratch:..."),
    ({"model": "a/scratch:b", "lowercase": True}, "--lowercase has no effect without --model scr"),
    ({"probe_label": "kind"}, "--probe-label has no effect without --probe"),
    (
        {"training": TrainingConfig(muon_learning_rate=0.05)},
        "--muon-learning-rate has no effect without --optimiser muon",
    ),
    (
        {"training": TrainingConfig(lr_schedule="cosine", decay_shape="linear")},
        "--decay-shape has no effect without --lr-schedule wsd",
    ),
    (
        {"masking": MaskingConfig(policy="word", span_max=3)},
        "--span-max has no effect without --policy span",
    ),
]


@pytest.mark.parametrize(("settings", "message"), IDLE)
def test_what_was_given_and_has_no_effect_is_refused(
    settings: dict[str, Any], message: str
) -> None:
    config = TextRunConfig(corpus=("a.txt",), **settings)
    with pytest.raises(ConfigError, match=re.escape(message)):
        refuse_idle(config)
    refuse_idle(config, config)  # a run that is repeated had it: nobody has given it now


def test_two_towers_of_their_own_learn_no_pieces() -> None:
    refuse_idle(PairsRunConfig(pairs="a.csv", vocab_size=500))
    towers = PairsRunConfig(pairs="a.csv", vocab_size=500, text_model="a", vision_model="b")
    with pytest.raises(ConfigError, match="--vocab-size has no effect beside --text-model; leave"):
        refuse_idle(towers)


@pytest.mark.parametrize(
    "settings",
    [
        {"model": "scratch:tiny", "vocab_size": 500, "tokenizer": "bpe", "strip_accents": True},
        {"probe": "labels.csv", "probe_label": "kind"},
        {"training": MUON},
        {"training": TrainingConfig(lr_schedule="wsd", decay_share=0.5)},
        {"masking": MaskingConfig(policy="span", span_max=3, span_p=0.3)},
    ],
)
def test_what_has_an_effect_is_let_through(settings: dict[str, Any]) -> None:
    refuse_idle(TextRunConfig(corpus=("a.txt",), **settings))
