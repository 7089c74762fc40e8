from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_image_text import new_image_text, save_tiny_image_text

from maskery.core.errors import ConfigError, ModelError
from maskery.evaluation.image_text.opening import open_image_text
from maskery.evaluation.retrieval.config import (
    FILE,
    ModelRetrieval,
    read_model_retrieval,
    save_model_retrieval,
)

ODD = ModelRetrieval(
    clean_captions=True,
    max_words=7,
    max_length=9,
    rerank=3,
    score="sum",
    odds_weight=0.25,
    trained=("itc",),
)


def test_it_is_read_as_it_was_written(tmp_path: Path) -> None:
    folder = save_tiny_image_text(tmp_path / "model")
    save_model_retrieval(folder, ODD)
    assert read_model_retrieval(str(folder)) == ODD
    opened = open_image_text(str(folder))
    assert opened.retrieval == ODD
    assert opened.max_tokens == 9
    assert opened.retrieval.prepare("A man, a dog; a CAT and a bird!") == "a man a dog a cat and"


def test_longer_captions_than_the_model_has_positions_are_none(tmp_path: Path) -> None:
    folder = save_tiny_image_text(tmp_path / "model")
    save_model_retrieval(folder, ModelRetrieval(max_length=900))
    assert open_image_text(str(folder)).max_tokens == 16


@pytest.mark.parametrize(
    ("contrast", "match", "fusion_layers", "trained"),
    [
        (True, True, 2, {"itc", "itm", "mlm"}),
        (False, True, 1, {"itm", "mlm"}),
        (True, False, 2, {"itc", "mlm"}),
    ],
)
def test_without_a_file_biases_tell_what_was_trained(
    tmp_path: Path, contrast: bool, match: bool, fusion_layers: int, trained: set[str]
) -> None:
    model = new_image_text(contrast=contrast, match=match, fusion_layers=fusion_layers)
    guessed = open_image_text(str(save_tiny_image_text(tmp_path, model))).retrieval
    assert set(guessed.trained) == trained
    assert guessed.prepare("A man, a dog!") == "A man, a dog!"


def damage(**changes: Any) -> bytes:
    sound = {
        "clean_captions": True,
        "max_words": 50,
        "max_length": None,
        "rerank": 16,
        "score": "sum",
        "odds_weight": 0.2,
        "trained": ["itc"],
    }
    return json.dumps({**sound, **changes}).encode()


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"", "Expecting value"),
        (b'{"clean_captions": tru', "Expecting value"),
        (b"\xff\xfe", "utf-8"),
        (b"[" * 100_000, "is damaged"),
        (b"[1, 2]", "must have the settings"),
        (b'{"clean_captions": true}', "must have the settings"),
        (damage(other=1), "must have the settings"),
        (damage(clean_captions=1), "clean_captions is 1: it must be bool"),
        (damage(max_words=True), "max_words is True"),
        (damage(max_words=0), "at least 1"),
        (damage(max_length=2), "at least 3"),
        (damage(max_length="9"), "it must be int or null"),
        (damage(rerank=-1), "rerank is -1"),
        (damage(score="best"), "must be one of matching, odds, sum"),
        (damage(odds_weight=float("nan")), "odds_weight is nan"),
        (damage(trained=["itc", "itx"]), "trained has 'itx'"),
        (damage(trained=["itc", ["itm"]]), "trained has"),
        (damage(trained="itc"), "must be list"),
    ],
)
def test_a_damaged_file_is_one_line(tmp_path: Path, content: bytes, line: str) -> None:
    folder = save_tiny_image_text(tmp_path / "model")
    (folder / FILE).write_bytes(content)
    with pytest.raises(ModelError, match=line) as caught:
        open_image_text(str(folder))
    assert FILE in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match="the losses are itc, itm, mlm, prd, mrtd"):
        ModelRetrieval(trained=("all",))
