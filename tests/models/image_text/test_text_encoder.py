from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM

from maskery.models.image_text.text_encoder import TextFusionEncoder

R, L, IMAGES, N, W = 6, 7, 3, 5, 10


def bert_config(**changes: Any) -> BertConfig:
    return BertConfig(
        vocab_size=60,
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=24,
        max_position_embeddings=12,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        **changes,
    )


@pytest.fixture(scope="module")
def encoder() -> TextFusionEncoder:
    torch.manual_seed(0)
    encoder = TextFusionEncoder(bert_config(), fusion_layer=2, image_width=W).eval()
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return encoder


@pytest.fixture(scope="module")
def text() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    lengths = torch.tensor([7, 3, 5, 7, 4, 2])
    return torch.randint(1, 60, (R, L)), torch.arange(L) < lengths[:, None]


def test_text_alone_is_hugging_face_bert(
    encoder: TextFusionEncoder, text: tuple[torch.Tensor, torch.Tensor]
) -> None:
    ids, mask = text
    bert = BertForMaskedLM(bert_config()).eval()
    own = encoder.state_dict()
    shared = {name: own[name] for name in bert.state_dict() if name in own}
    left = set(bert.state_dict()) - set(shared)
    assert left == {"cls.predictions.decoder.weight", "cls.predictions.decoder.bias"}
    bert.load_state_dict(shared, strict=False)
    bert.tie_weights()
    with torch.no_grad():
        expected = bert(ids, attention_mask=mask.long()).logits[mask]
        actual = encoder.mlm_logits(encoder(ids, mask, None)[mask])
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def one_by_one(
    encoder: TextFusionEncoder,
    text: tuple[torch.Tensor, torch.Tensor],
    tokens: torch.Tensor,
    looks_at: list[int],
) -> torch.Tensor:
    """Each row read alone, without padding, with its image projected for it alone."""
    ids, mask = text
    rows = []
    for row, image in enumerate(looks_at):
        length = int(mask[row].sum())
        images = encoder.project_images(tokens[image : image + 1])
        rows.append(encoder(ids[row : row + 1, :length], None, images)[0])
    return torch.cat(rows)


def test_blocks_of_rows_share_their_images(
    encoder: TextFusionEncoder, text: tuple[torch.Tensor, torch.Tensor]
) -> None:
    tokens = torch.randn(IMAGES, N, W)
    with torch.no_grad():
        fused = encoder(*text, encoder.project_images(tokens))[text[1]]
        expected = one_by_one(encoder, text, tokens, [0, 1, 2, 0, 1, 2])
    torch.testing.assert_close(fused, expected, rtol=1e-5, atol=1e-5)


def test_the_last_rows_may_look_at_other_images(
    encoder: TextFusionEncoder, text: tuple[torch.Tensor, torch.Tensor]
) -> None:
    tokens = torch.randn(IMAGES, N, W)
    others = torch.tensor([2, 2, 0])
    with torch.no_grad():
        hidden, images = encoder.encode_text(*text), encoder.project_images(tokens)
        keys = [each.select(others) for each in images]
        fused = encoder.fuse(hidden, text[1], images, keys)[text[1]]
        expected = one_by_one(encoder, text, tokens, [0, 1, 2, 2, 2, 0])
    torch.testing.assert_close(fused, expected, rtol=1e-5, atol=1e-5)


def test_all_rows_may_look_at_chosen_images(
    encoder: TextFusionEncoder, text: tuple[torch.Tensor, torch.Tensor]
) -> None:
    tokens = torch.randn(IMAGES, N, W)
    chosen = [2, 0, 0, 1, 2, 1]
    with torch.no_grad():
        images = encoder.project_images(tokens)
        hidden = encoder.encode_text(*text)
        keys = [each.select(torch.tensor(chosen)) for each in images]
        fused = encoder.fuse(hidden, text[1], images, keys)[text[1]]
        expected = one_by_one(encoder, text, tokens, chosen)
    torch.testing.assert_close(fused, expected, rtol=1e-5, atol=1e-5)


def test_the_image_changes_the_fused_text_and_not_the_text_layers(
    encoder: TextFusionEncoder, text: tuple[torch.Tensor, torch.Tensor]
) -> None:
    ids, mask = text
    with torch.no_grad():
        boundary = encoder.encode_text(ids, mask)
        images = encoder.project_images(torch.randn(IMAGES, N, W))
        seeing, blind = encoder.fuse(boundary, mask, images), encoder.fuse(boundary, mask, None)
    assert (seeing - blind).abs().max() > 1e-2
    assert len(images) == 2


def test_rows_that_are_not_whole_blocks_are_refused(
    encoder: TextFusionEncoder, text: tuple[torch.Tensor, torch.Tensor]
) -> None:
    ids, mask = text
    images = encoder.project_images(torch.randn(IMAGES, N, W))
    with pytest.raises(ValueError, match="5 text rows are not whole blocks over 3 images"):
        encoder(ids[:5], mask[:5], images)


def test_padding_takes_no_gradient(encoder: TextFusionEncoder) -> None:
    ids = torch.tensor([[5, 6, 0, 0]])
    encoder.zero_grad()
    encoder(ids, ids > 0, None)[0, 0].sum().backward()
    gradient = encoder.bert.embeddings.word_embeddings.weight.grad
    assert gradient is not None
    assert gradient[5].abs().sum() > 0
    assert gradient[0].abs().sum() == 0
