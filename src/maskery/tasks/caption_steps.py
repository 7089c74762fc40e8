"""Batches of pairs, and their masked and replaced words: RaSa's nine steps without other losses.

RaSa's sensitivity-aware learning (Bai et al., IJCAI 2023, section 3.3). `ImageTextTask` decides
which passes of the encoder these steps share with the contrast and with matching.

Shapes: B pairs, H x W pixels, L caption length in tokens, D text width, V vocabulary, M masked
tokens, N sampled tokens, P judged tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F

from maskery.core.batch import TokenBatch
from maskery.core.random import token_uniforms
from maskery.core.task import moved
from maskery.data.images.config import Channels
from maskery.data.images.views import normalise_bytes
from maskery.masking.masker import Masker
from maskery.models.image_text.model import ImageTextModel
from maskery.models.image_text.text_encoder import ImageKeys
from maskery.models.layout import pad
from maskery.objectives import mlm, mrtd
from maskery.tasks.image_text_config import ImageTextMLMConfig


@dataclass(frozen=True, kw_only=True)
class PaddedText:
    """B captions side by side."""

    input_ids: torch.Tensor  # (B, L) int64
    attention_mask: torch.Tensor  # (B, L) bool, False at padding


@dataclass(frozen=True, kw_only=True)
class MaskedText:
    """B captions, masked."""

    input_ids: torch.Tensor  # (B, L) int64, corrupted
    positions: torch.Tensor  # (M,) int64, the masked tokens as indices into B * L, ascending
    targets: torch.Tensor  # (M,) int64, the original ids there


@dataclass(frozen=True, kw_only=True)
class MRTDPlan(mrtd.ReplacementPlan):
    """Replaced token detection on captions."""

    masked_ids: torch.Tensor  # (B, L) int64, what the twin reads


@dataclass(frozen=True, kw_only=True)
class PreparedPairs:
    """A batch of pairs with every decision taken that does not need the model."""

    image1: torch.Tensor  # (B, 3, H, W), for the trained model
    image2: torch.Tensor  # (B, 3, H, W), for the momentum twin
    text1: PaddedText  # The captions whose words are masked and replaced
    text2: PaddedText  # What contrast, matching and relations read; without persons the same
    ids: torch.Tensor  # (B,) int64; pairs of one id, with persons the person's, are positives
    mlm: MaskedText  # `text1`, masked for masked language modelling
    mrtd: MRTDPlan | None  # None where replaced token detection is off or has not started
    alpha: float  # The weight of the soft labels at this point of the run
    num_tokens: int  # Real tokens in `text1`
    terms: frozenset[str]  # The loss terms that are on
    # With persons: (B,) int64, 1 where `text2` is another picture's caption.
    replaced: torch.Tensor | None = None
    # With persons: (2, B) float32, the randomness of the image and text negatives.
    negative_uniforms: torch.Tensor | None = None
    num_negatives: int = 0  # Can be drawn: twice the pairs with anyone else in the whole batch
    # Where pictures are (B, H, W, 3) uint8, which `to` normalises: mean and deviation.
    normalisation: tuple[Channels, Channels] | None = None
    negatives: torch.Tensor | None = None  # Where a step is replayed: `Candidates.draw`

    @property
    def num_pairs(self) -> int:
        """Pairs of the batch."""
        return len(self.ids)

    @property
    def counts(self) -> Mapping[str, int]:
        """Of each term that is on: pairs, masked tokens, or tokens judged replaced or not."""
        counts = {
            "mlm": len(self.mlm.positions),
            "mrtd": 0 if self.mrtd is None else len(self.mrtd.judged_at),
            "itm": self.num_pairs + self.num_negatives,
        }
        # All others are sums over the pairs; the user's own stand for one (`own_sum`).
        return {name: counts.get(name, self.num_pairs) for name in sorted(self.terms)}

    def to(self, device: torch.device) -> Self:
        """Return a copy with its tensors on `device`, pictures normalised."""
        there = moved(self, device)
        if self.normalisation is None:
            return there
        views = (normalise_bytes(one, self.normalisation) for one in (there.image1, there.image2))
        image1, image2 = views
        return replace(there, image1=image1, image2=image2, normalisation=None)


def pad_text(batch: TokenBatch, length: int, pad_token_id: int) -> PaddedText:
    """Lay the captions of a batch side by side."""
    parts = batch.input_ids, batch.boundaries, np.zeros(0, np.int64)
    laid = pad(*parts, pad_token_id=pad_token_id, least=length)
    mask = laid.arguments["attention_mask"].bool()
    return PaddedText(input_ids=laid.input_ids, attention_mask=mask)


@dataclass(frozen=True, kw_only=True)
class Block:
    """B text rows on their way through the encoder."""

    hidden: torch.Tensor  # (B, L, D)
    mask: torch.Tensor  # (B, L) bool

    def lengthened(self, length: int) -> Self:
        """Return the rows with padding up to a length."""
        missing = length - self.mask.shape[1]
        hidden, mask = F.pad(self.hidden, (0, 0, 0, missing)), F.pad(self.mask, (0, missing))
        return replace(self, hidden=hidden, mask=mask) if missing else self


@dataclass(frozen=True, kw_only=True)
class CaptionSteps:
    """Masked language modelling and replaced token detection on captions."""

    config: ImageTextMLMConfig
    pad_token_id: int
    masker: Masker  # Masks captions for masked language modelling
    mrtd_masker: Masker  # Masks them again for the twin to fill, with another seed

    def prepare(
        self, batch: TokenBatch, length: int, *, epoch: int, progress: float
    ) -> tuple[MaskedText, MRTDPlan | None]:
        """Step 2: mask the captions, padded to `length`, once for each use."""
        masked = self.masker.mask(batch, epoch=epoch, progress=progress)
        parts = masked.input_ids, batch.boundaries, masked.positions
        laid = pad(*parts, pad_token_id=self.pad_token_id, least=length)
        targets = torch.from_numpy(masked.targets)
        text = MaskedText(input_ids=laid.input_ids, positions=laid.rows, targets=targets)
        replaces = "mrtd" in self.config.weights and progress >= self.config.mrtd_start
        return text, self._plan_mrtd(batch, length, epoch, progress) if replaces else None

    def _plan_mrtd(self, batch: TokenBatch, length: int, epoch: int, progress: float) -> MRTDPlan:
        masked = self.mrtd_masker.mask(batch, epoch=epoch, progress=progress)
        judged = np.flatnonzero(~self.masker.vocabulary.protected[batch.input_ids])
        sampled, tokens = masked.positions, np.arange(batch.num_tokens)
        if self.config.mrtd_sample_at == "every":
            sampled = judged = tokens
        parts = masked.input_ids, batch.boundaries, tokens
        laid = pad(*parts, pad_token_id=self.pad_token_id, least=length)
        return MRTDPlan(
            masked_ids=laid.input_ids,
            sampled_at=laid.rows[sampled],
            uniforms=token_uniforms(batch, sampled, seed=self.config.seed, epoch=epoch),
            judged_at=laid.rows[judged],
        )

    def inputs(
        self, prepared: PreparedPairs, lesson: mrtd.TwinTargets | None = None
    ) -> dict[str, PaddedText]:
        """Steps 3 and 8: return what the twin or, with its lesson, the model reads, by term."""
        ids: dict[str, torch.Tensor] = {}
        if lesson is not None or self.config.alpha > 0:
            ids["mlm"] = prepared.mlm.input_ids
        if lesson is None and prepared.mrtd is not None:
            ids["mrtd"] = prepared.mrtd.masked_ids
        if lesson is not None and lesson.replacements is not None:
            ids["mrtd"] = lesson.replacements.input_ids
        # Masking and replacing leave the lengths: the attention mask is the original caption's.
        texts = {name: replace(prepared.text1, input_ids=one) for name, one in ids.items()}
        return {name: text for name, text in texts.items() if name in self.config.weights}

    def fuse(
        self,
        model: ImageTextModel,
        blocks: Mapping[str, Block],
        images: Sequence[ImageKeys] | None,
        others: Sequence[ImageKeys] | None = None,
    ) -> dict[str, torch.Tensor]:
        """Run all blocks through the fusion layers at once: by name, (B, L, D).

        Row b of every block looks at image b; of the last one, at image b of `others`, if given.
        """
        if not blocks:
            return {}
        if "mlm" in blocks and not self.config.mlm_with_image and images is not None:
            blind = self.fuse(model, {"mlm": blocks["mlm"]}, None)
            seeing = {name: block for name, block in blocks.items() if name != "mlm"}
            return blind | self.fuse(model, seeing, images, others)
        hidden = torch.cat([block.hidden for block in blocks.values()])
        mask = torch.cat([block.mask for block in blocks.values()])
        fused = model.text_encoder.fuse(hidden, mask, images, others)
        return dict(zip(blocks, fused.chunk(len(blocks)), strict=True))

    def lesson(
        self, twin: ImageTextModel, fused: Mapping[str, torch.Tensor], prepared: PreparedPairs
    ) -> mrtd.TwinTargets:
        """Steps 4, 6 and 7: make soft labels and replacements from the twin's fused captions."""
        places = {"mlm": prepared.mlm.positions}
        if prepared.mrtd is not None:
            places["mrtd"] = prepared.mrtd.sampled_at
        # The vocabulary projection runs where something is learnt from it, in one call.
        rows = [fused[name].flatten(0, 1)[places[name]] for name in fused]
        if not rows:
            return mrtd.TwinTargets()
        logits = twin.text_encoder.mlm_logits(torch.cat(rows))
        probabilities = torch.split(F.softmax(logits.float(), dim=-1), [len(r) for r in rows])
        by_term = dict(zip(fused, probabilities, strict=True))
        replacements = None
        if "mrtd" in by_term and prepared.mrtd is not None:
            replacements = self.replace(prepared.text1, prepared.mrtd, by_term["mrtd"])
        return mrtd.TwinTargets(soft_labels=by_term.get("mlm"), replacements=replacements)

    def replace(self, text: PaddedText, plan: MRTDPlan, weights: torch.Tensor) -> mrtd.Replacements:
        """Step 7: sample words from the twin's probabilities (N, V)."""
        original, mask = text.input_ids, text.attention_mask
        if self.config.mrtd_sample_at == "masked":
            special_ids = self.masker.vocabulary.special_ids
            return mrtd.replace_words(original, mask, weights, plan, special_ids)
        drawn = mrtd.sample_tokens(weights, plan.uniforms) if plan.sampled is None else plan.sampled
        everywhere = original.flatten().index_copy(0, plan.sampled_at, drawn).view_as(original)
        ids, labels = mrtd.mrtd_mask_modeling_everywhere(
            original, mask, everywhere, pad_token_id=self.pad_token_id
        )
        return mrtd.Replacements(weights=weights, sampled=drawn, input_ids=ids, labels=labels)

    def sums(
        self,
        model: ImageTextModel,
        fused: Mapping[str, torch.Tensor],
        prepared: PreparedPairs,
        lesson: mrtd.TwinTargets,
    ) -> dict[str, torch.Tensor]:
        """Steps 5 and 9: compute the losses of the fused captions that are there."""
        sums: dict[str, torch.Tensor] = {}
        if "mlm" in fused:
            sums["mlm"] = self.mlm_sum(model, fused["mlm"], prepared, lesson.soft_labels)
        if lesson.replacements is not None and prepared.mrtd is not None:
            places = prepared.mrtd.judged_at
            judged = lesson.replacements.labels.flatten()[places]
            # Sampling everywhere leaves out the words that became padding or class tokens; which
            # ones is known only now, so the mean over the others stands for all.
            counted = (judged != mrtd.IGNORE).sum().clamp(min=1)
            logits = model.mrtd_head(fused["mrtd"].flatten(0, 1)[places])
            sums["mrtd"] = mrtd.mrtd_loss_sum(logits, judged) * (len(judged) / counted)
        elif "mrtd" in self.config.weights:
            # Not started: its head takes part without learning, for data parallelism waits for it.
            weights = [weight.sum() for weight in model.mrtd_head.parameters()]
            sums["mrtd"] = 0.0 * torch.stack(weights).sum()
        return sums

    def mlm_sum(
        self,
        model: ImageTextModel,
        fused: torch.Tensor,
        prepared: PreparedPairs,
        soft_labels: torch.Tensor | None,
    ) -> torch.Tensor:
        """Step 5: sum the MLM loss of the fused masked caption (B, L, D) over the masked words."""
        masked = prepared.mlm
        if soft_labels is not None and self.config.distill_over == "sequence":
            logits = model.text_encoder.mlm_logits(fused)
            right = (masked.targets, soft_labels, prepared.alpha)
            return mlm.soft_mlm_loss_sum_over_sequence(logits, masked.positions, *right)
        logits = model.text_encoder.mlm_logits(fused.flatten(0, 1)[masked.positions])
        return mlm.soft_mlm_loss_sum(logits, masked.targets, soft_labels, prepared.alpha)


def encode_captions(model: ImageTextModel, inputs: Mapping[str, PaddedText]) -> dict[str, Block]:
    """Run all captions through the text layers at once, to the fusion boundary."""
    if not inputs:
        return {}
    ids = torch.cat([text.input_ids for text in inputs.values()])
    mask = torch.cat([text.attention_mask for text in inputs.values()])
    hidden = model.text_encoder.encode_text(ids, mask).chunk(len(inputs))
    return {
        name: Block(hidden=rows, mask=text.attention_mask)
        for (name, text), rows in zip(inputs.items(), hidden, strict=True)
    }
