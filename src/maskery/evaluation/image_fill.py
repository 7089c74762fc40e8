"""Filling masks with the help of a picture.

Shapes: B sequences, L tokens, M masks, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from maskery.core.batch import MaskedTokens
from maskery.data.images.config import DEFAULT_MAX_PIXELS
from maskery.data.images.views import view
from maskery.data.pairs.image_refs import FileImage
from maskery.evaluation.fill import Filler
from maskery.evaluation.image_text_opening import OpenImageText
from maskery.evaluation.sight import side_by_side
from maskery.models.image_text.attention import ImageKeys


class ImageFiller(Filler):
    """Fills the masks of sentences with what an image-text model sees in one picture.

    Args:
        opened: The model.
        image: The picture; None to fill from the text alone.

    Raises:
        DataError: The picture cannot be read.
    """

    def __init__(self, opened: OpenImageText, image: Path | None) -> None:
        self.tokenizer = opened.tokenizer
        self.mask_id = int(opened.tokenizer.mask_token_id)
        self._sight = opened.model
        self.limit = int(opened.model.config.text_config.max_position_embeddings)
        self._keys: list[ImageKeys] | None = None
        if image is not None:
            file = FileImage(image.name, image.parent, DEFAULT_MAX_PIXELS)
            pixels = view(file.load(opened.view.size), opened.view)
            with torch.no_grad():
                tokens = opened.model.encode_image(pixels[None].to(opened.model.device))
                self._keys = opened.model.project_images(tokens)

    @torch.no_grad()
    def log_probabilities(self, sequences: Sequence[list[int]]) -> torch.Tensor:
        """See `Filler.log_probabilities`; every sequence looks at the picture."""
        ids = torch.tensor(sequences, device=self._sight.device)
        rows = (ids == self.mask_id).flatten().nonzero().flatten()
        keys = None
        if self._keys is not None:
            one = torch.zeros(len(ids), dtype=torch.int64, device=ids.device)
            keys = [key.select(one) for key in self._keys]
        hidden = self._sight.text_encoder(ids, None, keys)
        logits = self._sight.text_encoder.mlm_logits(hidden.flatten(0, 1)[rows]).float().cpu()
        logs = logits.log_softmax(dim=-1)
        return logs.view(len(sequences), -1, logs.shape[-1])

    @torch.no_grad()
    def predict(self, masked: MaskedTokens) -> torch.Tensor:
        """The logits (M, V) of a batch's masked tokens; every sequence looks at the picture."""
        ids, real, places = side_by_side(masked.batch, masked.input_ids)
        device = self._sight.device
        keys = None
        if self._keys is not None:
            one = torch.zeros(len(ids), dtype=torch.int64, device=device)
            keys = [key.select(one) for key in self._keys]
        hidden = self._sight.text_encoder(
            torch.from_numpy(ids).to(device), torch.from_numpy(real).to(device), keys
        )
        rows = torch.from_numpy(places[masked.positions]).to(device)
        return self._sight.text_encoder.mlm_logits(hidden.flatten(0, 1)[rows]).float()
