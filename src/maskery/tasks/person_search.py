"""Text-based person search: RaSa's five losses (Bai et al., IJCAI 2023).

`ImageTextMLM`'s nine steps read `text1`, the caption written for the picture. Beside them,
`text2`, which may be another caption of the same person, is contrasted with the pictures (ITC,
section 3.1), matched against hard negatives (ITM) and tested for being another picture's caption
(PRD, section 3.2). The ten encoder passes of the released step are six here: each model reads its
images once, its captions once and fuses once.

Shapes: B pairs, L caption length, D text width, N image tokens, W image width, K queued features.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch

from maskery.core.vocabulary import Vocabulary
from maskery.models.image_text.model import ImageTextModel
from maskery.models.queue import FeatureQueue
from maskery.objectives.itc import (
    ALBEF_DIRECTIONS,
    RASA_DIRECTIONS,
    Contrast,
    Features,
    itc_loss,
)
from maskery.objectives.itm import draw_hard_negatives, has_negative, itm_labels, itm_loss_sum
from maskery.objectives.prd import prd_loss_sum
from maskery.tasks.image_text_batch import (
    Masker,
    PaddedText,
    PersonBatch,
    PreparedPersons,
    negative_uniforms,
    pad_text,
)
from maskery.tasks.image_text_config import PersonSearchConfig
from maskery.tasks.image_text_mlm import (
    Block,
    ImageTextMLM,
    Lesson,
    Step,
    encode_captions,
    part_of,
    replayable,
)


@dataclass(frozen=True, kw_only=True)
class Negatives:
    """The hard negatives of a step.

    Attributes:
        images: (B,) int64, the image drawn for each text.
        texts: (B,) int64, the text drawn for each image.
    """

    images: torch.Tensor
    texts: torch.Tensor


class PersonSearch(ImageTextMLM):
    """The task: contrast, matching, relations, MLM and MRTD on pictures of known persons.

    Attributes:
        config: Settings.
        image_queue: The twin's features of earlier pictures.
        text_queue: Those of their captions.
    """

    config: PersonSearchConfig

    def __init__(
        self,
        model: ImageTextModel,
        config: PersonSearchConfig,
        *,
        vocabulary: Vocabulary,
        pad_token_id: int,
        mask_for_mlm: Masker,
        mask_for_mrtd: Masker,
    ):
        super().__init__(
            model,
            config,
            vocabulary=vocabulary,
            pad_token_id=pad_token_id,
            mask_for_mlm=mask_for_mlm,
            mask_for_mrtd=mask_for_mrtd,
        )
        generator = torch.Generator().manual_seed(config.seed)
        width = model.config.embed_dim
        self.image_queue = FeatureQueue(width, config.queue_size, generator=generator)
        self.text_queue = FeatureQueue(width, config.queue_size, generator=generator)
        self.temperature = model.temp

    def prepare(self, batch: PersonBatch, *, epoch: int, progress: float) -> PreparedPersons:  # type: ignore[override]
        """Mask the captions; draw what samples and negatives will be made from."""
        # Both captions are padded alike, so that they are read in one pass.
        length = int(max(batch.text1.lengths.max(), batch.text2.lengths.max()))
        pairs = self.prepare_captions(batch, length, epoch=epoch, progress=progress)
        common = {f.name: getattr(pairs, f.name) for f in dataclasses.fields(pairs)}
        return PreparedPersons(
            **common,
            text2=pad_text(batch.text2, length, self.pad_token_id),
            person_ids=batch.person_ids,
            replaced=batch.replaced,
            negative_uniforms=negative_uniforms(batch.text2, seed=self.config.seed, epoch=epoch),
            num_negatives=2 * int(has_negative(batch.person_ids).sum()),
        )

    @torch.no_grad()
    def before_step(self) -> None:
        """Move the twin and keep the temperature in bounds: once per optimiser step."""
        super().before_step()
        self.temperature.clamp_(self.config.min_temperature, self.config.max_temperature)

    def step(self, prepared: PreparedPersons) -> Step[PreparedPersons]:  # type: ignore[override]
        """One step: the twin teaches, the model learns, the queues move on."""
        with torch.no_grad():
            lesson, teacher = self._teach_persons(prepared)
        compute = partial(self._learn_persons, prepared=prepared, lesson=lesson, teacher=teacher)
        loss_sums, negatives = self.model(compute=compute)
        self.image_queue.enqueue(teacher.image, prepared.person_ids)
        self.text_queue.enqueue(teacher.text, prepared.person_ids)
        decided = replayable(prepared, lesson)
        if negatives is not None:
            decided = dataclasses.replace(
                decided, image_negatives=negatives.images, text_negatives=negatives.texts
            )
        return Step(loss_sums=loss_sums, lesson=lesson, prepared=decided)

    def _teach_persons(self, prepared: PreparedPersons) -> tuple[Lesson, Features]:
        """The twin reads the second view once and all its captions once."""
        twin = self.twin.model
        tokens = twin.encode_image(prepared.image2)
        captions = {"pair": prepared.text2} | self.generator_inputs(prepared)
        blocks = encode_captions(twin, captions)
        pair = blocks.pop("pair")
        features = Features(image=twin.image_feature(tokens), text=twin.text_feature(pair.hidden))
        images = twin.project_images(tokens) if blocks else None
        return self.lesson(self.fuse(twin, blocks, images), prepared), features

    def _learn_persons(
        self,
        model: ImageTextModel,
        *,
        prepared: PreparedPersons,
        lesson: Lesson,
        teacher: Features,
    ) -> tuple[dict[str, torch.Tensor], Negatives | None]:
        """The trained model reads the first view once, all its captions once, and fuses once."""
        tokens = model.encode_image(prepared.image1)
        captions: dict[str, PaddedText] = {"pair": prepared.text2}
        blocks = encode_captions(model, captions | self.learner_inputs(prepared, lesson))
        student = Features(
            image=model.image_feature(tokens), text=model.text_feature(blocks["pair"].hidden)
        )
        contrast = self._contrast(model, student, teacher, prepared)
        negatives = self._draw(contrast, prepared) if "itm" in self.loss_weights else None
        images = model.project_images(tokens)
        paired = self._pair_up(blocks, negatives)
        others = None if negatives is None else negatives.images
        fused = self.fuse(model, paired, images, others)
        sums = self.caption_sums(model, fused, prepared, lesson)
        sums |= self._pair_sums(model, fused, prepared)
        if "itc" in self.loss_weights:
            sums["itc"] = contrast.loss_sum
        return sums, negatives

    def _contrast(
        self, model: ImageTextModel, student: Features, teacher: Features, prepared: PreparedPersons
    ) -> Contrast:
        """The contrastive loss, and the similarities that negatives are drawn from."""
        for queue in (self.image_queue, self.text_queue):
            queue.to(prepared.person_ids.device)
        candidates = Features(
            image=torch.cat((teacher.image, self.image_queue.features)),
            text=torch.cat((teacher.text, self.text_queue.features)),
        )
        return itc_loss(
            student,
            teacher,
            candidates,
            ids=prepared.person_ids,
            candidate_ids=torch.cat((prepared.person_ids, self.image_queue.ids)),
            temperature=model.temp,
            alpha=prepared.alpha,
            directions=RASA_DIRECTIONS if self.config.within_modality else ALBEF_DIRECTIONS,
        )

    def _draw(self, contrast: Contrast, prepared: PreparedPersons) -> Negatives:
        """Hard negatives: those handed in, or drawn by similarity among other persons."""
        if prepared.image_negatives is not None and prepared.text_negatives is not None:
            return Negatives(images=prepared.image_negatives, texts=prepared.text_negatives)
        ids = prepared.person_ids
        same = ids.unsqueeze(1) == ids.unsqueeze(0)
        for_texts, for_images = prepared.negative_uniforms
        return Negatives(
            images=draw_hard_negatives(contrast.text_to_image, same, for_texts),
            texts=draw_hard_negatives(contrast.image_to_text, same, for_images),
        )

    def _pair_up(
        self, blocks: Mapping[str, Block], negatives: Negatives | None
    ) -> dict[str, Block]:
        """All text rows that are fused, the ones that look at other images last."""
        paired = dict(blocks)
        pair = paired.pop("pair")
        if negatives is not None or "prd" in self.loss_weights:
            paired["match"] = pair
        if negatives is not None:
            chosen = negatives.texts
            paired["wrong text"] = Block(hidden=pair.hidden[chosen], mask=pair.mask[chosen])
            paired["wrong image"] = pair
        return paired

    def _pair_sums(
        self,
        model: ImageTextModel,
        fused: Mapping[str, torch.Tensor],
        prepared: PreparedPersons,
    ) -> dict[str, torch.Tensor]:
        """Matching and relations, from the fused class tokens."""
        sums: dict[str, torch.Tensor] = {}
        if "wrong text" in fused:
            parts = [fused[name][:, 0] for name in ("match", "wrong text", "wrong image")]
            judged, num_pairs = torch.cat(parts), len(parts[0])
            possible = has_negative(prepared.person_ids)
            counted = torch.cat((torch.ones_like(possible), possible, possible))
            labels = itm_labels(num_pairs, 2 * num_pairs, judged.device)
            sums["itm"] = itm_loss_sum(model.itm_head(judged), labels, counted)
        if "prd" in self.loss_weights:
            sums["prd"] = prd_loss_sum(model.prd_head(fused["match"][:, 0]), prepared.replaced)
        return sums

    def extra_state(self) -> Mapping[str, torch.Tensor]:
        """The momentum twin as `twin.*`, the queues as `image_queue.*` and `text_queue.*`."""
        state = dict(super().extra_state())
        for name, queue in (("image_queue", self.image_queue), ("text_queue", self.text_queue)):
            state |= {f"{name}.{key}": value for key, value in queue.state_dict().items()}
        return state

    def load_extra_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Restore what `extra_state` gave."""
        super().load_extra_state(state)
        self.image_queue.load_state_dict(part_of(state, "image_queue."))
        self.text_queue.load_state_dict(part_of(state, "text_queue."))
