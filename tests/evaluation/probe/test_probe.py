"""The whole probe on tiny models: one model twice, vectors at chance, vectors that know."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_text import lines, save_tiny_model

from maskery.cli.main import main
from maskery.core.errors import DataError, ModelError
from maskery.evaluation.probe.encode import Encoder
from maskery.evaluation.probe.labels import Labelled
from maskery.evaluation.probe.probe import halves, probe


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture(scope="module")
def encoder(folder: Path) -> Encoder:
    return Encoder.open(str(folder))


def labelled(num: int = 60, seed: int = 1) -> Labelled:
    """Texts whose class no vector can know."""
    texts = tuple(f"{line} {n}" for n, line in enumerate(lines(num, seed=seed)))
    classes = np.random.default_rng(seed).integers(0, 3, num)
    return Labelled(kind="labels", texts=texts, labels=tuple(map(str, classes)), skipped={})


def test_one_model_twice_is_exactly_nothing(encoder: Encoder) -> None:
    result = probe(encoder, labelled(), encoder)
    assert [figure.name for figure in result.figures] == ["nearest neighbour", "linear probe"]
    for figure in result.figures:
        assert figure.difference == (0.0, 0.0, 0.0)
        assert len(figure.models) == 2


def test_labels_that_nothing_tells_are_at_chance(encoder: Encoder) -> None:
    for figure in probe(encoder, labelled(300, seed=2)).figures:
        for interval in (*figure.models.values(), figure.lexical):
            assert interval.low - 0.03 < figure.chance < interval.high + 0.03


def test_words_that_tell_the_class_are_found(encoder: Encoder) -> None:
    plain = labelled(80)
    marks = {"0": "walk walk walk", "1": "river river river", "2": "stone stone stone"}
    told = tuple(f"{marks[c]} {t}" for t, c in zip(plain.texts, plain.labels, strict=True))
    result = probe(encoder, dataclasses.replace(plain, texts=told), seen=told[:5])
    for figure in result.figures:
        assert figure.lexical.value > 0.9
    assert any("5 of 80 labelled texts stand in the training corpus" in n for n in result.notes)


def test_vectors_are_the_models_hidden_states(encoder: Encoder) -> None:
    """Written out one text at a time, without padding."""
    texts = lines(7, seed=4)
    ids = [encoder.tokenizer(text, return_tensors="pt") for text in texts]
    with torch.no_grad():
        states = [encoder.hf.base_model(**i)[0][0] for i in ids]
    expected = np.stack([state.mean(dim=0).numpy() for state in states])
    np.testing.assert_allclose(encoder.encode(texts), expected, atol=1e-6)
    words = [text.split() for text in texts]
    first = encoder.encode_words(words)
    assert first.shape == (sum(map(len, words)), expected.shape[1])
    np.testing.assert_allclose(first[0], states[0][1].numpy(), atol=1e-6)


def test_halves_find_each_other_by_their_words(encoder: Encoder) -> None:
    texts = [" ".join([f"w{n}"] * 14) for n in range(20)]
    pairs = halves([*texts, texts[0], "too short"])
    assert len(pairs.texts) == 20
    result = probe(encoder, pairs)
    assert result.figures[0].name == "R@1"
    assert result.figures[0].lexical.value == 1.0
    assert result.figures[0].chance == 1 / 20
    assert halves(["แมวนอนบนเสื่อ" * 8]).texts


def test_vectors_that_are_no_numbers_give_one_line(folder: Path) -> None:
    broken = Encoder.open(str(folder))
    with torch.no_grad():
        next(broken.hf.base_model.parameters()).fill_(float("nan"))
    with pytest.raises(ModelError, match="no numbers"):
        probe(broken, labelled())


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (["a"] * 6, "has 1 class with two texts or more, of 1 in all"),
        (list("abcdef"), "0 classes with two"),
        (list("aabcde"), "1 class with two texts or more, of 5"),
    ],
)
def test_too_few_classes(encoder: Encoder, labels: list[str], said: str) -> None:
    texts = tuple(lines(6, seed=2))
    with pytest.raises(DataError, match=said):
        probe(encoder, Labelled(kind="labels", texts=texts, labels=tuple(labels), skipped={}))


def test_many_classes_are_judged_by_neighbours_alone(encoder: Encoder) -> None:
    texts = tuple(f"{n // 2} {line}" for n, line in enumerate(lines(2004, seed=3)))
    classes = tuple(str(n // 2) for n in range(2004))
    result = probe(encoder, Labelled(kind="labels", texts=texts, labels=classes, skipped={}))
    assert [figure.name for figure in result.figures] == ["nearest neighbour"]
    assert any("no linear probe: 1,002 classes" in note for note in result.notes)


def test_the_command(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task = labelled(40)
    rows = zip(task.texts, task.labels, strict=True)
    path = tmp_path / "labels.jsonl"
    path.write_text("\n".join(json.dumps({"text": t, "label": c}) for t, c in rows), "utf-8")
    flags = [str(folder), "--labels", str(path), "--against", str(folder)]
    assert main(["probe", *flags, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["figures"][0]["difference"] == [0.0, 0.0, 0.0]
    assert main(["probe", *flags]) == 0
    shown = capsys.readouterr().out
    assert "nearest neighbour" in shown
    assert "0.0 [0.0, 0.0]" in shown
    conll = tmp_path / "tags.conll"
    conll.write_text("\n\n".join(f"the\tD\ncat{n}\tN" for n in range(12)), "utf-8")
    assert main(["probe", str(folder), "--labels", str(conll), "--kind", "tokens"]) == 0
    assert "24 words, 2 classes" in capsys.readouterr().out
