"""Filling masks with the help of a picture.

Shapes: B sequences, L tokens, M masks, V vocabulary.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from maskery.core.batch import MaskedTokens
from maskery.data.images.views import view
from maskery.evaluation.image_text.image_ablation import side_by_side
from maskery.evaluation.image_text.opening import OpenImageText, load_picture
from maskery.evaluation.text.fill import Filler
from maskery.models.image_text.attention import ImageKeys


class ImageFiller(Filler):
    """Fills masks by an image-text model that looks at a picture: a file, its bytes, or none."""

    def __init__(self, opened: OpenImageText, image: str | Path | bytes | None) -> None:
        self.tokenizer = opened.tokenizer
        self.mask_id = int(opened.tokenizer.mask_token_id)
        self._model = opened.model
        self.limit = int(opened.model.config.text_config.max_position_embeddings)
        self._keys: list[ImageKeys] | None = None
        if image is not None:
            pixels = view(load_picture(image, opened.view.size), opened.view)
            with torch.no_grad():
                tokens = opened.model.encode_image(pixels[None].to(opened.model.device))
                self._keys = opened.model.project_images(tokens)

    @property
    def embeddings(self) -> torch.nn.Module:
        """See `Filler.embeddings`."""
        embeddings: Any = self._model.text_encoder.embeddings
        module: torch.nn.Module = embeddings.word_embeddings
        return module

    def read(self, ids: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Return the fused states (B, L, D) of texts (B, L); the mask is False at padding."""
        keys = None
        if self._keys is not None:
            one = torch.zeros(len(ids), dtype=torch.int64, device=ids.device)
            keys = [key.select(one) for key in self._keys]
        hidden: torch.Tensor = self._model.text_encoder(ids, mask, keys)
        return hidden

    def predict(self, masked: MaskedTokens) -> torch.Tensor:
        """See `Filler.predict`; every sequence looks at the picture."""
        ids, real, places = side_by_side(masked.batch.lengths, masked.input_ids)
        device = self._model.device
        hidden = self.read(torch.from_numpy(ids).to(device), torch.from_numpy(real).to(device))
        rows = torch.from_numpy(places[masked.positions]).to(device)
        return self._model.text_encoder.mlm_logits(hidden.flatten(0, 1)[rows]).float()

    @property
    def detects(self) -> bool:
        """True if the replaced-token-detection head has been trained."""
        return bool(self._model.mrtd_head.bias.any())

    @torch.no_grad()
    def replaced(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the probability that each token of texts (B, L) was replaced: (B, L) float32."""
        logits = self._model.mrtd_head(self.read(ids.to(self._model.device))).float()
        chances: torch.Tensor = logits.softmax(dim=-1)[..., 1].cpu()
        return chances
