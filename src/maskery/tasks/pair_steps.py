"""Contrast, hard negatives and matching of whole pairs, over the batch of all processes.

Contrast: ALBEF (Li et al., NeurIPS 2021), sections 3.2 and 3.3; RaSa (Bai et al., IJCAI 2023),
section 3.1.

Shapes: B pairs of this process, G of all processes, C candidates (the G, then the queues), N image
tokens, W image width, L caption length, D text width, E features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch

from maskery.models.gather import Crowd
from maskery.models.image_text.model import ImageTextModel
from maskery.models.image_text.text_encoder import OtherImages
from maskery.models.momentum import FeatureQueue
from maskery.objectives import itm
from maskery.objectives.itc import Contrast, Direction, Features, itc_loss
from maskery.tasks.caption_steps import Block
from maskery.tasks.image_text_batch import PreparedPairs

# (B,) int64 each: the image drawn for each text and the text drawn for each image, as indices into
# the crowd.
Negatives: TypeAlias = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """The twin's contrastive features."""

    own: Features  # (B, E) each
    crowd: Crowd  # The pairs of all processes
    crowd_ids: torch.Tensor  # (G,) int64
    everyone: Features  # (C, E) each
    ids: torch.Tensor  # (C,) int64

    @classmethod
    def of(
        cls,
        twin: ImageTextModel,
        tokens: torch.Tensor,  # (B, N, W)
        pair: Block,
        ids: torch.Tensor,  # (B,) int64
        queues: Mapping[str, FeatureQueue],  # Of images, then of texts, or empty
    ) -> Candidates:
        """Gather the twin's features of all processes, then those of the queues."""
        own = Features(image=twin.image_feature(tokens), text=twin.text_feature(pair.hidden))
        crowd = Crowd.of(len(ids), pair.mask.shape[1], ids.device)
        crowd_ids = everyones = crowd.gather(ids)
        image, text = crowd.gather(own.image), crowd.gather(own.text)
        if queues:
            for queue in queues.values():
                queue.to(ids.device)
            images, texts = queues.values()
            image = torch.cat((image, images.features))
            text = torch.cat((text, texts.features))
            everyones = torch.cat((crowd_ids, images.ids))
        everyone = Features(image=image, text=text)
        return cls(own=own, crowd=crowd, crowd_ids=crowd_ids, everyone=everyone, ids=everyones)

    def enqueue(self, queues: Mapping[str, FeatureQueue]) -> None:
        """Let the queues, where there are any, take in the pairs of all processes."""
        features = (self.everyone.image, self.everyone.text)
        for queue, everyone in zip(queues.values(), features, strict=False):
            queue.enqueue(everyone[: len(self.crowd_ids)], self.crowd_ids)

    def contrast(
        self,
        model: ImageTextModel,
        student: Features,
        prepared: PreparedPairs,
        directions: Sequence[Direction],
    ) -> Contrast:
        """Contrast the trained model's features with these."""
        return itc_loss(
            student,
            self.own,
            self.everyone,
            ids=prepared.ids,
            candidate_ids=self.ids,
            temperature=model.temp,
            alpha=prepared.alpha,
            directions=directions,
            crowd_size=len(self.crowd_ids),
        )

    def draw(self, contrast: Contrast, prepared: PreparedPairs) -> Negatives:
        """Take the hard negatives handed in, or draw them by similarity among other persons."""
        if prepared.image_negatives is not None and prepared.text_negatives is not None:
            return prepared.image_negatives, prepared.text_negatives
        assert prepared.negative_uniforms is not None
        for_texts, for_images = prepared.negative_uniforms
        same = prepared.ids.unsqueeze(1) == self.crowd_ids.unsqueeze(0)
        mine = self.crowd.mine
        return (
            itm.draw_hard_negatives(contrast.text_to_image, same, for_texts, mine),
            itm.draw_hard_negatives(contrast.image_to_text, same, for_images, mine),
        )


def with_negatives(
    model: ImageTextModel,
    blocks: Mapping[str, Block],
    tokens: torch.Tensor,  # (B, N, W)
    negatives: Negatives,
    crowd: Crowd,
) -> tuple[dict[str, Block], OtherImages]:
    """Add wrong texts, then the captions that look at wrong images; return those images, too."""
    for_texts, for_images = negatives
    # Everyone's captions as long as the longest of any process, so that they can be exchanged.
    paired = {name: block.lengthened(crowd.longest) for name, block in blocks.items()}
    match = paired["match"]
    paired["wrong text"] = Block(
        hidden=crowd.gather_with_gradients(match.hidden)[for_images],
        mask=crowd.gather(match.mask)[for_images],
    )
    paired["wrong image"] = match
    if crowd.is_alone:
        return paired, for_texts
    # Drawn from all processes: their gradients find the way back.
    return paired, model.project_images(crowd.gather_with_gradients(tokens)[for_texts])


def itm_sum(
    model: ImageTextModel,
    fused: Mapping[str, torch.Tensor],  # (B, L, D) each
    prepared: PreparedPairs,
    crowd_ids: torch.Tensor,  # (G,) int64
) -> torch.Tensor:
    """Sum the matching loss over pairs and their hard negatives, from the class tokens."""
    parts = [fused[name][:, 0] for name in ("match", "wrong text", "wrong image")]
    judged = torch.cat(parts)
    possible = itm.has_negative(prepared.ids, crowd_ids)
    counted = torch.cat((torch.ones_like(possible), possible, possible))
    # 1 for matching pairs, then 0 for both kinds of negatives.
    labels = (torch.arange(len(judged), device=judged.device) < len(parts[0])).long()
    return itm.itm_loss_sum(model.itm_head(judged), labels, counted)
