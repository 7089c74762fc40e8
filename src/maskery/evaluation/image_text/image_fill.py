"""Filling masks with the help of a picture.

Shapes: B sequences, L tokens, M masks, V vocabulary.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from maskery.core.batch import MaskedTokens
from maskery.data.images.config import DEFAULT_MAX_PIXELS
from maskery.data.images.loading import load_image
from maskery.data.images.views import view
from maskery.data.pairs.pictures import FileImage
from maskery.evaluation.image_text.opening import OpenImageText
from maskery.evaluation.image_text.sight import side_by_side
from maskery.evaluation.text.fill import Filler
from maskery.models.image_text.attention import ImageKeys

if TYPE_CHECKING:
    from PIL.Image import Image


class ImageFiller(Filler):
    """Fills the masks of sentences with what an image-text model sees in one picture.

    Args:
        opened: The model.
        image: The picture, a file or the bytes of one; None to fill from the text alone.

    Raises:
        DataError: The picture cannot be read.
    """

    def __init__(self, opened: OpenImageText, image: Path | bytes | None) -> None:
        self.tokenizer = opened.tokenizer
        self.mask_id = int(opened.tokenizer.mask_token_id)
        self._sight = opened.model
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
        embeddings: Any = self._sight.text_encoder.embeddings
        module: torch.nn.Module = embeddings.word_embeddings
        return module

    def logits(self, ids: torch.Tensor) -> torch.Tensor:
        """See `Filler.logits`; every sequence looks at the picture."""
        ids = ids.to(self._sight.device)
        rows = (ids == self.mask_id).flatten().nonzero().flatten()
        hidden = self.read(ids)
        logits: torch.Tensor = self._sight.text_encoder.mlm_logits(hidden.flatten(0, 1)[rows])
        return logits

    def read(self, ids: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """The fused states (B, L, D) of texts that look at the picture.

        Args:
            ids: (B, L) int64.
            mask: (B, L) bool, False at padding; None where there is none.
        """
        keys = None
        if self._keys is not None:
            one = torch.zeros(len(ids), dtype=torch.int64, device=ids.device)
            keys = [key.select(one) for key in self._keys]
        hidden: torch.Tensor = self._sight.text_encoder(ids, mask, keys)
        return hidden

    @torch.no_grad()
    def predict(self, masked: MaskedTokens) -> torch.Tensor:
        """The logits (M, V) of a batch's masked tokens; every sequence looks at the picture."""
        ids, real, places = side_by_side(masked.batch, masked.input_ids)
        device = self._sight.device
        hidden = self.read(torch.from_numpy(ids).to(device), torch.from_numpy(real).to(device))
        rows = torch.from_numpy(places[masked.positions]).to(device)
        return self._sight.text_encoder.mlm_logits(hidden.flatten(0, 1)[rows]).float()

    @property
    def detects(self) -> bool:
        """Whether the replaced-token-detection head has been trained."""
        return bool(self._sight.mrtd_head.bias.any())

    @torch.no_grad()
    def replaced(self, ids: torch.Tensor) -> torch.Tensor:
        """How likely each token of texts (B, L) was put in place of another: (B, L) float32.

        What the replaced-token-detection head says; without that training it says nothing.
        """
        logits = self._sight.mrtd_head(self.read(ids.to(self._sight.device))).float()
        chances: torch.Tensor = logits.softmax(dim=-1)[..., 1].cpu()
        return chances


def load_picture(image: Path | bytes, near: tuple[int, int]) -> Image:
    """A picture as RGB, from a file or from its bytes.

    Args:
        image: The file or the bytes.
        near: The size that will be asked of it, as in `maskery.data.images.loading.load_image`.

    Raises:
        DataError: It cannot be read.
    """
    if isinstance(image, bytes):
        return load_image(
            io.BytesIO(image), name="that was given", max_pixels=DEFAULT_MAX_PIXELS, near=near
        )
    return FileImage(image.name, image.parent, DEFAULT_MAX_PIXELS).load(near)
