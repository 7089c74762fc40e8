"""Text rows without their padding: exact, forward and backward, and nothing is computed for it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import BertConfig

from maskery.models.image_text.text_encoder import PackedRows, TextFusionEncoder

R, L, IMAGES, N, W = 6, 7, 3, 5, 10
LENGTHS = torch.tensor([7, 3, 5, 7, 4, 2])
MASK = torch.arange(L) < LENGTHS[:, None]


def encoder() -> TextFusionEncoder:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=60,
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=24,
        max_position_embeddings=12,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    made = TextFusionEncoder(config, fusion_layer=2, image_width=W).eval()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return made


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, 60, (R, L), generator=generator)
    return ids, torch.randn(IMAGES, N, W, generator=generator)


def test_gathering_and_spreading_are_inverse_and_their_gradients_too() -> None:
    rows = PackedRows.of(MASK)
    padded = torch.randn(R, L, 3, dtype=torch.float64, requires_grad=True)
    real = rows.gather(padded)
    assert torch.equal(real, padded[MASK])
    assert torch.equal(rows.spread(real), padded * MASK[..., None])
    assert torch.autograd.gradcheck(rows.gather, (padded,))
    flat = torch.randn(int(MASK.sum()), 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(rows.spread, (flat,))


@pytest.mark.parametrize("others", [None, torch.tensor([2, 0, 1])])
def test_real_tokens_and_gradients_are_those_of_padded_passes(others: torch.Tensor | None) -> None:
    found = []
    for pads in (True, False):
        model, (ids, image) = encoder(), inputs()
        model.computes_padding = pads
        image.requires_grad_(True)
        images = model.project_images(image)
        text = model.encode_text(ids, MASK)
        keys = None if others is None else [each.select(others) for each in images]
        fused = model.fuse(text, MASK, images, keys)
        real, logits = fused[MASK], model.mlm_logits(fused[MASK])
        (logits.square().sum() + text[MASK].square().sum()).backward()
        gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        found.append((real, {**gradients, "image": image.grad}))
    (padded, expected), (packed, gradients) = found
    torch.testing.assert_close(packed, padded, rtol=1e-5, atol=1e-5)
    assert gradients.keys() == expected.keys()
    # Some gradients (of key biases) are 0 but for rounding, so the largest of all is the measure.
    near = 1e-6 * max(float(gradient.abs().max()) for gradient in expected.values())
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=near, msg=name)


def test_layers_see_real_tokens_alone() -> None:
    model, (ids, image) = encoder(), inputs()
    seen: list[int] = []

    def note(module: Any, arguments: tuple[torch.Tensor, ...]) -> None:
        seen.append(arguments[0].numel() // arguments[0].shape[-1])

    for layer in model.bert.encoder.layer:
        layer.intermediate.register_forward_pre_hook(note)  # type: ignore[union-attr,operator]
    images = model.project_images(image)
    with torch.no_grad():
        hidden = model(ids, MASK, images)
    assert seen == [int(LENGTHS.sum())] * 4
    assert not hidden[~MASK].any()
    seen.clear()
    model.computes_padding = True
    with torch.no_grad():
        assert model(ids, MASK, images)[~MASK].any()
    assert seen == [R * L] * 4
