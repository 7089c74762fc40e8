from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from tiny_image_text import new_image_text, save_tiny_image_text
from tiny_pairs import save_tiny_pairs

from maskery.core.errors import DataError
from maskery.data.images.views import view
from maskery.data.pairs.image_refs import FileImage
from maskery.evaluation.gallery import Gallery, open_gallery
from maskery.evaluation.image_text_opening import OpenImageText, open_image_text
from maskery.evaluation.search import Searcher

TEXT = "this is a red square of paper"


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> OpenImageText:
    return open_image_text(str(save_tiny_image_text(tmp_path_factory.mktemp("model"))))


@pytest.fixture(scope="module")
def gallery(opened: OpenImageText, tmp_path_factory: pytest.TempPathFactory) -> Gallery:
    folder = tmp_path_factory.mktemp("gallery")
    save_tiny_pairs(folder / "pictures", 12)
    return open_gallery(opened, folder / "pictures", cache_dir=folder / "cache")


@torch.no_grad()
def by_hand(opened: OpenImageText, gallery: Gallery) -> tuple[dict[str, float], dict[str, float]]:
    """Similarity and match of every picture by the model's own passes, one at a time."""
    model, similar, match = opened.model, {}, {}
    ids = torch.tensor(opened.tokenizer(TEXT)["input_ids"])[None]
    hidden = model.text_encoder.encode_text(ids, None)
    for path in gallery.folder.glob("*.png"):
        tokens = model.encode_image(
            view(FileImage(path.name, path.parent, 999).load(), opened.view)[None]
        )
        fused = model.text_encoder.fuse(hidden, None, model.project_images(tokens))
        similar[path.name] = float(model.text_feature(hidden) @ model.image_feature(tokens).T)
        match[path.name] = float(model.itm_head(fused[:, 0]).softmax(dim=-1)[0, 1])
    return similar, match


def test_matching_ranks_the_most_similar_and_the_others_follow(
    opened: OpenImageText, gallery: Gallery
) -> None:
    similar, match = by_hand(opened, gallery)
    hits = Searcher(opened, gallery, rerank=5).search(TEXT, top=9)
    ordered = sorted(similar, key=lambda name: -similar[name])
    best = sorted(ordered[:5], key=lambda name: -match[name])
    assert [hit.path for hit in hits] == best + ordered[5:9]
    for hit in hits:
        assert hit.similarity == pytest.approx(similar[hit.path], abs=2e-3)
    for hit in hits[:5]:
        assert hit.match == pytest.approx(match[hit.path], abs=1e-5)
    assert all(hit.match is None for hit in hits[5:])


def test_more_than_there_is_gives_all(
    opened: OpenImageText, gallery: Gallery, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "maskery"):
        searcher = Searcher(opened, gallery, rerank=500)
    assert "the gallery has 12 pictures: all of them" in caplog.text
    hits = searcher.search(TEXT, top=100)
    assert len(hits) == 12
    assert all(hit.match is not None for hit in hits)


def test_a_matching_head_that_was_never_trained_is_not_asked(
    gallery: Gallery, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = save_tiny_image_text(tmp_path / "model", new_image_text(match=False))
    opened = open_image_text(str(folder))
    with caplog.at_level(logging.WARNING, "maskery"):
        hits = Searcher(opened, gallery, rerank=5).search(TEXT)
    assert "never trained" in caplog.text
    assert all(hit.match is None for hit in hits)
    values = [hit.similarity for hit in hits]
    assert values == sorted(values, reverse=True)


def test_a_picture_that_is_lost_meanwhile_comes_last(
    opened: OpenImageText, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_tiny_pairs(tmp_path / "pictures", 6)
    gallery = open_gallery(opened, tmp_path / "pictures", cache_dir=tmp_path / "cache")
    (tmp_path / "pictures" / "003.png").unlink()
    hits = Searcher(opened, gallery, rerank=6).search(TEXT)
    assert "003.png cannot be read" in caplog.text
    assert hits[-1].path == "003.png"
    assert len(hits) == 6


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (" ", "the query is empty"),
        ("zebra", "no word that the model knows"),
        ("red " * 40, "42 tokens, and the model reads 16"),
    ],
)
def test_bad_queries_are_one_line(
    opened: OpenImageText, gallery: Gallery, text: str, line: str
) -> None:
    with pytest.raises(DataError, match=line):
        Searcher(opened, gallery, rerank=0).search(text)
