"""Text-based person search: RaSa's five losses (Bai et al., IJCAI 2023).

`text1`, the caption written for the picture, is read by the nine steps of masked and replaced words
(`CaptionSteps`). `text2`, which may be another caption of the same person, is contrasted with the
pictures (ITC, section 3.1), matched against hard negatives (ITM) and tested for being another
picture's caption (PRD, section 3.2). The ten encoder passes of the released step are six here: each
model reads its images once, its captions once and fuses once.

Contrast and hard negatives see the batch of all processes in the order in which it was dealt out,
so a step is the same however many share it.

Shapes: B pairs of this process, G of all processes, L caption length, D text width, E features.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from maskery.core.task import part_of
from maskery.data.person_search.batches import ViewedPersons
from maskery.models.gather import Crowd
from maskery.models.image_text.model import ImageTextModel
from maskery.models.image_text.text_encoder import OtherImages
from maskery.models.momentum import FeatureQueue
from maskery.objectives.itc import ALBEF_DIRECTIONS, RASA_DIRECTIONS, Contrast, Features, itc_loss
from maskery.objectives.itm import (
    draw_hard_negatives,
    has_negative,
    itm_labels,
    itm_loss_sum,
    prd_loss_sum,
)
from maskery.tasks.caption_steps import (
    Block,
    CaptionTargets,
    Step,
    encode_captions,
    lengthened,
    replayable,
)
from maskery.tasks.image_text_batch import (
    PaddedText,
    PreparedPersons,
    negative_uniforms,
    pad_text,
)
from maskery.tasks.image_text_config import PersonSearchConfig
from maskery.tasks.image_text_mlm import CaptionTask
from maskery.tasks.loss_terms import TermInputs, own_sums


@dataclass(frozen=True, kw_only=True)
class Negatives:
    """The hard negatives of a step."""

    images: torch.Tensor  # (B,) int64, the image drawn for each text, an index into the crowd
    texts: torch.Tensor  # (B,) int64, the text drawn for each image, likewise


@dataclass(frozen=True, kw_only=True)
class Teaching:
    """Everything that the twin computes for the trained model."""

    lesson: CaptionTargets  # Soft labels and replacements
    features: Features  # (B, E) each, of this process's pairs
    crowd: Crowd  # The pairs of all processes
    crowd_features: Features  # (G, E) each
    crowd_ids: torch.Tensor  # (G,) int64, the persons of the crowd


class PersonSearch(CaptionTask):
    """The task: contrast, matching, relations, MLM and MRTD on pictures of known persons.

    Attributes:
        image_queue: The twin's features of earlier pictures.
        text_queue: Those of their captions.
    """

    def __init__(self, model: ImageTextModel, config: PersonSearchConfig, **parts: Any):
        super().__init__(model, config, **parts)
        self.config, self.pad_token_id = config, self.captions.pad_token_id
        self.min_temperature = config.min_temperature
        self.max_temperature = config.max_temperature
        generator = torch.Generator().manual_seed(config.seed)
        width = model.config.embed_dim
        self.image_queue = FeatureQueue(width, config.queue_size, generator=generator)
        self.text_queue = FeatureQueue(width, config.queue_size, generator=generator)

    def prepare(self, batch: ViewedPersons, *, epoch: int, progress: float) -> PreparedPersons:
        """Mask the captions; draw what replacements and negatives will be sampled with."""
        # Both captions are padded alike, so that they are read in one pass.
        length = int(max(batch.text1.lengths.max(), batch.text2.lengths.max()))
        pairs = self.captions.prepare(batch, length, epoch=epoch, progress=progress)
        common = {f.name: getattr(pairs, f.name) for f in dataclasses.fields(pairs)}
        return PreparedPersons(
            **common,
            text2=pad_text(batch.text2, length, self.pad_token_id),
            person_ids=batch.person_ids,
            replaced=batch.replaced,
            negative_uniforms=negative_uniforms(batch.text2, seed=self.config.seed, epoch=epoch),
            num_negatives=2 * int(has_negative(batch.person_ids, batch.crowd_ids).sum()),
        )

    def loss_sums(self, prepared: PreparedPersons) -> Mapping[str, torch.Tensor]:
        """Each loss term as a sum over `prepared.counts`; the queues take the batch in."""
        return self.step(prepared).loss_sums

    def step(self, prepared: PreparedPersons) -> Step[PreparedPersons]:
        """One step: the twin teaches, the model learns, the queues move on."""
        with torch.no_grad():
            teaching = self.twin.model(compute=partial(self._teach, prepared=prepared))
        compute = partial(self._learn, prepared=prepared, teaching=teaching)
        loss_sums, negatives = self.model(compute=compute)
        # After the loss, or every pair would be among its own candidates twice.
        self.image_queue.enqueue(teaching.crowd_features.image, teaching.crowd_ids)
        self.text_queue.enqueue(teaching.crowd_features.text, teaching.crowd_ids)
        decided = replayable(prepared, teaching.lesson)
        if negatives is not None:
            decided = dataclasses.replace(
                decided, image_negatives=negatives.images, text_negatives=negatives.texts
            )
        return Step(loss_sums=loss_sums, lesson=teaching.lesson, prepared=decided)

    def _teach(self, twin: ImageTextModel, *, prepared: PreparedPersons) -> Teaching:
        """The twin reads the second view once and all its captions once."""
        tokens = twin.encode_image(prepared.image2)
        captions = {"pair": prepared.text2} | self.captions.generator_inputs(prepared)
        blocks = encode_captions(twin, captions)
        pair = blocks.pop("pair")
        features = Features(image=twin.image_feature(tokens), text=twin.text_feature(pair.hidden))
        images = twin.project_images(tokens) if blocks else None
        fused = self.captions.fuse(twin, blocks, images)
        ids = prepared.person_ids
        crowd = Crowd.of(len(ids), prepared.text2.input_ids.shape[1], ids.device)
        return Teaching(
            lesson=self.captions.lesson(twin, fused, prepared),
            features=features,
            crowd=crowd,
            crowd_features=Features(
                image=crowd.gather(features.image), text=crowd.gather(features.text)
            ),
            crowd_ids=crowd.gather(ids),
        )

    def _learn(
        self,
        model: ImageTextModel,
        *,
        prepared: PreparedPersons,
        teaching: Teaching,
    ) -> tuple[dict[str, torch.Tensor], Negatives | None]:
        """The trained model reads the first view once, all its captions once, and fuses once."""
        tokens, lesson = model.encode_image(prepared.image1), teaching.lesson
        captions: dict[str, PaddedText] = {"pair": prepared.text2}
        blocks = encode_captions(model, captions | self.captions.learner_inputs(prepared, lesson))
        student = Features(
            image=model.image_feature(tokens), text=model.text_feature(blocks["pair"].hidden)
        )
        candidates, candidate_ids = self._candidates(teaching)
        # Computed even without its loss: hard negatives are drawn by its similarities.
        contrast = itc_loss(
            student,
            teaching.features,
            candidates,
            ids=prepared.person_ids,
            candidate_ids=candidate_ids,
            temperature=model.temp,
            alpha=prepared.alpha,
            directions=RASA_DIRECTIONS if self.config.within_modality else ALBEF_DIRECTIONS,
            crowd_size=len(teaching.crowd_ids),
        )
        wanted = "itm" in self.loss_weights
        negatives = self._draw(contrast, prepared, teaching) if wanted else None
        images = model.project_images(tokens)
        paired = self._pair_up(blocks, negatives, teaching.crowd)
        others: OtherImages | None = None if negatives is None else negatives.images
        if negatives is not None and not teaching.crowd.is_alone:
            # Drawn from all processes: their gradients find the way back.
            everyones = teaching.crowd.gather_with_gradients(tokens)
            others = model.project_images(everyones[negatives.images])
        fused = self.captions.fuse(model, paired, images, others)
        length = prepared.text2.input_ids.shape[1]
        # Captions were lengthened for the exchange between processes; losses need it not.
        fused = {name: hidden[:, :length] for name, hidden in fused.items()}
        sums = self.captions.sums(model, fused, prepared, lesson)
        sums |= self._pair_sums(model, fused, prepared, teaching)
        if "itc" in self.loss_weights:
            sums["itc"] = contrast.loss_sum
        if self.own_terms:
            pair = blocks["pair"]
            parts = TermInputs(
                model=model,
                image_tokens=tokens,
                caption=pair.hidden,
                caption_mask=pair.mask,
                ids=prepared.person_ids,
                teacher=teaching.features,
                candidates=candidates,
                candidate_ids=candidate_ids,
                temperature=model.temp,
                alpha=prepared.alpha,
                by_use=fused,
                prepared=prepared,
                fuse=lambda: (  # matching has them already
                    fused["match"]
                    if "match" in fused
                    else self.captions.fuse(model, {"pair": pair}, images)["pair"]
                ),
                student=student if "itc" in self.loss_weights else None,
            )
            sums |= own_sums(self.own_terms, parts)
        return sums, negatives

    def _candidates(self, teaching: Teaching) -> tuple[Features, torch.Tensor]:
        """Features of the twin, (C, E) each, and who they show: all processes, then the queues."""
        crowd, ids = teaching.crowd_features, teaching.crowd_ids
        for queue in (self.image_queue, self.text_queue):
            queue.to(ids.device)
        candidates = Features(
            image=torch.cat((crowd.image, self.image_queue.features)),
            text=torch.cat((crowd.text, self.text_queue.features)),
        )
        return candidates, torch.cat((ids, self.image_queue.ids))

    def _draw(self, contrast: Contrast, prepared: PreparedPersons, teaching: Teaching) -> Negatives:
        """Hard negatives: those handed in, or drawn by similarity among other persons."""
        if prepared.image_negatives is not None and prepared.text_negatives is not None:
            return Negatives(images=prepared.image_negatives, texts=prepared.text_negatives)
        same = prepared.person_ids.unsqueeze(1) == teaching.crowd_ids.unsqueeze(0)
        for_texts, for_images = prepared.negative_uniforms
        mine = teaching.crowd.mine
        return Negatives(
            images=draw_hard_negatives(contrast.text_to_image, same, for_texts, mine),
            texts=draw_hard_negatives(contrast.image_to_text, same, for_images, mine),
        )

    def _pair_up(
        self, blocks: Mapping[str, Block], negatives: Negatives | None, crowd: Crowd
    ) -> dict[str, Block]:
        """All text rows that are fused, the ones that look at other images last."""
        # Everyone's captions as long as the longest of any process, so that they can be exchanged.
        paired = {name: lengthened(block, crowd.longest) for name, block in blocks.items()}
        pair = paired.pop("pair")
        if negatives is not None or "prd" in self.loss_weights:
            paired["match"] = pair
        if negatives is not None:
            paired["wrong text"] = Block(
                hidden=crowd.gather_with_gradients(pair.hidden)[negatives.texts],
                mask=crowd.gather(pair.mask)[negatives.texts],
            )
            paired["wrong image"] = pair
        return paired

    def _pair_sums(
        self,
        model: ImageTextModel,
        fused: Mapping[str, torch.Tensor],
        prepared: PreparedPersons,
        teaching: Teaching,
    ) -> dict[str, torch.Tensor]:
        """Matching and relations, from the fused class tokens."""
        sums: dict[str, torch.Tensor] = {}
        if "wrong text" in fused:
            parts = [fused[name][:, 0] for name in ("match", "wrong text", "wrong image")]
            judged, num_pairs = torch.cat(parts), len(parts[0])
            possible = has_negative(prepared.person_ids, teaching.crowd_ids)
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
