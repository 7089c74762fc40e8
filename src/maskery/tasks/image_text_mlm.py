"""Image-text masked language modelling: a caption's hidden words, found with the picture's help.

RaSa's sensitivity-aware learning (Bai et al., IJCAI 2023, section 3.3) on ALBEF (Li et al.,
NeurIPS 2021): masked language modelling with a momentum twin's soft labels, and momentum-based
replaced token detection (MRTD).

Shapes: B pairs, L caption length, D text width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from maskery.core.batch import Vocabulary
from maskery.core.errors import ConfigError
from maskery.core.registry import split_weight
from maskery.core.task import part_of
from maskery.data.pairs.batches import ViewedPairs
from maskery.masking.masker import Masker
from maskery.models.gather import gather_rows
from maskery.models.image_text.model import ImageTextModel
from maskery.models.momentum import MomentumTwin
from maskery.objectives.itc import ALBEF_DIRECTIONS, Features, itc_loss
from maskery.objectives.terms import TERMS, Term, load_terms, trained_terms
from maskery.tasks.caption_steps import (
    Block,
    CaptionSteps,
    CaptionTargets,
    Step,
    encode_captions,
    project,
    replayable,
)
from maskery.tasks.image_text_batch import PaddedText, PreparedPairs
from maskery.tasks.image_text_config import ImageTextMLMConfig
from maskery.tasks.loss_terms import (
    TermInputs,
    attach_terms,
    freeze_unused_heads,
    own_sums,
    without_terms,
)


class CaptionTask:
    """Base of `ImageTextMLM` and `PersonSearch`: twin, terms and heads; each has its own step.

    Attributes:
        model: The trained model, or what the loop wrapped it in.
        twin: Its momentum twin.
        captions: Steps 2 to 9.
        loss_weights: By loss term, its weight in the total.
        temperature: The learnt one of the contrast.
    """

    # ALBEF's bounds of the learnt temperature; RaSa's release has none.
    min_temperature, max_temperature = 0.001, 0.5

    def __init__(
        self,
        model: ImageTextModel,
        config: ImageTextMLMConfig,
        *,
        vocabulary: Vocabulary,
        pad_token_id: int,
        masker: Masker,
        mrtd_masker: Masker,
        terms: Sequence[Any] = (),
    ):
        """Make the twin, attach the user's loss terms, and freeze heads that no term reads.

        The loss terms of the user's own are those that `config` names, and functions, modules or
        `LossTerm`s as `terms`. `mrtd_masker` masks captions again for the twin to fill, with
        another seed.

        Raises:
            PluginError: A term of the user's own breaks its contract.
        """
        self.own_terms = load_terms(config.term, terms, model)
        self.captions = CaptionSteps(
            config=config,
            vocabulary=vocabulary,
            pad_token_id=pad_token_id,
            masker=masker,
            mrtd_masker=mrtd_masker,
            own=frozenset(term.name for term in self.own_terms),
        )
        attach_terms(model, self.own_terms)
        # The released soft-label loss over the sequence reads what comes of padding.
        model.text_encoder.computes_padding = config.distill_over == "sequence"
        self.twin = MomentumTwin(model, config.momentum, train_mode=config.twin_train_mode)
        self.loss_weights: Mapping[str, float] = {
            **config.weights,
            **{term.name: term.weight for term in self.own_terms},
        }
        freeze_unused_heads(model, self.terms)
        self.temperature = model.temp
        self.model: nn.Module = model

    @property
    def terms(self) -> list[Term]:
        """The terms that are on, the user's own last."""
        return [TERMS[name] for name in self.loss_weights if name in TERMS] + [*self.own_terms]

    def described_objects(self) -> list[str]:
        """Return the terms that were given as objects, for the identity of a run."""
        named = {str(split_weight(choice)[0]) for choice in self.captions.config.term}
        return [f"{t.name}={t.weight:g}" for t in self.own_terms if t.choice not in named]

    @property
    def trained(self) -> tuple[str, ...]:
        """The built-in terms whose heads are trained: what a model of this task is good for."""
        return trained_terms(self.terms)

    @torch.no_grad()
    def before_step(self) -> None:
        """Move the twin and keep the temperature in bounds: once per optimiser step."""
        self.twin.update()
        self.temperature.clamp_(self.min_temperature, self.max_temperature)

    def extra_state(self) -> Mapping[str, torch.Tensor]:
        """The momentum twin, as `twin.*`, without the user's terms, which it does not read."""
        twin = without_terms(self.twin.state_dict())
        return {f"twin.{name}": tensor for name, tensor in twin.items()}

    def load_extra_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Restore what `extra_state` gave."""
        self.load_twin(part_of(state, "twin."))

    def load_twin(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Restore the twin's weights; the user's terms in it, which are never read, may lack."""
        own = self.twin.state_dict()
        unread = {name: own[name] for name in own.keys() - without_terms(own).keys()}
        self.twin.load_state_dict({**weights, **unread})


@dataclass(frozen=True, kw_only=True)
class Teaching:
    """Everything that the twin computes for the trained model."""

    lesson: CaptionTargets  # Soft labels and replacements
    # (B, E) each, its contrastive features; None where there is no contrast.
    features: Features | None


class ImageTextMLM(CaptionTask):
    """The task: MLM with soft labels and MRTD on image-caption pairs.

    The nine steps of the method, by their numbers:

    1. the model and its momentum twin: `model`, `twin`
    2. mask the captions: `prepare`
    3. read them with their attention mask: `generator_inputs`, `learner_inputs`
    4. the twin's soft labels: `lesson`
    5. the MLM loss against words and soft labels: `mlm_sum`
    6. the twin's probabilities for the second masked caption: `lesson`
    7. sample replacements from them: `replace`, `mrtd_mask_modeling`
    8. the model reads the caption with replacements: `learner_inputs`, `fuse`
    9. the MRTD loss: `mrtd_sum`

    Steps 2 to 9 are `CaptionSteps`'. The twin reads both masked captions in one pass (4 and 6), and
    so does the model (5 and 8); every image is encoded, and its keys and values projected, once.
    With `itc_weight` above 0 the images are also contrasted with the unmasked captions of the batch
    (ALBEF, section 3.2, without its queues).
    """

    def prepare(self, batch: ViewedPairs, *, epoch: int, progress: float) -> PreparedPairs:
        """Mask the captions and draw what replacements will be sampled with."""
        length = int(batch.text1.lengths.max())
        return self.captions.prepare(batch, length, epoch=epoch, progress=progress)

    def loss_sums(self, prepared: PreparedPairs) -> Mapping[str, torch.Tensor]:
        """Each loss term as a sum over `prepared.counts`."""
        return self.step(prepared).loss_sums

    def step(self, prepared: PreparedPairs) -> Step[PreparedPairs]:
        """The twin teaches, the model learns."""
        with torch.no_grad():
            teaching = self.twin.model(compute=partial(self._teach, prepared=prepared))
        compute = partial(self._learn, prepared=prepared, teaching=teaching)
        loss_sums: Mapping[str, torch.Tensor] = self.model(compute=compute)
        lesson = teaching.lesson
        return Step(loss_sums=loss_sums, lesson=lesson, prepared=replayable(prepared, lesson))

    @torch.no_grad()
    def judge(self, prepared: PreparedPairs) -> tuple[torch.Tensor, torch.Tensor]:
        """Judge, in evaluation mode, which words the twin replaced.

        Returns (P,) float32, the log-odds of being replaced, and (P,) int64, 1 where it was.

        Raises:
            ConfigError: The task has no replaced token detection.
        """
        lesson = self.twin.model(compute=partial(self._teach, prepared=prepared)).lesson
        if lesson.replacements is None or prepared.mrtd is None:
            raise ConfigError("mrtd_weight is 0, so there is no detection to judge; train with it")
        compute = partial(self._judge, prepared=prepared, lesson=lesson)
        log_odds: torch.Tensor = self.model(compute=compute)
        labels = lesson.replacements.labels.flatten()[prepared.mrtd.labelled_at]
        return log_odds, labels

    def _judge(
        self, model: ImageTextModel, *, prepared: PreparedPairs, lesson: CaptionTargets
    ) -> torch.Tensor:
        assert prepared.mrtd is not None
        inputs = {"mrtd": self.captions.learner_inputs(prepared, lesson)["mrtd"]}
        images = project(model, prepared.image1)
        fused = self.captions.fuse(model, encode_captions(model, inputs), images)["mrtd"]
        logits = model.mrtd_head(fused.flatten(0, 1)[prepared.mrtd.labelled_at]).float()
        log_odds: torch.Tensor = logits[:, 1] - logits[:, 0]
        return log_odds

    def _teach(self, twin: ImageTextModel, prepared: PreparedPairs) -> Teaching:
        """Steps 3, 4, 6 and 7, and the twin's contrastive features."""
        inputs = self._contrasted(prepared) | self.captions.generator_inputs(prepared)
        images2 = prepared.image2 if inputs else None
        tokens = None if images2 is None else twin.encode_image(images2)
        blocks = encode_captions(twin, inputs)
        features = _features(twin, tokens, blocks.pop("pair", None))
        images = None if tokens is None or not blocks else twin.project_images(tokens)
        fused = self.captions.fuse(twin, blocks, images)
        lesson = self.captions.lesson(twin, fused, prepared)
        return Teaching(lesson=lesson, features=features)

    def _learn(
        self, model: ImageTextModel, *, prepared: PreparedPairs, teaching: Teaching
    ) -> dict[str, torch.Tensor]:
        """Steps 3, 5, 8 and 9, the contrast, and terms of the user's own."""
        lesson = teaching.lesson
        tokens = None if prepared.image1 is None else model.encode_image(prepared.image1)
        inputs = self.captions.learner_inputs(prepared, lesson)
        blocks = encode_captions(model, self._contrasted(prepared) | inputs)
        pair = blocks.pop("pair", None)
        student = _features(model, tokens, pair) if "itc" in self.loss_weights else None
        images = None if tokens is None else model.project_images(tokens)
        fused = self.captions.fuse(model, blocks, images)
        sums = self.captions.sums(model, fused, prepared, lesson)
        if tokens is None or pair is None or teaching.features is None:
            return sums
        teacher, ids = teaching.features, prepared.pair_ids
        parts = TermInputs(
            model=model,
            image_tokens=tokens,
            caption=pair.hidden,
            caption_mask=pair.mask,
            ids=ids,
            teacher=teacher,
            candidates=Features(image=gather_rows(teacher.image), text=gather_rows(teacher.text)),
            candidate_ids=gather_rows(ids),
            temperature=model.temp,
            alpha=prepared.alpha,
            by_use=fused,
            prepared=prepared,
            fuse=lambda: self.captions.fuse(model, {"pair": pair}, images)["pair"],
            student=student,
        )
        if "itc" in self.loss_weights:
            sums["itc"] = itc_loss(
                parts.features,
                teacher,
                parts.candidates,
                ids=ids,
                candidate_ids=parts.candidate_ids,
                temperature=model.temp,
                alpha=prepared.alpha,
                directions=ALBEF_DIRECTIONS,
            ).loss_sum
        return sums | own_sums(self.own_terms, parts)

    def _contrasted(self, prepared: PreparedPairs) -> dict[str, PaddedText]:
        """The unmasked captions, where a term contrasts them with images."""
        wanted = bool(self.own_terms) or "itc" in self.loss_weights
        return {"pair": prepared.text1} if wanted and prepared.image1 is not None else {}


def _features(
    model: ImageTextModel, tokens: torch.Tensor | None, pair: Block | None
) -> Features | None:
    """The contrastive features of image tokens and unmasked captions, where both are there."""
    if tokens is None or pair is None:
        return None
    return Features(image=model.image_feature(tokens), text=model.text_feature(pair.hidden))
