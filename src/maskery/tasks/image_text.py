"""The image-text task: masked words found with the picture's help, and ALBEF's and RaSa's losses.

Masked language modelling with a momentum twin's soft labels and momentum-based replaced token
detection (RaSa, Bai et al., IJCAI 2023, section 3.3), on ALBEF (Li et al., NeurIPS 2021). With
`ImageTextMLMConfig` images may also be contrasted with the captions of the batch (ALBEF, section
3.2, without its queues). `PersonSearchConfig` has all five of RaSa's losses: `text1`, the caption
written for the picture, is masked; `text2`, which may be another caption of the same person, is
contrasted with the pictures (ITC, section 3.1), matched against hard negatives (ITM) and tested for
being another picture's caption (PRD, section 3.2).

The nine steps of masked and replaced words are in `caption_steps.py`, what is done with whole pairs
in `loss_terms.py`. The ten encoder passes of the released step are six here: each model reads its
images once, its captions once and fuses once. Any number of processes takes the same step.

Shapes: B pairs of this process, P judged tokens.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import nn

from maskery.core.errors import ConfigError
from maskery.core.random import Stream, uniforms
from maskery.core.registry import split_weight
from maskery.core.task import part_of
from maskery.masking.masker import Masker
from maskery.models.image_text.model import ImageTextModel
from maskery.models.momentum import FeatureQueue, MomentumTwin
from maskery.objectives.itc import ALBEF_DIRECTIONS, RASA_DIRECTIONS, Features
from maskery.objectives.itm import has_negative, prd_loss_sum
from maskery.objectives.mrtd import TwinTargets
from maskery.objectives.terms import BATCH_TERMS, TERMS, Term, load_terms, trained_terms
from maskery.tasks import caption_steps, loss_terms
from maskery.tasks.caption_steps import CaptionSteps, PaddedText, PreparedPairs
from maskery.tasks.image_text_config import ImageTextMLMConfig, PersonSearchConfig
from maskery.tasks.loss_terms import Candidates, TermInputs

if TYPE_CHECKING:  # a step of batches of one's own does without pyarrow
    from maskery.data.pairs.batches import ViewedPairs
    from maskery.data.person_search.batches import ViewedPersons


@dataclass(frozen=True, kw_only=True)
class Step:
    """The results of one step."""

    loss_sums: Mapping[str, torch.Tensor]  # By loss term, its sum over the batch's `counts`
    lesson: TwinTargets  # The twin's soft labels and replacements
    prepared: PreparedPairs  # The batch with every random decision filled in: the same step again


class ImageTextTask:
    """The task of pairs and of person search; the terms of its settings decide what is computed."""

    def __init__(
        self,
        model: ImageTextModel,
        config: ImageTextMLMConfig,
        *,
        pad_token_id: int,
        masker: Masker,
        mrtd_masker: Masker,  # masks captions again for the twin to fill, with another seed
        # Functions, modules or `LossTerm`s of the user's own, beside those that `config` names; one
        # that breaks its contract is a PluginError.
        terms: Sequence[Any] = (),
        pairs: Any = None,  # to train on: terms that know persons are made from them
    ) -> None:
        """Make the twin, attach the user's loss terms, and freeze heads that no term reads."""
        self.config, self.pad_token_id = config, pad_token_id
        # New weights of terms follow from the seed, without moving the caller's random numbers.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.own_terms = load_terms(config.term, terms, model, pairs)
        self.captions = CaptionSteps(
            config=config, pad_token_id=pad_token_id, masker=masker, mrtd_masker=mrtd_masker
        )
        # Towers always read padding, and so does the released soft-label loss over the sequence.
        pads = model.config.has_towers or config.distill_over == "sequence"
        model.text_encoder.computes_padding = pads
        loss_terms.attach_terms(model, ())  # those of an earlier task leave; the twin reads none
        self.twin = MomentumTwin(model, config.momentum, train_mode=config.twin_train_mode)
        loss_terms.attach_terms(model, self.own_terms)
        own_weights = {term.name: term.weight for term in self.own_terms}
        self.loss_weights: Mapping[str, float] = {**config.weights, **own_weights}
        loss_terms.freeze_unused_heads(model, self.terms)
        self.temperature, self.model = model.temp, cast(nn.Module, model)
        self.directions = ALBEF_DIRECTIONS
        # The twin's features of earlier pictures, and those of their captions; with persons.
        self.queues = dict[str, FeatureQueue]()
        self.temperature_range = (0.001, 0.5)  # ALBEF's bounds; RaSa's release has none
        if isinstance(config, PersonSearchConfig):
            if config.within_modality:
                self.directions = RASA_DIRECTIONS
            self.temperature_range = (config.min_temperature, config.max_temperature)
            generator = torch.Generator().manual_seed(config.seed)
            for name in ("image_queue", "text_queue"):
                width = model.config.embed_dim
                self.queues[name] = FeatureQueue(width, config.queue_size, generator=generator)

    @property
    def terms(self) -> list[Term]:
        """The terms that are on, the user's own last."""
        return [TERMS[name] for name in self.loss_weights if name in TERMS] + [*self.own_terms]

    def described_objects(self) -> list[str]:
        """Return the terms that were given as objects, for the identity of a run."""
        named = {str(split_weight(choice)[0]) for choice in self.config.term}
        return [f"{t.name}={t.weight:g}" for t in self.own_terms if t.choice not in named]

    @property
    def trained(self) -> tuple[str, ...]:
        """The built-in terms whose heads are trained: what a model of this task is good for."""
        return trained_terms(self.terms)

    def prepare(self, batch: "ViewedPairs", *, epoch: int, progress: float) -> PreparedPairs:
        """Mask the captions; draw what replacements and negatives will be sampled with."""
        persons = cast("ViewedPersons", batch) if self.queues else None
        text1, text2 = batch.text1, batch.text1 if persons is None else persons.text2
        # Both captions are padded alike, so that they are read in one pass.
        length = int(max(text1.lengths.max(), text2.lengths.max()))
        mlm, mrtd = self.captions.prepare(text1, length, epoch=epoch, progress=progress)
        padded = caption_steps.pad_text(text1, length, self.pad_token_id)
        prepared = PreparedPairs(
            image1=batch.image1,
            image2=batch.image2,
            # Batches of one's own need not have it, where their pictures are normalised.
            normalisation=getattr(batch, "normalisation", None),
            text1=padded,
            text2=padded,
            ids=torch.from_numpy(text1.example_ids.view("int64")),
            mlm=mlm,
            mrtd=mrtd,
            alpha=self.config.alpha_at(progress),
            num_tokens=text1.num_tokens,
            terms=frozenset(self.loss_weights),
        )
        if persons is None:
            return prepared
        # The image negative of each pair, and its text negative.
        ids, ones = text2.example_ids, np.ones(len(text2.example_ids), np.int64)
        seed = self.config.seed
        drawn = [uniforms(seed, Stream.NEGATIVE, epoch, ids, which * ones) for which in (0, 1)]
        return replace(
            prepared,
            text2=caption_steps.pad_text(text2, length, self.pad_token_id),
            ids=persons.person_ids,
            replaced=persons.replaced,
            negative_uniforms=torch.from_numpy(np.stack(drawn)),
            num_negatives=2 * int(has_negative(persons.person_ids, persons.crowd_ids).sum()),
        )

    @torch.no_grad()
    def before_step(self) -> None:
        """Move the twin and keep the temperature in bounds: once per optimiser step."""
        self.twin.update()
        self.temperature.clamp_(*self.temperature_range)

    def loss_sums(self, prepared: PreparedPairs) -> Mapping[str, torch.Tensor]:
        """Return each loss term as a sum over `prepared.counts`; queues take the batch in."""
        return self.step(prepared).loss_sums

    def step(self, prepared: PreparedPairs) -> Step:
        """Let the twin teach and the model learn; then the queues move on."""
        with torch.no_grad():
            lesson, candidates = self.twin.model(compute=lambda twin: self._teach(twin, prepared))
        loss_sums, negatives = self.model(
            compute=lambda model: self._learn(model, prepared, lesson, candidates)
        )
        # After the loss, or every pair would be among its own candidates twice.
        if candidates is not None:
            candidates.enqueue(self.queues)
        plan = prepared.mrtd
        if plan is not None and lesson.replacements is not None:
            plan = replace(plan, sampled=lesson.replacements.sampled)
        decided = replace(prepared, mrtd=plan, negatives=negatives)
        return Step(loss_sums=loss_sums, lesson=lesson, prepared=decided)

    @torch.no_grad()
    def judge(self, prepared: PreparedPairs) -> tuple[torch.Tensor, torch.Tensor]:
        """Judge in evaluation mode which words were replaced: (P,) log-odds, and (P,) 1 if so."""
        lesson, _ = self.twin.model(compute=lambda twin: self._teach(twin, prepared))
        if lesson.replacements is None or prepared.mrtd is None:
            raise ConfigError("mrtd_weight is 0, so there is no detection to judge; train with it")
        text, places = self.captions.inputs(prepared, lesson)["mrtd"], prepared.mrtd.judged_at

        def read(model: ImageTextModel) -> torch.Tensor:
            blocks = caption_steps.encode_captions(model, {"mrtd": text})
            images = model.project_images(model.encode_image(prepared.image1))
            fused = self.captions.fuse(model, blocks, images)["mrtd"]
            judged: torch.Tensor = model.mrtd_head(fused.flatten(0, 1)[places])
            return judged.float()

        logits = self.model(compute=read)
        labels = lesson.replacements.labels.flatten()[places]
        return logits[:, 1] - logits[:, 0], labels

    def _pair_text(self, prepared: PreparedPairs, but: Iterable[str] = ()) -> dict[str, PaddedText]:
        """Return the unmasked captions, where a term that is not in `but` reads them."""
        wanted = self.loss_weights.keys() - {"mlm", "mrtd", *but}
        return {"pair": prepared.text2} if wanted else {}

    def _teach(
        self, twin: ImageTextModel, prepared: PreparedPairs
    ) -> tuple[TwinTargets, Candidates | None]:
        """Steps 3, 4, 6 and 7, and the twin's contrastive features, all of the second view."""
        # Losses of the batch compare the model's own features, unless the twin doubts pairs.
        alone = () if self.config.doubt else BATCH_TERMS
        inputs = self._pair_text(prepared, alone) | self.captions.inputs(prepared)
        if not inputs:  # nobody asks the twin
            return TwinTargets(), None
        tokens = twin.encode_image(prepared.image2)
        blocks = caption_steps.encode_captions(twin, inputs)
        pair = blocks.pop("pair", None)
        candidates = None
        if pair is not None:
            candidates = Candidates.of(twin, tokens, pair, prepared.ids, self.queues)
            candidates = candidates.doubted() if self.config.doubt else candidates
        images = twin.project_images(tokens) if blocks else None
        fused = self.captions.fuse(twin, blocks, images)
        return self.captions.lesson(twin, fused, prepared), candidates

    def _learn(
        self,
        model: ImageTextModel,
        prepared: PreparedPairs,
        lesson: TwinTargets,
        candidates: Candidates | None,
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor | None]:
        """Steps 3, 5, 8 and 9, and all other terms: one pass of images, captions and fusion."""
        tokens = model.encode_image(prepared.image1)
        inputs = self._pair_text(prepared) | self.captions.inputs(prepared, lesson)
        blocks = caption_steps.encode_captions(model, inputs)
        pair = blocks.pop("pair", None)
        if pair is None:
            fused = self.captions.fuse(model, blocks, model.project_images(tokens))
            return self.captions.sums(model, fused, prepared, lesson), None
        # No term that is on reads what is missing where the twin was not asked.
        trust = torch.ones(len(prepared.ids), device=tokens.device)
        taught: Any = candidates or SimpleNamespace(own=None, everyone=None, ids=None, trust=trust)
        on = self.loss_weights.keys()
        student = contrast = negatives = others = None
        if on & {"itc", "itm"}:
            image = model.image_feature(tokens)
            student = Features(image=image, text=model.text_feature(pair.hidden, pair.mask))
            contrast = taught.contrast(model, student, prepared, self.directions)
        if contrast is not None and "itm" in on:
            negatives = taught.draw(contrast, prepared)
        if on & {"itm", "prd"}:
            blocks["match"] = pair
        images = model.project_images(tokens)
        if negatives is not None:
            blocks, others = taught.with_negatives(model, blocks, tokens, images, negatives)
        fused = self.captions.fuse(model, blocks, images, others)
        # Matching lengthens captions for the exchange between processes; losses need it not.
        fused = {name: hidden[:, : pair.mask.shape[1]] for name, hidden in fused.items()}
        sums = self.captions.sums(model, fused, prepared, lesson)
        if negatives is not None:
            sums["itm"] = taught.itm_sum(model, fused, prepared.ids)
        if "prd" in on and prepared.replaced is not None:
            sums["prd"] = prd_loss_sum(model.prd_head(fused["match"][:, 0]), prepared.replaced)
        if contrast is not None and "itc" in on:
            sums["itc"] = contrast.loss_sum
        parts = TermInputs(
            model=model,
            image_tokens=tokens,
            caption=pair.hidden,
            caption_mask=pair.mask,
            ids=prepared.ids,
            teacher=taught.own,
            candidates=taught.everyone,
            candidate_ids=taught.ids,
            temperature=model.temp,
            alpha=prepared.alpha,
            trust=taught.trust,
            by_use=fused,
            prepared=prepared,
            fuse=lambda: self.captions.fuse(model, {"pair": pair}, images)["pair"],
            # Heads that no term trains must be seen to be read: see `_frozen_heads_refuse`.
            student=student if "itc" in on else None,
        )
        sums |= {term.name: loss_terms.own_sum(term, parts) for term in self.own_terms}
        return sums, negatives

    def extra_state(self) -> Mapping[str, torch.Tensor]:
        """Return the twin as `twin.*`, and queues as `image_queue.*` and `text_queue.*`."""
        state = {f"twin.{name}": tensor for name, tensor in self.twin.state_dict().items()}
        for name, queue in self.queues.items():
            state |= {f"{name}.{key}": value for key, value in queue.state_dict().items()}
        return state

    def load_extra_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Restore what `extra_state` gave."""
        self.twin.load_state_dict(part_of(state, "twin."))
        for name, queue in self.queues.items():
            queue.load_state_dict(part_of(state, f"{name}."))
