"""CLIP's and SigLIP's towers against Transformers, IRRA's fusion encoder against PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_towers import save_towers
from transformers import AutoModel

from maskery.core.errors import ModelError
from maskery.models.image_text.build import build_from_towers
from maskery.models.image_text.model import ImageTextModel
from maskery.models.image_text.text_encoder import Rows, before_looking, fuse_class_tokens

CAPTIONS = [
    "a person in red shirt",
    "a person in white shirt and black trousers with the green trousers",
    "blue",
]


def read(tokenizer: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Captions side by side as our batches have them: zeros at padding."""
    rows = [tokenizer(caption)["input_ids"] for caption in CAPTIONS]
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.int64)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = torch.tensor(row)
    lengths = torch.tensor([len(row) for row in rows])
    return ids, torch.arange(ids.shape[1]) < lengths[:, None]


@pytest.mark.parametrize("size", [(16, 16), (24, 8), (24, 24)])
@pytest.mark.parametrize("family", ["clip", "siglip", "siglip2"])
def test_features_and_similarities_are_those_of_transformers(
    family: str, size: tuple[int, int], tmp_path: Path
) -> None:
    theirs = save_towers(tmp_path, family)
    model, tokenizer, new = build_from_towers(str(tmp_path), image_size=size)
    inputs = tokenizer(CAPTIONS, return_tensors="pt", padding="max_length", max_length=24)
    if family != "clip":  # as it was trained: the padding is read
        del inputs["attention_mask"]
    pixels = torch.randn(2, 3, *size)
    named = {"interpolate_pos_encoding": True, "pixel_values": pixels}
    with torch.no_grad():
        expected = theirs(**inputs, **named)
        ids, mask = read(tokenizer)
        text = model.text_feature(model.text_encoder.encode_text(ids, mask), mask)
        image = model.image_feature(model.encode_image(pixels))
        bias = 0.0 if model.logit_bias is None else model.logit_bias
        logits = text @ image.T / model.temp + bias
        alone = ids[2:, : int(mask[2].sum())]
        again = model.text_feature(model.text_encoder.encode_text(alone, None))
        tokens = model.encode_image(pixels)
        pooled = tokens if family != "clip" else model.visual_encoder.summarise(tokens)
        raw = theirs.get_image_features(**named).pooler_output
    torch.testing.assert_close(text, expected.text_embeds, atol=1e-6, rtol=0)
    torch.testing.assert_close(image, expected.image_embeds, atol=1e-6, rtol=0)
    torch.testing.assert_close(model.vision_proj(pooled), raw, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(logits, expected.logits_per_text, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(again, text[2:], atol=1e-6, rtol=0)
    assert {name.split(".")[0] for name in new} == {"itm_head", "prd_head", "mrtd_head"}


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_a_saved_model_is_the_same(family: str, tmp_path: Path) -> None:
    save_towers(tmp_path / "towers", family)
    model, tokenizer, _ = build_from_towers(str(tmp_path / "towers"), fusion_layers=1)
    model.save_pretrained(tmp_path / "saved")
    again = AutoModel.from_pretrained(tmp_path / "saved").eval()
    assert isinstance(again, ImageTextModel)
    ids, mask = read(tokenizer)
    pixels = torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        expected, found = (m(pixels, ids, mask).logits for m in (model, again))
    assert torch.equal(found, expected)
    states, own = again.state_dict(), model.state_dict()
    assert states.keys() == own.keys()
    assert all(torch.equal(states[name], own[name]) for name in own)


def plain_interaction(model: Any, words: torch.Tensor, picture: torch.Tensor) -> torch.Tensor:
    """IRRA's `cross_former` on one text (1, L, D) and one image (1, N, W)."""
    fusion, width = model.text_encoder.fusion, words.shape[-1]
    heads, core = model.config.text_config.num_attention_heads, fusion.crossattention.self
    x, _ = F.multi_head_attention_forward(
        *(t.transpose(0, 1) for t in (fusion.ln_pre_t(words), *[fusion.ln_pre_i(picture)] * 2)),
        width, heads, None, torch.cat([p.bias for p in (core.query, core.key, core.value)]),
        None, None, False, 0.0, fusion.crossattention.output.weight,
        fusion.crossattention.output.bias, use_separate_proj_weight=True,
        q_proj_weight=core.query.weight, k_proj_weight=core.key.weight,
        v_proj_weight=core.value.weight,
    )  # fmt: skip
    x = x.transpose(0, 1)
    for layer in fusion.encoder.layers:
        attention = layer.self_attn
        y = layer.layer_norm1(x)
        q, k, v = (
            p(y).view(y.shape[1], heads, -1).transpose(0, 1)
            for p in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        weights = (q @ k.transpose(1, 2) / (width // heads) ** 0.5).softmax(dim=-1)
        x = x + attention.out_proj((weights @ v).transpose(0, 1).reshape(1, -1, width))
        y = layer.mlp.fc1(layer.layer_norm2(x))
        x = x + layer.mlp.fc2(y * torch.sigmoid(1.702 * y))
    fused: torch.Tensor = fusion.ln_post(x)
    return fused


@torch.no_grad()
def test_the_fusion_encoder_is_irras_and_reads_no_padding(tmp_path: Path) -> None:
    save_towers(tmp_path, "clip")
    model, tokenizer, new = build_from_towers(str(tmp_path), fusion_layers=2)
    ids, mask = read(tokenizer)
    tokens = model.encode_image(torch.randn(3, 3, 16, 16))
    hidden = model.text_encoder.encode_text(ids, mask)
    images = model.project_images(tokens)
    fused = model.text_encoder.fuse(hidden, mask, images)
    logits = model.text_encoder.mlm_logits(fused)
    predictions = model.text_encoder.cls["predictions"]
    for row, length in enumerate(mask.sum(dim=1).tolist()):
        expected = plain_interaction(model, hidden[row : row + 1, :length], tokens[row : row + 1])
        torch.testing.assert_close(fused[row : row + 1, :length], expected, atol=2e-6, rtol=1e-5)
        y = predictions.transform.dense(expected[0])
        y = predictions.transform.LayerNorm(y * torch.sigmoid(1.702 * y))
        y = y @ model.text_encoder.cls["decoder"].weight.T + predictions.bias
        torch.testing.assert_close(logits[row, :length], y, atol=1e-5, rtol=1e-5)
    # Matching reads all texts of an image together, and other images in the last rows.
    begun = before_looking(model.text_encoder, hidden, mask)[mask]
    rows = Rows.of_lengths(mask.sum(dim=1).numpy(), torch.device("cpu"))
    first = [type(k)(keys=k.keys[:1], values=k.values[:1]) for k in images]
    together = fuse_class_tokens(model.text_encoder, begun, rows, first)
    firsts = [k.select(torch.zeros(3).long()) for k in images]
    alone = model.text_encoder.fuse(hidden, mask, firsts)
    torch.testing.assert_close(together, alone[:, 0], atol=1e-6, rtol=1e-5)
    twice = model.text_encoder.fuse(
        torch.cat((hidden, hidden)), torch.cat((mask, mask)), images, firsts
    )
    torch.testing.assert_close(twice[3:][mask], alone[mask], atol=1e-6, rtol=1e-5)
    # Initial weights of the release: width 16, two layers.
    fusion = model.text_encoder.fusion
    for weight, std in (
        (fusion.crossattention.self.query.weight, 16**-0.5),
        (fusion.encoder.layers[1].mlp.fc1.weight, 32**-0.5),
        (fusion.encoder.layers[0].mlp.fc2.weight, 16**-0.5 * 4**-0.5),
        (model.text_encoder.cls["decoder"].weight, 16**-0.5 * 4**-0.5),
    ):
        assert weight.std().item() == pytest.approx(std, rel=0.15)
    assert {"text_encoder.fusion.ln_post.bias", "text_encoder.cls.decoder.weight"} < new


def test_a_mask_token_is_added_where_there_is_none(tmp_path: Path) -> None:
    for family, added in (("clip", True), ("siglip", True), ("siglip2", False)):
        theirs = save_towers(tmp_path / family, family)
        model, tokenizer, _ = build_from_towers(str(tmp_path / family))
        table = theirs.text_model.get_input_embeddings().weight
        ours = model.get_input_embeddings().weight
        assert torch.equal(ours[: len(table)], table)
        assert len(ours) == len(table) + added == model.config.text_config.vocab_size
        if added:
            torch.testing.assert_close(ours[tokenizer.mask_token_id], table.mean(dim=0))


def test_what_is_no_pair_of_towers_is_one_line(tmp_path: Path) -> None:
    theirs = save_towers(tmp_path / "clip", "clip")
    for side, advice in (("vision", "--vision-model beside a BERT"), ("text", "whole model")):
        getattr(theirs, f"{side}_model").save_pretrained(tmp_path / side)
        with pytest.raises(ModelError, match=f"has the {side} tower alone: use .*{advice}"):
            build_from_towers(str(tmp_path / side))
    (tmp_path / "bare").mkdir()
    theirs.save_pretrained(tmp_path / "bare")
    with pytest.raises(ModelError, match=r"tokenizer in .* cannot be loaded: it has no words; put"):
        build_from_towers(str(tmp_path / "bare"))
    (tmp_path / "naflex").mkdir()
    (tmp_path / "naflex" / "config.json").write_text('{"model_type": "siglip2"}', "utf-8")
    with pytest.raises(ModelError, match=r"\(NaFlex\): use a SigLIP 2 of fixed resolution"):
        build_from_towers(str(tmp_path / "naflex"))
