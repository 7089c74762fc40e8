from __future__ import annotations

import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from tiny_image_text import new_image_text, save_tiny_image_text
from tiny_pairs import save_tiny_pairs

from maskery.core.errors import DataError
from maskery.data.images.loading import ImageRef
from maskery.data.images.views import view
from maskery.data.pairs.pairs import Pairs
from maskery.evaluation.image_text.explain import explain
from maskery.evaluation.image_text.opening import OpenImageText, open_image_text
from maskery.evaluation.retrieval import search as module
from maskery.evaluation.retrieval.config import (
    ModelRetrieval,
    RetrievalConfig,
    save_model_retrieval,
)
from maskery.evaluation.retrieval.retrieval_set import RetrievalSet
from maskery.evaluation.retrieval.search import Gallery, Searcher, nearest, open_gallery, search

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
def by_hand(
    opened: OpenImageText, gallery: Gallery
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Similarity and logits of every picture by the model's own passes, one at a time."""
    model, similar, logits = opened.model, {}, {}
    ids = torch.tensor(opened.tokenizer(TEXT)["input_ids"])[None]
    hidden = model.text_encoder.encode_text(ids, None)
    for path in gallery.folder.glob("*.png"):
        tokens = model.encode_image(
            view(ImageRef.file(path.name, path.parent, 999).load(), opened.view)[None]
        )
        fused = model.text_encoder.fuse(hidden, None, model.project_images(tokens))
        similar[path.name] = float(model.text_feature(hidden) @ model.image_feature(tokens).T)
        logits[path.name] = model.itm_head(fused[:, 0])[0].tolist()
    return similar, logits


def ranked_by(number: int, **settings: object) -> RetrievalConfig:
    return RetrievalConfig(rerank=number, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("score", ["matching", "odds", "sum"])
def test_the_score_ranks_the_most_similar_and_the_others_follow(
    opened: OpenImageText, gallery: Gallery, score: str
) -> None:
    similar, logits = by_hand(opened, gallery)
    config = ranked_by(5, score=score, odds_weight=2.0)
    hits = Searcher(opened, gallery, config).search(TEXT, top=9)
    ordered = sorted(similar, key=lambda name: -similar[name])
    odds = {name: yes - no for name, (no, yes) in logits.items()}
    temperature = float(opened.model.temp.detach())
    by = {
        "matching": {name: yes for name, (_, yes) in logits.items()},
        "odds": odds,
        "sum": {name: 2 * odds[name] + similar[name] / temperature for name in odds},
    }[score]
    match = {name: 1 / (1 + math.exp(-value)) for name, value in odds.items()}
    best = sorted(ordered[:5], key=lambda name: -by[name])
    assert [hit.path for hit in hits] == best + ordered[5:9]
    for hit in hits:
        assert hit.similarity == pytest.approx(similar[hit.path], abs=2e-3)
    for hit in hits[:5]:
        assert hit.match == pytest.approx(match[hit.path], abs=1e-5)
        assert hit.score == pytest.approx(by[hit.path], abs=1e-4)
    assert all(hit.match is hit.score is None for hit in hits[5:])


@pytest.mark.parametrize("score", ["matching", "odds", "sum"])
def test_what_is_found_is_what_was_measured(
    opened: OpenImageText, tmp_path: Path, score: Literal["matching", "odds", "sum"]
) -> None:
    """The rankings of all captions are those of `evaluate_retrieval`, picture by picture."""
    pairs = Pairs.open(str(save_tiny_pairs(tmp_path / "pictures", 12)))
    own = ModelRetrieval(
        clean_captions=True, rerank=7, score=score, odds_weight=2.0, trained=("itc", "itm")
    )
    asked = replace(opened, retrieval=own)
    data = RetrievalSet.read_by(asked, pairs.prepared(own.prepare))
    found = data.evaluate(opened.model, own.ranking)
    assert found.reranked is not None
    names = [
        Path(image.name).name for image in (pairs[index].image for index in data.gallery.tolist())
    ]
    measured = [[names[i] for i in row] for row in found.reranked.order.tolist()]
    gallery = open_gallery(asked, tmp_path / "pictures", cache_dir=tmp_path / "cache")
    searcher = Searcher(asked, gallery)
    captions = [data.caption(query) for query in range(len(data.queries))]
    searched = [[hit.path for hit in searcher.search(text, top=7)] for text in captions]
    assert searched == measured
    plain = found.contrastive.order[:, :7].tolist()
    assert measured != [[names[i] for i in row] for row in plain]


def test_more_than_there_is_gives_all(
    opened: OpenImageText, gallery: Gallery, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "maskery"):
        searcher = Searcher(opened, gallery, ranked_by(500))
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
        hits = Searcher(opened, gallery, ranked_by(5)).search(TEXT)
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
    hits = Searcher(opened, gallery, ranked_by(6)).search(TEXT)
    assert "003.png cannot be read" in caplog.text
    assert hits[-1].path == "003.png"
    assert len(hits) == 6


@pytest.mark.parametrize("words", [None, TEXT])
@torch.no_grad()
def test_a_picture_finds_those_nearest_to_it_and_to_the_words(
    opened: OpenImageText, gallery: Gallery, words: str | None
) -> None:
    model, names = opened.model, sorted(path.name for path in gallery.folder.glob("*.png"))
    views = [view(ImageRef.file(name, gallery.folder, 999).load(), opened.view) for name in names]
    own = [model.image_feature(model.encode_image(one[None]))[0].double().numpy() for one in views]
    query = own[7]
    if words is not None:
        ids = torch.tensor(opened.tokenizer(words)["input_ids"])[None]
        text = model.text_feature(model.text_encoder.encode_text(ids, None))[0].double().numpy()
        query = text + query
    expected = [float(one @ query / np.linalg.norm(query)) for one in own]
    texts = () if words is None else words
    (hits,) = search(opened, gallery, texts, like=gallery.folder / names[7], top=12)
    found = {hit.path: hit.similarity for hit in hits}
    # The index keeps features in half precision.
    assert [found[name] for name in names] == pytest.approx(expected, abs=1e-3)
    assert [hit.match for hit in hits] == [None] * 12
    similarities = [hit.similarity for hit in hits]
    assert similarities == sorted(similarities, reverse=True)
    if words is None:
        assert hits[0].similarity == pytest.approx(1.0, abs=1e-3)  # the picture itself


def test_a_search_for_nothing_is_one_line(opened: OpenImageText, gallery: Gallery) -> None:
    with pytest.raises(DataError, match="nothing to search for"):
        search(opened, gallery)


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
        Searcher(opened, gallery, ranked_by(0)).search(text)


def test_searching_and_explaining_take_files(opened: OpenImageText, tmp_path: Path) -> None:
    """Pictures are folders, files or bytes, and the model may be one that was saved."""
    save_tiny_pairs(tmp_path / "pictures", 5)
    opened.model.save_pretrained(tmp_path / "model")
    opened.tokenizer.save_pretrained(tmp_path / "model")
    save_model_retrieval(tmp_path / "model", opened.retrieval)
    named, folder = open_image_text(str(tmp_path / "model")), str(tmp_path / "pictures")
    found = search(
        named, folder, ["all red", "a blue square"], top=3, cache_dir=str(tmp_path / "cache")
    )
    assert [len(hits) for hits in found] == [3, 3]
    gallery = open_gallery(opened, tmp_path / "pictures", cache_dir=tmp_path / "cache")
    assert search(opened, gallery, "all red", top=3)[0][0].path == found[0][0].path
    name = str(tmp_path / "pictures" / "000.png")
    (by_name, by_bytes) = (
        explain(named, picture, "all red") for picture in (name, Path(name).read_bytes())
    )
    assert [word.word for word in by_name.words] == [word.word for word in by_bytes.words]
    assert np.array_equal(by_name.words[0].heat, by_bytes.words[0].heat)


def vectors(count: int, width: int = 32, seed: int = 0) -> np.ndarray:
    drawn = np.random.default_rng(seed).standard_normal((count, width)).astype(np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


@pytest.mark.parametrize("count", [1, 5, 40, 500])
@pytest.mark.parametrize("block", [32, 100, 1 << 19])
def test_the_scan_is_exact(
    count: int, block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BLOCK_NUMBERS", block)
    np.save(tmp_path / "matrix.npy", vectors(500).astype(np.float16))
    matrix = np.load(tmp_path / "matrix.npy", mmap_mode="c")
    query = vectors(1, seed=1)[0]
    rows, products = nearest(matrix, query, count)
    exact = matrix.astype(np.float32) @ query
    np.testing.assert_array_equal(rows, np.argsort(-exact, kind="stable")[:count])
    np.testing.assert_allclose(products, exact[rows], rtol=1e-4, atol=1e-6)


def test_ties_by_index() -> None:
    matrix = vectors(4).astype(np.float16)[[0, 1, 0, 2, 0]]
    rows, products = nearest(matrix, matrix[0].astype(np.float32), 5)
    assert rows[:3].tolist() == [0, 2, 4]
    assert products[0] == products[2]
    assert sorted(rows.tolist()) == [0, 1, 2, 3, 4]
