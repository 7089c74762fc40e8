from __future__ import annotations

import numpy as np
import pytest
import torch

from maskery.models.image_text.build import build_from_scratch
from maskery.models.image_text.model import ImageTextModel
from maskery.models.image_text.sizes import ImageTextSizes
from maskery.models.image_text.text_encoder import Rows, before_looking, fuse_class_tokens


def tiny(fusion_layers: int) -> ImageTextModel:
    torch.manual_seed(0)
    sizes = ImageTextSizes(
        image_size=(16, 8), width=16, num_heads=2, max_length=16, fusion_layers=fusion_layers
    )
    model = build_from_scratch(sizes, vocabulary_size=30).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.mark.parametrize("fusion_layers", [1, 2, 4])
@pytest.mark.parametrize("lengths", [[7, 3, 12, 1], [5, 5, 5], [9]])
@torch.no_grad()
def test_class_tokens_are_those_of_the_whole_fusion(fusion_layers: int, lengths: list[int]) -> None:
    model = tiny(fusion_layers)
    ids = torch.randint(4, 30, (len(lengths), max(lengths)))
    real = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    hidden = model.text_encoder.encode_text(ids, real)
    image = model.project_images(model.encode_image(torch.randn(1, 3, 16, 8)))
    expected = model.text_encoder.fuse(hidden, real, image)[:, 0]

    tokens = before_looking(model.text_encoder, hidden, real)[real]
    rows = Rows.of_lengths(np.array(lengths), torch.device("cpu"))
    found = fuse_class_tokens(model.text_encoder, tokens, rows, image)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_rows_pad_and_place() -> None:
    rows = Rows.of_lengths(np.array([2, 3]), torch.device("cpu"))
    padded = rows.spread(torch.arange(1.0, 6.0)[:, None])
    assert padded[..., 0].tolist() == [[1, 2, 0], [3, 4, 5]]
    assert padded.flatten(0, 1)[rows.places][:, 0].tolist() == [1, 2, 3, 4, 5]
    assert rows.firsts.tolist() == [0, 2]
    assert rows.mask is not None
    assert rows.mask[:, 0, 0].tolist() == [[True, True, False], [True, True, True]]
    assert Rows.of_lengths(np.array([3, 3]), torch.device("cpu")).mask is None
