from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from maskery.core.errors import ConfigError, PluginError
from maskery.core.registry import FromFile, anchored_choice, from_file, split_weight
from maskery.objectives.terms import HEADS, TERMS, LossTerm, load_terms, trained_terms
from maskery.tasks.image_text_config import ImageTextMLMConfig, PersonSearchConfig


@pytest.mark.parametrize("kind", [ImageTextMLMConfig, PersonSearchConfig])
def test_every_weight_of_a_configuration_is_a_term_and_counts(kind: Any) -> None:
    flags = [f.name for f in dataclasses.fields(kind) if f.name.endswith("_weight")]
    assert set(flags) <= {term.flag for term in TERMS.values()}
    off = dict.fromkeys(flags, 0.0)
    assert kind(**off).weights == {}
    for flag in flags:
        assert kind(**off | {flag: 0.25}).weights == {flag.removesuffix("_weight"): 0.25}


def test_word_losses_are_switched_as_in_text_runs() -> None:
    assert PersonSearchConfig(objective="mlm").weights == {
        "itc": 0.5,
        "itm": 1.0,
        "mlm": 1.0,
        "prd": 0.5,
    }
    off = PersonSearchConfig(mlm_weight=0.0, mrtd_weight=0.0)
    both = dataclasses.replace(off, objective="mlm+mrtd").weights
    assert (both["mlm"], both["mrtd"]) == (1.0, 0.5)
    own = ImageTextMLMConfig(mrtd_weight=0.2, objective="mlm+mrtd").weights
    assert own == {"mlm": 1.0, "mrtd": 0.2}
    assert ImageTextMLMConfig(term=("mrtd=0", "itc=0.3")).weights == {"itc": 0.3, "mlm": 1.0}


def test_a_term_of_another_kind_is_refused() -> None:
    with pytest.raises(ConfigError, match="itc, mlm, mrtd; 'prd' needs to know persons"):
        ImageTextMLMConfig(term=("prd=1",))
    with pytest.raises(PluginError, match=r"FILE\.py:NAME with a function"):
        ImageTextMLMConfig(term=("siglip",))
    with pytest.raises(PluginError, match="must be a number of 0 or more"):
        ImageTextMLMConfig(term=("itc=much",))


def test_heads_tell_what_a_model_is_good_for() -> None:
    def mine(step: Any) -> None: ...

    own = LossTerm.of(mine)  # trains the projections by default
    assert trained_terms([TERMS["mlm"], own]) == ("itc", "mlm")
    assert trained_terms(TERMS.values()) == tuple(TERMS)
    assert set(HEADS) == {head for term in TERMS.values() for head in term.heads}


def test_a_file_never_names_a_term_that_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("def mine(step):\n    return step.features.image.sum(), 1\n")
    choice = f"{path}:mine=0.5"
    marked = from_file(choice)
    assert isinstance(marked, FromFile)
    assert isinstance(split_weight(marked)[0], FromFile)
    assert not isinstance(from_file("a=1"), FromFile)
    with pytest.raises(PluginError, match=r"add --term .*mine\.py:mine"):
        load_terms([marked], [], None)
    # Named again on the command line it is loaded, with the weight that the file gave it.
    (term,) = load_terms([marked, f"{path}:mine"], [], None)
    assert (term.name, term.weight) == ("mine", 0.5)


def test_paths_with_weights_are_made_absolute() -> None:
    assert anchored_choice("mine.py:mine=0.5") == f"{Path('mine.py').absolute()}:mine=0.5"
    assert anchored_choice("itc=0.5") == "itc=0.5"


BAD = {
    "value = 3": "value: found a int that is no such thing",
    "class value:\n    def __init__(self, a, b, c): ...": "making it fails: TypeError",
    "def value(step): ...\nvalue.name = 'loss'": "'loss' is taken",
    "def value(step): ...\nvalue.name = 'two words'": "no single word",
    "def value(step): ...\nvalue.heads = ['nose']": "not among vision_proj",
    "def value(step): ...\nvalue.heads = None": "its heads are None, not among vision_proj",
    "def value(step): ...\nvalue.heads = [['temp']]": "not among vision_proj",
}


@pytest.mark.parametrize(("code", "told"), BAD.items())
def test_a_thing_that_is_no_term_is_told_in_one_line(code: str, told: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(code)
    with pytest.raises(PluginError) as caught:
        load_terms([f"{path}:value"], [], None)
    assert "mine.py:value" in str(caught.value)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_two_terms_of_one_name_are_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.py").write_text("def mine(step): ...")
    with pytest.raises(PluginError, match="named 'mine' too"):
        load_terms([f"{tmp_path}/a.py:mine", f"{tmp_path}/b.py:mine"], [], None)
