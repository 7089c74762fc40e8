"""One call each gives what the longer way gives, with models by name or open."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_image_text import save_tiny_image_text
from tiny_pairs import save_tiny_pairs
from tiny_text import lines, save_tiny_model

from maskery import (
    ConfigError,
    TextRunConfig,
    TrainingConfig,
    explain,
    open_filler,
    open_image_text,
    search,
    train,
    train_text,
)
from maskery.evaluation.image_text.explain import explain as explain_opened
from maskery.evaluation.image_text.image_fill import ImageFiller, load_picture
from maskery.evaluation.retrieval.search import Searcher, open_gallery
from maskery.evaluation.text.fill import saliency

QUERY = "this is a red square"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shortcuts")
    save_tiny_pairs(folder / "pictures", 12)
    save_tiny_image_text(folder / "model")
    save_tiny_model(folder / "text")
    return folder


def test_search_is_the_searchers(folder: Path) -> None:
    opened = open_image_text(folder / "model")
    gallery = open_gallery(opened, folder / "pictures", cache_dir=folder / "other cache")
    expected = Searcher(opened, gallery).search(QUERY, top=5)
    assert search(str(folder / "model"), str(folder / "pictures"), QUERY, top=5) == expected
    assert open_image_text(opened) is opened
    ranking = replace(opened.retrieval.ranking, rerank=0)
    by_similarity = Searcher(opened, gallery, ranking).search(QUERY, top=5)
    cache = folder / "third cache"
    assert (
        search(opened, folder / "pictures", QUERY, top=5, rerank=0, cache_dir=cache)
        == by_similarity
    )
    assert cache.is_dir()


def test_explain_reads_a_file_or_a_picture(folder: Path) -> None:
    opened, path = open_image_text(folder / "model"), folder / "pictures" / "000.png"
    expected = explain_opened(opened, load_picture(path, opened.view.size), QUERY)
    with Image.open(path) as image:
        picture = image.convert("RGB")
    for found in (explain(folder / "model", str(path), QUERY), explain(opened, picture, QUERY)):
        assert found.match == expected.match
        for own, other in zip(found.words, expected.words, strict=True):
            np.testing.assert_array_equal(own.heat, other.heat)


def test_a_filler_is_opened_with_or_without_a_picture(folder: Path) -> None:
    picture, sentence = folder / "pictures" / "000.png", "this is a [MASK] square"
    seeing = open_filler(folder / "model", picture)
    expected = ImageFiller(open_image_text(folder / "model"), picture)
    assert seeing.fill(sentence) == expected.fill(sentence)
    assert seeing.fill(sentence) == open_filler(folder / "model", str(picture)).fill(sentence)
    blind = open_filler(str(folder / "model"))
    assert isinstance(blind, ImageFiller)
    assert blind.fill(sentence) != seeing.fill(sentence)
    for filler in (seeing, blind):
        assert sum(saliency(filler, sentence).weights) == pytest.approx(1.0)
    assert open_filler(folder / "text").fill("the [MASK]").masks
    with pytest.raises(ConfigError, match="reads text alone"):
        open_filler(folder / "text", picture)


def test_train_goes_by_the_kind_of_the_configuration(folder: Path) -> None:
    corpus = folder / "corpus.txt"
    corpus.write_text("\n".join(lines(40)), "utf-8")
    config = TextRunConfig(
        corpus=(str(corpus),),
        model=str(folder / "text"),
        output=folder / "one",
        held_out_share=0.3,
        training=TrainingConfig(epochs=1),
    )
    one = train(config, progress=False, report=False)
    other = train_text(replace(config, output=folder / "two"), progress=False)
    assert one.after == other.after
    assert (one.folder, other.folder) == (folder / "one", folder / "two")
