from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from tiny_pairs import COLOURS, new_tokenizer, save_tiny_pairs
from tiny_persons import person_tokenizer, save_cuhk

from maskery.core.errors import DataError
from maskery.data.images.config import HALF_MEAN, HALF_STD, ViewConfig
from maskery.data.images.loading import Skipped
from maskery.data.images.views import view
from maskery.data.pairs.batches import Pictures, ReadPairs, tokenise_captions
from maskery.data.pairs.pairs import Pairs
from maskery.data.person_search.config import PersonSearchDataConfig
from maskery.data.person_search.dataset import open_person_search
from maskery.evaluation.retrieval.config import RetrievalConfig
from maskery.evaluation.retrieval.evaluate import evaluate_retrieval
from maskery.evaluation.retrieval.retrieval_set import RetrievalSet, spread_queries
from maskery.models.image_text.build import build_from_scratch
from maskery.models.image_text.sizes import ImageTextSizes

VIEW = ViewConfig(height=16, width=16, mean=HALF_MEAN, std=HALF_STD)
Policy = Literal["skip", "fail"]


def retrieval_set(
    pairs: Pairs, on_bad_image: Policy = "fail", skipped: Skipped | None = None, **settings: Any
) -> RetrievalSet:
    skipped = skipped or Skipped("caption", "fail")
    tokens = tokenise_captions(pairs, new_tokenizer(), skipped, max_length=16)
    pictures = Pictures(pairs, on_bad_image, near=VIEW.size)
    return RetrievalSet(ReadPairs(pairs, tokens, pictures, VIEW), **settings)


def captions(data: RetrievalSet) -> list[str]:
    return [data.caption(query) for query in range(len(data.queries))]


def text_images(data: RetrievalSet) -> list[int]:
    """The picture that each caption was written for, by its place in the gallery."""
    first = {name: place for place, name in enumerate(names(data))}
    owners = data.captions.owners[data.queries].tolist()
    return [first[data.pairs[owner].image.name] for owner in owners]


def names(data: RetrievalSet) -> list[str]:
    return [data.pairs[index].image.name for index in data.gallery.tolist()]


def test_captions_look_for_all_pictures_of_their_person(tmp_path: Path) -> None:
    pairs = Pairs.open(save_tiny_pairs(tmp_path, 12, persons=True))
    data = retrieval_set(pairs, batch_images=5)
    assert data.image_persons.tolist() == [n // 3 for n in range(12)]
    assert text_images(data) == [n // 2 for n in range(24)]
    assert data.text_persons.tolist() == [n // 6 for n in range(24)]
    assert data.caption(5) == f"the sheet of paper is all {list(COLOURS)[2]}"
    texts = data.texts_of(np.arange(24))
    assert len(texts.lengths) == 24

    sizes = ImageTextSizes(image_size=(16, 16), width=16, num_heads=2, embed_dim=6)
    torch.manual_seed(0)
    model = build_from_scratch(sizes, vocabulary_size=len(new_tokenizer()))
    config = RetrievalConfig(rerank=4)
    found = data.evaluate(model, config)
    pixels = torch.stack([view(pair.image.load(), VIEW) for pair in pairs])
    whole = evaluate_retrieval(
        model,
        [pixels],
        texts,
        image_persons=data.image_persons,
        text_persons=data.text_persons,
        config=config,
    )
    assert found.figures == whole.figures


def test_without_persons_a_picture_stands_for_itself_and_is_there_once(tmp_path: Path) -> None:
    path = save_tiny_pairs(tmp_path, 4)
    lines = path.read_text("utf-8").splitlines()
    again = lines[1].replace("this is", "is").replace("001.png", "./001.png")
    path.write_text("\n".join([*lines, again]) + "\n", "utf-8")
    data = retrieval_set(Pairs.open(path))
    assert len(data.gallery) == 4
    assert len(set(data.image_persons.tolist())) == 4
    assert text_images(data) == [0, 0, 1, 1, 2, 2, 3, 3, 1, 1]
    assert (data.image_persons[text_images(data)] == data.text_persons).all()


def test_pictures_that_cannot_be_read_go_with_their_captions(tmp_path: Path) -> None:
    path = save_tiny_pairs(tmp_path, 6, persons=True)
    lines = path.read_text("utf-8").splitlines()
    # The same data without the two pictures that are broken below.
    fewer = tmp_path / "fewer.jsonl"
    fewer.write_text("\n".join(lines[i] for i in (0, 2, 3, 5)), "utf-8")
    expected = retrieval_set(Pairs.open(fewer))
    everything = (names(expected), captions(expected), text_images(expected))
    texts = expected.texts_of(np.arange(len(expected.queries)))
    for name in ("001.png", "004.png"):
        (tmp_path / name).write_bytes(b"GIF89a")
    with pytest.raises(DataError, match=r"001\.png"):
        len(retrieval_set(Pairs.open(path)).gallery)
    kept = retrieval_set(Pairs.open(path), "skip", batch_images=4)
    assert (names(kept), captions(kept), text_images(kept)) == everything
    assert kept.pictures.skipped.count == 2
    assert kept.skipped == [str(kept.pictures.skipped)]
    assert kept.text_persons.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert kept.image_persons.tolist() == [0, 0, 1, 1]
    read = kept.texts_of(np.arange(len(kept.queries)))
    assert read.input_ids.tolist() == texts.input_ids.tolist()
    assert read.boundaries.tolist() == texts.boundaries.tolist()
    for number in range(6):
        (tmp_path / f"{number:03d}.png").write_bytes(b"GIF89a")
    with pytest.raises(DataError, match="no picture of the gallery can be read"):
        len(retrieval_set(Pairs.open(path), "skip").gallery)


def test_captions_that_the_tokenizer_cannot_read_are_left_out_of_words_and_tokens(
    tmp_path: Path,
) -> None:
    path = save_tiny_pairs(tmp_path, 2)
    row = {"image": "000.png", "caption": ["漢字", "all red"]}
    path.write_text("\n".join(map(json.dumps, [row, {**row, "image": "001.png"}])), "utf-8")
    pairs, skipped = Pairs.open(path), Skipped("caption", "skip")
    data = retrieval_set(pairs, skipped=skipped)
    assert skipped.count == 2
    assert captions(data) == ["all red", "all red"]
    assert text_images(data) == [0, 1]
    with pytest.raises(DataError, match="no token that could be masked"):
        retrieval_set(pairs)


def test_two_persons_for_one_picture_are_refused(tmp_path: Path) -> None:
    path = save_tiny_pairs(tmp_path, 3)
    rows = [{"image": "000.png", "caption": "all red", "person": p} for p in ("anna", "ben")]
    path.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    with pytest.raises(DataError, match="person ben and person anna"):
        retrieval_set(Pairs.open(path))


def test_right_pictures_are_those_of_the_person_who_is_described(tmp_path: Path) -> None:
    root = save_cuhk(tmp_path, images=2)
    (root / "imgs" / "cam_a" / "000_0.png").write_bytes(b"GIF89a")
    pairs = open_person_search(PersonSearchDataConfig(dataset="cuhk-pedes", root=root)).train
    captions = tokenise_captions(
        pairs, person_tokenizer(), Skipped("caption", "fail"), max_length=24
    )
    view = ViewConfig(height=16, width=16, mean=HALF_MEAN, std=HALF_STD)
    pictures = Pictures(pairs, "skip", near=None)
    split = RetrievalSet(ReadPairs(pairs, captions, pictures, view))
    # The gallery begins at the second picture: the first cannot be read.
    queries = np.array([0, 5])
    ranking = torch.tensor([[1, 0, 2, 4], [2, 3, 9, 1]])
    captions_asked, samples = zip(*split.samples(queries, ranking, count=3), strict=True)
    assert captions_asked == (pairs[1].captions[0], pairs[3].captions[1])
    for sample, query, row in zip(samples, (1, 3), ranking.tolist(), strict=True):
        shown = [place + 1 for place in row[:3]]
        wanted = [pairs.persons[place + 1] == pairs.persons[query] for place in row[:3]]
        assert [found.right for found in sample] == wanted
        assert 0 < sum(wanted) < 3
        for found, index in zip(sample, shown, strict=True):
            expected = split.pictures.load([index])[0]
            assert expected is not None
            np.testing.assert_array_equal(np.asarray(found.image), np.asarray(expected))


@pytest.mark.parametrize(
    ("num_texts", "queries"),
    [(1, [0]), (2, [0]), (7, [1, 2, 3, 4, 5]), (600, [99, 199, 299, 399, 499])],
)
def test_queries_are_spread_evenly(num_texts: int, queries: list[int]) -> None:
    assert spread_queries(num_texts).tolist() == queries
