from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_image_text import new_image_text, save_tiny_image_text

from maskery.core.errors import ConfigError, DataError, ModelError
from maskery.data.images.views import view
from maskery.evaluation.image_text.explain import Target, explain
from maskery.evaluation.image_text.opening import OpenImageText, open_image_text
from maskery.evaluation.retrieval.config import ModelRetrieval

CAPTION = "this is a red square, of paper."
WORDS = ["this", "is", "a", "red", "square", "of", "paper"]
GRID = (4, 4)


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> OpenImageText:
    return open_image_text(str(save_tiny_image_text(tmp_path_factory.mktemp("model"))))


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8)
    return Image.fromarray(pixels)


def layer_norm(x: torch.Tensor, module: torch.nn.LayerNorm) -> torch.Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.pow(2).mean(-1, keepdim=True) + module.eps).sqrt()
    return scaled * module.weight + module.bias


def attended(core, query, to):  # type: ignore[no-untyped-def]
    """Explicit attention: the contexts, and a map (H, L, N) that keeps its gradient."""
    heads = core.num_heads

    def split(x: torch.Tensor) -> torch.Tensor:
        return x.view(len(x), heads, -1).transpose(0, 1)

    q, k, v = split(core.query(query)), split(core.key(to)), split(core.value(to))
    weights = torch.softmax(q @ k.mT / q.shape[-1] ** 0.5, dim=-1)
    weights.retain_grad()
    return (weights @ v).transpose(0, 1).flatten(1), weights


def written_out(model, ids: torch.Tensor, image_tokens: torch.Tensor, layer: int):  # type: ignore[no-untyped-def]
    """One caption (L,) through the fusion layers, formula by formula: (L, D) and a map."""
    hidden = model.text_encoder.encode_text(ids[None], None)[0]
    maps = []
    for block in model.text_encoder.bert.encoder.layer[model.config.fusion_layer :]:
        context, _ = attended(block.attention.self, hidden, hidden)
        output = block.attention.output
        hidden = layer_norm(output.dense(context) + hidden, output.LayerNorm)
        context, weights = attended(block.crossattention.self, hidden, image_tokens)
        maps.append(weights)
        output = block.crossattention.output
        hidden = layer_norm(output.dense(context) + hidden, output.LayerNorm)
        wide = torch.nn.functional.gelu(block.intermediate.dense(hidden))
        hidden = layer_norm(block.output.dense(wide) + hidden, block.output.LayerNorm)
    return hidden, maps[layer]


def heat_of(weights: torch.Tensor) -> torch.Tensor:
    """(L, G * F): the mean over heads of ReLU(gradient) * map, without the class token."""
    assert weights.grad is not None
    return (weights.grad.clamp(min=0) * weights.detach()).mean(0)[:, 1:]


@torch.no_grad()
def tokens_of(opened: OpenImageText, picture: Image.Image) -> torch.Tensor:
    tokens: torch.Tensor = opened.model.encode_image(view(picture, opened.view)[None])[0]
    return tokens


def test_matching_against_the_formula(opened: OpenImageText, picture: Image.Image) -> None:
    found = explain(opened, picture, CAPTION)
    assert (found.target, found.layer) == ("matching", 0)
    ids, _ = opened.words_of(CAPTION)
    hidden, weights = written_out(opened.model, ids, tokens_of(opened, picture), 0)
    logits = opened.model.itm_head(hidden[0])
    logits[1].backward()
    expected = heat_of(weights)
    assert found.match == pytest.approx(float(logits.detach().softmax(0)[1]), abs=1e-5)
    assert [word.word for word in found.words] == WORDS
    places = [1, 2, 3, 4, 5, 7, 8]  # the comma is a token, and no word
    for word, place in zip(found.words, places, strict=True):
        assert word.heat.shape == GRID
        np.testing.assert_allclose(word.heat.ravel(), expected[place], rtol=1e-3, atol=1e-7)
        assert word.heat.max() > 0
        assert word.probability is None


def test_one_fusion_layer_explains_the_caption_as_a_whole(
    picture: Image.Image, tmp_path: Path
) -> None:
    single = open_image_text(str(save_tiny_image_text(tmp_path, new_image_text(fusion_layers=1))))
    found = explain(single, picture, CAPTION)
    assert (found.target, found.layer) == ("matching", 0)
    ids, _ = single.words_of(CAPTION)
    hidden, weights = written_out(single.model, ids, tokens_of(single, picture), 0)
    single.model.itm_head(hidden[0])[1].backward()
    assert weights.grad is not None
    assert not weights.grad[:, 1:].any()
    (whole,) = found.words
    assert found.whole
    assert whole.word == CAPTION
    np.testing.assert_allclose(whole.heat.ravel(), heat_of(weights)[0], rtol=1e-3, atol=1e-7)
    assert whole.heat.max() > 0
    words = explain(single, picture, CAPTION, target="words").words
    assert [word.word for word in words] == WORDS


@pytest.mark.parametrize("layer", [0, 1])
def test_words_against_the_formula(opened: OpenImageText, picture: Image.Image, layer: int) -> None:
    found = explain(opened, picture, CAPTION, target="words", layer=layer)
    ids, words = opened.words_of(CAPTION)
    tokens = tokens_of(opened, picture)
    for word, heat in zip(words, found.words, strict=True):
        (place,) = range(word.first, word.last)
        masked = ids.clone()
        masked[place] = opened.tokenizer.mask_token_id
        hidden, weights = written_out(opened.model, masked, tokens, layer)
        logs = opened.model.text_encoder.mlm_logits(hidden[place][None])[0].log_softmax(0)
        logs[ids[place]].backward()
        expected = heat_of(weights)[place]
        np.testing.assert_allclose(heat.heat.ravel(), expected, rtol=1e-3, atol=1e-7)
        assert heat.probability == pytest.approx(float(logs.detach()[ids[place]].exp()), rel=1e-4)


def test_a_word_of_several_pieces_is_masked_whole(
    opened: OpenImageText, picture: Image.Image
) -> None:
    from transformers import BertTokenizer

    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "pa", "##per", "red"]
    tokenizer = BertTokenizer(vocab={piece: n for n, piece in enumerate(pieces)})
    cut = dataclasses.replace(opened, tokenizer=tokenizer)
    ids, words = cut.words_of("red paper")
    assert [(w.text, w.first, w.last) for w in words] == [("red", 1, 2), ("paper", 2, 4)]
    found = explain(cut, picture, "red paper", target="words")
    masked = ids.clone()
    masked[2:4] = 4
    hidden, weights = written_out(cut.model, masked, tokens_of(cut, picture), 0)
    logs = cut.model.text_encoder.mlm_logits(hidden[2:4]).log_softmax(1)
    total = logs[0, ids[2]] + logs[1, ids[3]]
    total.backward()
    expected = heat_of(weights)[2:4].mean(0)
    np.testing.assert_allclose(found.words[1].heat.ravel(), expected, rtol=1e-3, atol=1e-7)
    assert found.words[1].probability == pytest.approx(float(total.detach().exp()), rel=1e-4)


def test_an_untrained_matching_head_leaves_the_words(picture: Image.Image, tmp_path: Path) -> None:
    folder = save_tiny_image_text(tmp_path, new_image_text(match=False))
    opened = open_image_text(str(folder))
    found = explain(opened, picture, CAPTION)
    assert (found.target, found.match) == ("words", None)
    with pytest.raises(ModelError, match="never trained"):
        explain(opened, picture, CAPTION, target="matching")


def learnt(opened: OpenImageText, *losses: str, clean: bool = False) -> OpenImageText:
    retrieval = ModelRetrieval(clean_captions=clean, trained=losses)
    return dataclasses.replace(opened, retrieval=retrieval)


@pytest.mark.parametrize("target", ["matching", "words"])
def test_the_caption_is_read_as_in_training_and_shown_as_typed(
    opened: OpenImageText, picture: Image.Image, target: Target
) -> None:
    cleaned = learnt(opened, "itm", "mlm", clean=True)
    found = explain(cleaned, picture, "This is: a RED (square)!", target=target)
    expected = explain(opened, picture, "this is a red square", target=target)
    assert [word.word for word in found.words] == ["This", "is", "a", "RED", "square"]
    assert found.caption == "This is: a RED (square)!"
    assert found.match == expected.match
    for one, other in zip(found.words, expected.words, strict=True):
        np.testing.assert_array_equal(one.heat, other.heat)
        assert one.probability == other.probability


def test_heads_that_learnt_nothing_are_not_explained(
    opened: OpenImageText, picture: Image.Image
) -> None:
    matches = learnt(opened, "itc", "itm")
    assert explain(matches, picture, CAPTION).target == "matching"
    with pytest.raises(ModelError, match="never learnt to fill words"):
        explain(matches, picture, CAPTION, target="words")
    fills = learnt(opened, "itc", "mlm")
    assert explain(fills, picture, CAPTION).target == "words"
    with pytest.raises(ModelError, match="has a matching head that was never trained"):
        explain(fills, picture, CAPTION, target="matching")
    for target in (None, "matching", "words"):
        with pytest.raises(ModelError, match="learnt neither to match nor to fill words"):
            explain(learnt(opened, "itc"), picture, CAPTION, target=target)  # type: ignore[arg-type]


def test_no_gradient_is_left_behind(opened: OpenImageText, picture: Image.Image) -> None:
    for parameter in opened.model.parameters():
        parameter.grad = None
    explain(opened, picture, CAPTION)
    assert all(parameter.grad is None for parameter in opened.model.parameters())


def test_bad_input_is_one_line(opened: OpenImageText, picture: Image.Image) -> None:
    for layer in (-1, 2):
        with pytest.raises(ConfigError, match="2 fusion layers"):
            explain(opened, picture, CAPTION, target="words", layer=layer)
    with pytest.raises(ConfigError, match="the last"):
        explain(opened, picture, CAPTION, layer=1)
    with pytest.raises(DataError, match="no word in it"):
        explain(opened, picture, "?!")
    with pytest.raises(DataError, match="the model reads 16"):
        explain(opened, picture, "red " * 40)
