"""The losses of captions, masked words and replaced words: the nine steps but for the models.

RaSa's sensitivity-aware learning (Bai et al., IJCAI 2023, section 3.3). `ImageTextMLM` and
`PersonSearch` run these steps; which passes they share with other losses is theirs to decide.

Shapes: B pairs, L caption length, D text width, V vocabulary, M masked tokens, N sampled tokens,
P judged tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import torch
import torch.nn.functional as F

from maskery.core.batch import MaskedTokens, Vocabulary
from maskery.core.random import token_uniforms
from maskery.data.pairs.batches import ViewedPairs
from maskery.masking.masker import Masker
from maskery.models.image_text.attention import ImageKeys
from maskery.models.image_text.model import ImageTextModel
from maskery.models.image_text.text_encoder import OtherImages
from maskery.objectives.mlm import (
    mlm_loss_sum,
    soft_mlm_loss_sum,
    soft_mlm_loss_sum_over_sequence,
)
from maskery.objectives.mrtd import (
    IGNORE,
    labelled,
    mrtd_loss_sum,
    mrtd_mask_modeling,
    mrtd_mask_modeling_everywhere,
    sample_tokens,
)
from maskery.tasks.image_text_batch import (
    MRTDPlan,
    PaddedText,
    PreparedPairs,
    pad_masked,
    pad_text,
    padded_places,
)
from maskery.tasks.image_text_config import ImageTextMLMConfig

PreparedT = TypeVar("PreparedT", bound=PreparedPairs)


@dataclass(frozen=True, kw_only=True)
class Replacements:
    """A caption in which the momentum twin replaced words."""

    weights: torch.Tensor  # (N, V), the twin's probabilities where it was asked
    sampled: torch.Tensor  # (N,) int64, the samples
    input_ids: torch.Tensor  # (B, L) int64, the caption with them
    labels: torch.Tensor  # (B, L) int64: 1 replaced, 0 original, -100 not judged


@dataclass(frozen=True, kw_only=True)
class CaptionTargets:
    """Targets that the momentum twin makes for the trained model."""

    # (M, V), its probabilities at the masked words; None where alpha is 0.
    soft_labels: torch.Tensor | None
    replacements: Replacements | None  # None where MRTD is off


@dataclass(frozen=True, kw_only=True)
class Block:
    """B text rows on their way through the encoder."""

    hidden: torch.Tensor  # (B, L, D)
    mask: torch.Tensor  # (B, L) bool


@dataclass(frozen=True, kw_only=True)
class Step(Generic[PreparedT]):
    """The results of one step."""

    # By loss term, its sum over the prepared batch's `counts`.
    loss_sums: Mapping[str, torch.Tensor]
    lesson: CaptionTargets  # The twin's part
    prepared: PreparedT  # The batch with every random decision filled in: the same step again


@dataclass(frozen=True, kw_only=True)
class CaptionSteps:
    """Masked language modelling and replaced token detection on captions."""

    config: ImageTextMLMConfig
    vocabulary: Vocabulary  # From `Vocabulary.of(tokenizer)`
    pad_token_id: int  # The tokenizer's
    masker: Masker  # Masks captions for masked language modelling
    # Masks them again for the generator; another seed makes its masks independent.
    mrtd_masker: Masker
    own: frozenset[str] = frozenset()  # Names of the user's own loss terms, whose sums count pairs

    @property
    def terms(self) -> Mapping[str, float]:
        """By loss term, its weight; terms that are off are not in it."""
        return self.config.weights

    def prepare(
        self, batch: ViewedPairs, length: int, *, epoch: int, progress: float
    ) -> PreparedPairs:
        """Step 2: mask the captions, padded to `length`, once for each use."""
        text1 = pad_text(batch.text1, length, self.pad_token_id)
        masked = self.masker.mask(batch.text1, epoch=epoch, progress=progress)
        plan = None
        if "mrtd" in self.terms and progress >= self.config.mrtd_start:
            generator = self.mrtd_masker.mask(batch.text1, epoch=epoch, progress=progress)
            plan = self._plan_mrtd(generator, length, epoch)
        return PreparedPairs(
            image1=batch.image1,
            image2=batch.image2,
            text1=text1,
            pair_ids=torch.from_numpy(batch.text1.example_ids.view(np.int64)),
            mlm=pad_masked(masked, length, self.pad_token_id),
            mrtd=plan,
            alpha=self.config.alpha_at(progress),
            num_tokens=batch.text1.num_tokens,
            terms=frozenset(self.terms) | self.own,
        )

    def _plan_mrtd(self, masked: MaskedTokens, length: int, epoch: int) -> MRTDPlan:
        batch, everywhere = masked.batch, self.config.mrtd_sample_at == "every"
        tokens = np.arange(batch.num_tokens) if everywhere else masked.positions
        text = pad_text(batch, length, self.pad_token_id)
        special_ids = () if everywhere else self.vocabulary.special_ids
        judged = labelled(text.input_ids, text.attention_mask, special_ids)
        return MRTDPlan(
            masked_ids=pad_masked(masked, length, self.pad_token_id).input_ids,
            sampled_at=torch.from_numpy(padded_places(batch, length)[tokens]),
            uniforms=token_uniforms(batch, tokens, seed=self.config.seed, epoch=epoch),
            labelled_at=judged.flatten().nonzero().squeeze(-1),
        )

    def generator_inputs(self, prepared: PreparedPairs) -> dict[str, PaddedText]:
        """Step 3: what the twin reads, by loss term; the mask is the original caption's."""
        mask = prepared.text1.attention_mask
        inputs: dict[str, PaddedText] = {}
        if "mlm" in self.terms and self.config.alpha > 0:
            inputs["mlm"] = PaddedText(input_ids=prepared.mlm.input_ids, attention_mask=mask)
        if "mrtd" in self.terms and prepared.mrtd is not None:
            inputs["mrtd"] = PaddedText(input_ids=prepared.mrtd.masked_ids, attention_mask=mask)
        return inputs

    def learner_inputs(
        self, prepared: PreparedPairs, lesson: CaptionTargets
    ) -> dict[str, PaddedText]:
        """Return the captions that the trained model reads, by loss term."""
        mask = prepared.text1.attention_mask
        inputs: dict[str, PaddedText] = {}
        if "mlm" in self.terms:
            inputs["mlm"] = PaddedText(input_ids=prepared.mlm.input_ids, attention_mask=mask)
        if lesson.replacements is not None:
            ids = lesson.replacements.input_ids
            inputs["mrtd"] = PaddedText(input_ids=ids, attention_mask=mask)
        return inputs

    def fuse(
        self,
        model: ImageTextModel,
        blocks: Mapping[str, Block],
        images: Sequence[ImageKeys] | None,
        other_images: OtherImages | None = None,
    ) -> dict[str, torch.Tensor]:
        """Run all blocks through the fusion layers at once: by name, (B, L, D).

        Row b of every block looks at image b; of the last one, where `other_images` is given, at
        image `other_images[b]`, or at image b of those.
        """
        if not blocks:
            return {}
        if "mlm" in blocks and not self.config.mlm_with_image and images is not None:
            blind = self.fuse(model, {"mlm": blocks["mlm"]}, None)
            seeing = {name: block for name, block in blocks.items() if name != "mlm"}
            return blind | self.fuse(model, seeing, images, other_images)
        hidden = torch.cat([block.hidden for block in blocks.values()])
        mask = torch.cat([block.mask for block in blocks.values()])
        fused = model.text_encoder.fuse(hidden, mask, images, other_images)
        return dict(zip(blocks, fused.chunk(len(blocks)), strict=True))

    def lesson(
        self, twin: ImageTextModel, fused: Mapping[str, torch.Tensor], prepared: PreparedPairs
    ) -> CaptionTargets:
        """Steps 4, 6 and 7: the twin's soft labels and replacements, from its fused captions.

        The vocabulary projection runs where something is learnt from it, in one call.
        """
        places = {"mlm": prepared.mlm.positions}
        if prepared.mrtd is not None:
            places["mrtd"] = prepared.mrtd.sampled_at
        rows = [fused[name].flatten(0, 1)[places[name]] for name in fused]
        if not rows:
            return CaptionTargets(soft_labels=None, replacements=None)
        logits = twin.text_encoder.mlm_logits(torch.cat(rows))
        probabilities = torch.split(F.softmax(logits.float(), dim=-1), [len(r) for r in rows])
        by_term = dict(zip(fused, probabilities, strict=True))
        replacements = None
        if "mrtd" in by_term and prepared.mrtd is not None:
            replacements = self.replace(prepared, prepared.mrtd, by_term["mrtd"])
        return CaptionTargets(soft_labels=by_term.get("mlm"), replacements=replacements)

    def replace(
        self, prepared: PreparedPairs, plan: MRTDPlan, weights: torch.Tensor
    ) -> Replacements:
        """Step 7: sample words from the twin's probabilities (N, V)."""
        text = prepared.text1
        if self.config.mrtd_sample_at == "every":
            sampled = (
                sample_tokens(weights, plan.uniforms) if plan.sampled is None else plan.sampled
            )
            drawn = text.input_ids.flatten().index_copy(0, plan.sampled_at, sampled)
            ids, labels = mrtd_mask_modeling_everywhere(
                text.input_ids,
                text.attention_mask,
                drawn.view_as(text.input_ids),
                pad_token_id=self.pad_token_id,
            )
        else:
            ids, labels = mrtd_mask_modeling(
                plan.masked_ids,
                text.input_ids,
                text.attention_mask,
                weights,
                positions=plan.sampled_at,
                uniforms=plan.uniforms,
                sampled=plan.sampled,
                special_ids=self.vocabulary.special_ids,
            )
            sampled = ids.flatten()[plan.sampled_at]
        return Replacements(weights=weights, sampled=sampled, input_ids=ids, labels=labels)

    def sums(
        self,
        model: ImageTextModel,
        fused: Mapping[str, torch.Tensor],
        prepared: PreparedPairs,
        lesson: CaptionTargets,
    ) -> dict[str, torch.Tensor]:
        """Steps 5 and 9: the losses of the fused captions that are there."""
        sums: dict[str, torch.Tensor] = {}
        if "mlm" in fused:
            sums["mlm"] = self.mlm_sum(model, fused["mlm"], prepared, lesson)
        if "mrtd" in fused and lesson.replacements is not None:
            sums["mrtd"] = mrtd_sum(model, fused["mrtd"], prepared, lesson.replacements)
        elif "mrtd" in self.terms:
            # Not started: its head takes part without learning, for data parallelism waits for it.
            weights = [weight.sum() for weight in model.mrtd_head.parameters()]
            sums["mrtd"] = 0.0 * torch.stack(weights).sum()
        return sums

    def mlm_sum(
        self,
        model: ImageTextModel,
        fused: torch.Tensor,
        prepared: PreparedPairs,
        lesson: CaptionTargets,
    ) -> torch.Tensor:
        """Step 5: the MLM loss of the fused masked caption (B, L, D), over the masked words."""
        masked, soft_labels = prepared.mlm, lesson.soft_labels
        if soft_labels is not None and self.config.distill_over == "sequence":
            logits = model.text_encoder.mlm_logits(fused)
            return soft_mlm_loss_sum_over_sequence(
                logits, masked.positions, masked.targets, soft_labels, prepared.alpha
            )
        logits = model.text_encoder.mlm_logits(fused.flatten(0, 1)[masked.positions])
        if soft_labels is None:
            return mlm_loss_sum(logits, masked.targets)
        return soft_mlm_loss_sum(logits, masked.targets, soft_labels, prepared.alpha)


def project(model: ImageTextModel, image: torch.Tensor | None) -> list[ImageKeys] | None:
    """The keys and values of (B, 3, H, W) images, or None for no images."""
    return None if image is None else model.project_images(model.encode_image(image))


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


def lengthened(block: Block, length: int) -> Block:
    """The rows of a block with padding up to a length."""
    missing = length - block.mask.shape[1]
    if not missing:
        return block
    return Block(
        hidden=F.pad(block.hidden, (0, 0, 0, missing)), mask=F.pad(block.mask, (0, missing))
    )


def mrtd_sum(
    model: ImageTextModel,
    fused: torch.Tensor,
    prepared: PreparedPairs,
    replacements: Replacements,
) -> torch.Tensor:
    """Step 9: the MRTD loss of the fused replaced caption (B, L, D), over the judged words."""
    assert prepared.mrtd is not None
    judged = prepared.mrtd.labelled_at
    labels = replacements.labels.flatten()[judged]
    logits: torch.Tensor = model.mrtd_head(fused.flatten(0, 1)[judged])
    # Sampling everywhere leaves out the words that became padding or class tokens; which ones is
    # known only now, so the mean over the others stands for all.
    counted = (labels != IGNORE).sum().clamp(min=1)
    return mrtd_loss_sum(logits, labels) * (len(judged) / counted)


def replayable(prepared: PreparedT, lesson: CaptionTargets) -> PreparedT:
    """The batch with the sampled replacements filled in."""
    if lesson.replacements is None or prepared.mrtd is None:
        return prepared
    plan = dataclasses.replace(prepared.mrtd, sampled=lesson.replacements.sampled)
    return dataclasses.replace(prepared, mrtd=plan)
