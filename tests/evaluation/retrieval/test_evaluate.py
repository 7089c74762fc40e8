from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch

from maskery.core.batch import TokenBatch
from maskery.core.errors import ConfigError, DataError, ModelError
from maskery.evaluation.retrieval.config import RetrievalConfig
from maskery.evaluation.retrieval.evaluate import Retrieval, evaluate_retrieval
from maskery.evaluation.retrieval.metrics import retrieval_figures
from maskery.evaluation.text.fill import by_length
from maskery.models.image_text.build import build_from_scratch
from maskery.models.image_text.model import ImageTextModel
from maskery.models.image_text.sizes import ImageTextSizes

NUM_IMAGES, NUM_TEXTS, K = 13, 17, 5
IMAGE_PERSONS = np.arange(NUM_IMAGES) // 2
TEXT_PERSONS = np.arange(NUM_TEXTS) % 7
SMALL = RetrievalConfig(rerank=K)


@pytest.fixture(scope="module")
def model() -> ImageTextModel:
    torch.manual_seed(0)
    sizes = ImageTextSizes(image_size=(16, 8), width=16, num_heads=2, embed_dim=6, max_length=16)
    made = build_from_scratch(sizes, vocabulary_size=30).eval()
    for parameter in made.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return made


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(NUM_IMAGES, 3, 16, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def texts() -> TokenBatch:
    generator = np.random.default_rng(2)
    rows = [
        np.array([1, *generator.integers(4, 30, generator.integers(1, 12)), 2])
        for _ in range(NUM_TEXTS)
    ]
    boundaries = np.concatenate(([0], np.cumsum([len(row) for row in rows]))).astype(np.int64)
    return TokenBatch(
        input_ids=np.concatenate(rows),
        boundaries=boundaries,
        example_ids=np.arange(NUM_TEXTS, dtype=np.uint64),
        starts=np.zeros(NUM_TEXTS, np.int64),
        word_starts=np.ones(int(boundaries[-1]), np.bool_),
    )


def ids_of(texts: TokenBatch, number: int) -> torch.Tensor:
    first, end = texts.boundaries[number : number + 2]
    return torch.from_numpy(texts.input_ids[first:end])[None]


def evaluate(
    model: ImageTextModel,
    images: torch.Tensor,
    texts: TokenBatch,
    config: RetrievalConfig = SMALL,
    batch: int = 4,
) -> Retrieval:
    return evaluate_retrieval(
        model,
        images.split(batch),
        texts,
        image_persons=IMAGE_PERSONS,
        text_persons=TEXT_PERSONS,
        config=config,
    )


@torch.no_grad()
def one_at_a_time(
    model: ImageTextModel, images: torch.Tensor, texts: TokenBatch
) -> tuple[torch.Tensor, torch.Tensor]:
    """Similarities, and matching scores of the K most similar (-100 elsewhere), as released."""
    tokens = model.encode_image(images)
    hidden = [model.text_encoder.encode_text(ids_of(texts, t), None) for t in range(NUM_TEXTS)]
    features = torch.cat([model.text_feature(h) for h in hidden])
    similar = features @ model.image_feature(tokens).T
    scores = torch.full_like(similar, -100.0)
    for t, row in enumerate(similar):
        best = row.topk(K).indices
        keys = model.project_images(tokens[best])
        fused = model.text_encoder.fuse(hidden[t].repeat(K, 1, 1), None, keys)
        scores[t, best] = model.itm_head(fused[:, 0])[:, 1]
    return similar, scores


def test_rankings_and_scores_are_those_of_one_text_at_a_time(
    model: ImageTextModel, images: torch.Tensor, texts: TokenBatch
) -> None:
    similar, scores = one_at_a_time(model, images, texts)
    found = evaluate(model, images, texts)
    assert torch.equal(found.contrastive.order, similar.topk(10).indices)
    best = scores.topk(K)
    assert found.reranked is not None
    torch.testing.assert_close(found.reranked.scores, best.values, rtol=1e-4, atol=1e-5)
    assert torch.equal(found.reranked.order, best.indices)
    assert not torch.equal(found.reranked.order, found.contrastive.order[:, :K])


def test_figures_are_those_of_the_scores(
    model: ImageTextModel, images: torch.Tensor, texts: TokenBatch
) -> None:
    similar, scores = one_at_a_time(model, images, texts)
    persons = {
        "text_persons": torch.from_numpy(TEXT_PERSONS),
        "image_persons": torch.from_numpy(IMAGE_PERSONS),
    }
    figures = evaluate(model, images, texts).figures
    assert figures.contrastive == retrieval_figures(similar, **persons)
    # Beyond the K best, the order is that of similarity.
    whole = torch.where(scores == -100.0, similar - 1000, scores)
    assert figures.reranked == retrieval_figures(whole, **persons)
    back = retrieval_figures(
        similar.T,
        text_persons=persons["image_persons"],
        image_persons=persons["text_persons"],
    )
    assert figures.image_to_text == back
    assert (figures.num_texts, figures.num_images, figures.num_persons) == (17, 13, 7)
    right = [(person == IMAGE_PERSONS).mean() for person in TEXT_PERSONS]
    assert figures.chance == pytest.approx(np.mean(right))


def test_nothing_depends_on_batches_or_memory(
    model: ImageTextModel, images: torch.Tensor, texts: TokenBatch
) -> None:
    whole = evaluate(model, images, texts)
    tight = dataclasses.replace(SMALL, batch_tokens=16, memory_mb=1)
    # A budget that a single image exceeds: tokens in a file, one image projected at a time.
    object.__setattr__(tight, "memory_mb", 0)
    parts = evaluate(model, images, texts, tight, batch=1)
    assert whole.reranked is not None
    assert parts.reranked is not None
    assert torch.equal(whole.reranked.order, parts.reranked.order)
    assert whole.figures == parts.figures


def test_each_image_is_encoded_and_projected_once(
    model: ImageTextModel,
    images: torch.Tensor,
    texts: TokenBatch,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    encoded, projected = [], []
    encode, project = model.encode_image, model.project_images
    monkeypatch.setattr(model, "encode_image", lambda x: encoded.append(len(x)) or encode(x))
    monkeypatch.setattr(model, "project_images", lambda x: projected.append(len(x)) or project(x))
    found = evaluate(model, images, texts)
    assert sum(encoded) == NUM_IMAGES
    assert sum(projected) == len(found.contrastive.order[:, :K].unique())


def test_k_beyond_the_gallery_ranks_all_anew(
    model: ImageTextModel,
    images: torch.Tensor,
    texts: TokenBatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level("INFO", "maskery"):
        found = evaluate(model, images, texts, RetrievalConfig(rerank=128))
    assert "rerank is 128 and there are 13 images" in caplog.text
    assert found.figures.rerank == NUM_IMAGES
    assert found.reranked is not None
    assert found.reranked.order.sort().values.tolist() == [list(range(NUM_IMAGES))] * NUM_TEXTS


def test_without_matching_and_other_scores(
    model: ImageTextModel, images: torch.Tensor, texts: TokenBatch
) -> None:
    plain = evaluate(model, images, texts, RetrievalConfig(rerank=0))
    assert plain.figures.reranked is None
    assert plain.reranked is None
    assert plain.figures.contrastive == evaluate(model, images, texts).figures.contrastive

    odds = evaluate(model, images, texts, RetrievalConfig(rerank=K, score="odds"))
    total = evaluate(model, images, texts, RetrievalConfig(rerank=K, score="sum"))
    with torch.no_grad():
        similar, _ = one_at_a_time(model, images, texts)
        tokens = model.encode_image(images)
        for found, weight in ((odds, 0.0), (total, 1 / float(model.temp))):
            assert found.reranked is not None
            best, ranked_by = found.reranked.order[3], found.reranked.scores
            hidden = model.text_encoder.encode_text(ids_of(texts, 3), None).repeat(K, 1, 1)
            fused = model.text_encoder.fuse(hidden, None, model.project_images(tokens[best]))
            logits = model.itm_head(fused[:, 0])
            expected = logits[:, 1] - logits[:, 0] + weight * similar[3, best]
            torch.testing.assert_close(ranked_by[3], expected, rtol=1e-4, atol=1e-4)
            assert bool((ranked_by.diff(dim=1) <= 0).all())


def test_the_model_is_left_as_it_was(
    model: ImageTextModel, images: torch.Tensor, texts: TokenBatch
) -> None:
    model.train()
    evaluate(model, images, texts)
    assert model.training
    assert not any(p.grad is not None for p in model.parameters())
    model.eval()


def test_bad_input_is_one_line(
    model: ImageTextModel, images: torch.Tensor, texts: TokenBatch
) -> None:
    def run(batches: object, image_persons: object, text_persons: object) -> None:
        evaluate_retrieval(
            model,
            batches,  # type: ignore[arg-type]
            texts,
            image_persons=np.array(image_persons, np.int64),
            text_persons=np.array(text_persons, np.int64),
            config=SMALL,
        )

    with pytest.raises(DataError, match="17 texts and 0 images"):
        run([], [], TEXT_PERSONS)
    with pytest.raises(DataError, match=r"3 of 17 texts describe .* \(the first: person 0\)"):
        run(images.split(4), IMAGE_PERSONS + 1, TEXT_PERSONS)
    with pytest.raises(DataError, match="17 texts come with 16"):
        run(images.split(4), IMAGE_PERSONS, TEXT_PERSONS[1:])
    with pytest.raises(DataError, match="the 12 images show one person alone"):
        run(images.split(4), [3] * 12, [3] * 17)
    with pytest.raises(DataError, match="13 images came, and 14"):
        run(images.split(4), [*IMAGE_PERSONS, 0], TEXT_PERSONS)
    with pytest.raises(DataError, match="more than 12 images"):
        run(images.split(4), [*IMAGE_PERSONS[:11], 6], TEXT_PERSONS)
    for setting in ({"rerank": -1}, {"score": "itm"}, {"batch_tokens": 0}, {"memory_mb": 0}):
        with pytest.raises(ConfigError):
            RetrievalConfig(**setting)


def test_a_model_without_fusion_layers_cannot_match(
    images: torch.Tensor, texts: TokenBatch
) -> None:
    sizes = ImageTextSizes(image_size=(16, 8), width=16, num_heads=2, embed_dim=6, fusion_layers=0)
    blind = build_from_scratch(sizes, vocabulary_size=30)
    with pytest.raises(DataError, match="no fusion layers"):
        evaluate(blind, images, texts)
    assert evaluate(blind, images, texts, RetrievalConfig(rerank=0)).figures.reranked is None


def test_groups_by_length_waste_little_and_lose_nothing() -> None:
    lengths = np.random.default_rng(0).integers(1, 50, 300)
    groups = by_length(lengths, 200)
    assert sorted(np.concatenate(groups).tolist()) == list(range(300))
    assert all(len(g) * lengths[g].max() <= 200 or len(g) == 1 for g in groups)
    assert by_length(np.array([500]), 200)[0].tolist() == [0]


@pytest.mark.parametrize("part", ["vision_proj", "text_proj", "itm_head"])
def test_a_model_whose_scores_are_no_numbers_is_told_in_one_line(
    part: str, model: ImageTextModel, images: torch.Tensor, texts: TokenBatch
) -> None:
    broken = copy.deepcopy(model)
    with torch.no_grad():
        getattr(broken, part).bias.fill_(float("nan"))
    with pytest.raises(ModelError, match="not numbers"):
        evaluate_retrieval(
            broken,
            [images],
            texts,
            image_persons=IMAGE_PERSONS,
            text_persons=TEXT_PERSONS,
            config=SMALL,
        )
