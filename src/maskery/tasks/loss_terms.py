"""Losses of whole pairs over the batch of all processes: contrast, matching, and the user's own.

Contrast and hard negatives: ALBEF (Li et al., NeurIPS 2021), sections 3.2 and 3.3; RaSa (Bai et
al., IJCAI 2023), section 3.1.

Shapes: B pairs of this process, G of all processes, C candidates (the G, then the queues), N image
tokens, W image width, L caption length, D text width, E features.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, Self

import torch
from torch import nn

from maskery.core.errors import PluginError, reason_of
from maskery.models.gather import Crowd
from maskery.models.image_text.model import ImageTextModel
from maskery.models.image_text.text_encoder import ImageKeys
from maskery.models.momentum import NOBODY, FeatureQueue
from maskery.objectives import itm
from maskery.objectives.itc import Belief, Contrast, Direction, Features, itc_loss, similarities
from maskery.objectives.terms import CHOICES, HEADS, LossTerm, Term, belongs
from maskery.tasks.caption_steps import Block, PreparedPairs

ATTRIBUTE = "loss_terms"  # of the model: there, terms are trained and checkpointed with it
FITTED = 1024  # so many pairs are enough to fit the two numbers of a `Belief` to


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """The twin's contrastive features."""

    own: Features  # (B, E) each
    crowd: Crowd  # The pairs of all processes
    crowd_ids: torch.Tensor  # (G,) int64
    everyone: Features  # (C, E) each
    ids: torch.Tensor  # (C,) int64
    trust: torch.Tensor  # (B,) in [0, 1]: how far each caption is believed to be its picture's
    belief: Belief | None = None  # None: all captions are believed

    @classmethod
    def of(
        cls,
        twin: ImageTextModel,
        tokens: torch.Tensor,  # (B, N, W)
        pair: Block,
        ids: torch.Tensor,  # (B,) int64
        queues: Mapping[str, FeatureQueue],  # Of images, then of texts, or empty
    ) -> Self:
        """Gather the twin's features of all processes, then those of the queues."""
        text = twin.text_feature(pair.hidden, pair.mask)
        own = Features(image=twin.image_feature(tokens), text=text)
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
        everyone, trust = Features(image=image, text=text), torch.ones(len(ids), device=ids.device)
        return cls(
            own=own, crowd=crowd, crowd_ids=crowd_ids, everyone=everyone, ids=everyones, trust=trust
        )

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
            belief=self.belief,
        )

    def doubted(self) -> Self:
        """Return the same with the belief in captions that fits those of the crowd and queues."""
        known = (self.ids != NOBODY).nonzero().squeeze(1)[: max(FITTED, len(self.crowd_ids))]
        image, text, ids = self.everyone.image[known], self.everyone.text[known], self.ids[known]
        scores = similarities(text, image, text.new_ones(()))
        others = ids[:, None] != ids[None]
        worse = others & (scores < scores.diagonal()[:, None])  # faster than to sort for all
        shares = worse.sum(dim=1) / others.sum(dim=1).clamp(min=1)
        belief = Belief.fitted(shares)
        return replace(self, belief=belief, trust=belief.of(shares[self.crowd.mine]).float())

    def draw(self, contrast: Contrast, prepared: PreparedPairs) -> torch.Tensor:
        """Take the hard negatives handed in, or draw them by similarity among other persons.

        (2, B) int64, indices into the crowd: the image for each text, and the text for each image.
        """
        if prepared.negatives is not None:
            return prepared.negatives
        assert prepared.negative_uniforms is not None
        for_texts, for_images = prepared.negative_uniforms
        same, mine = prepared.ids[:, None] == self.crowd_ids[None], self.crowd.mine
        images = itm.draw_hard_negatives(contrast.text_to_image, same, for_texts, mine)
        texts = itm.draw_hard_negatives(contrast.image_to_text, same, for_images, mine)
        return torch.stack((images, texts))

    def with_negatives(
        self,
        model: ImageTextModel,
        blocks: Mapping[str, Block],
        tokens: torch.Tensor,  # (B, N, W)
        images: Sequence[ImageKeys],  # of these
        negatives: torch.Tensor,  # (2, B), as drawn
    ) -> tuple[dict[str, Block], list[ImageKeys]]:
        """Add wrong texts, then captions that look at wrong images; return those images, too."""
        crowd, (for_texts, for_images) = self.crowd, negatives
        # Everyone's captions as long as the longest of any process, so that they can be exchanged.
        paired = {name: block.lengthened(crowd.longest) for name, block in blocks.items()}
        match = paired["match"]
        hidden = crowd.gather_with_gradients(match.hidden)[for_images]
        paired["wrong text"] = Block(hidden=hidden, mask=crowd.gather(match.mask)[for_images])
        paired["wrong image"] = match
        if crowd.is_alone:
            return paired, [keys.select(for_texts) for keys in images]
        # Drawn from all processes: their gradients find the way back.
        return paired, model.project_images(crowd.gather_with_gradients(tokens)[for_texts])

    def itm_sum(
        self,
        model: ImageTextModel,
        fused: Mapping[str, torch.Tensor],  # (B, L, D) each
        ids: torch.Tensor,  # (B,) int64
    ) -> torch.Tensor:
        """Sum the matching loss over pairs and their hard negatives, from the class tokens."""
        parts = [fused[name][:, 0] for name in ("match", "wrong text", "wrong image")]
        judged = torch.cat(parts)
        possible = itm.has_negative(ids, self.crowd_ids)
        weights = torch.cat((self.trust, possible, possible))
        # 1 for matching pairs, then 0 for both kinds of negatives.
        labels = (torch.arange(len(judged), device=judged.device) < len(parts[0])).long()
        return itm.itm_loss_sum(model.itm_head(judged), labels, weights)


@dataclass(frozen=True, kw_only=True)
class TermInputs:
    """Parts of a step that a loss term may read."""

    model: ImageTextModel  # The trained model
    image_tokens: torch.Tensor  # (B, N, W), of the first view of each picture
    caption: torch.Tensor  # (B, L, D), unmasked captions at the fusion boundary: text alone
    caption_mask: torch.Tensor  # (B, L) bool, False at padding
    ids: torch.Tensor  # (B,) int64, who or what is shown: pairs of one id belong together
    teacher: Features  # (B, E) each, the momentum twin's, of the second view; no gradients
    candidates: Features  # (C, E) each, the twin's of all processes and, with persons, queues
    candidate_ids: torch.Tensor  # (C,) int64
    temperature: torch.Tensor  # The contrast's; a term that trains it has "temp" in its `heads`
    alpha: float  # Weight of soft labels at this point of the run, in [0, 1]
    trust: torch.Tensor  # (B,) in [0, 1]: how far each caption is believed to be its picture's
    # By what they are read for ("mlm", "mrtd"; with persons "match", "wrong text", "wrong image"),
    # (B, L, D): captions that have seen a picture.
    by_use: Mapping[str, torch.Tensor]
    prepared: Any  # The whole prepared batch: masked captions, positions, targets
    fuse: Callable[[], torch.Tensor]  # Computes `fused`
    student: Features | None = None  # `features`, where another term has computed them

    @cached_property
    def features(self) -> Features:
        """Contrastive features of both sides, (B, E) each of unit length, with gradients."""
        return self.student or Features(
            image=self.model.image_feature(self.image_tokens),
            text=self.model.text_feature(self.caption, self.caption_mask),
        )

    @cached_property
    def fused(self) -> torch.Tensor:
        """(B, L, D): the unmasked captions, each having seen its own picture."""
        return self.by_use["match"] if "match" in self.by_use else self.fuse()

    @cached_property
    def crowd(self) -> Crowd:
        """Collects rows of all processes, (B, ...) to (G, ...).

        `crowd.gather_with_gradients(rows)`; ids and masks, without gradients: `crowd.gather(ids)`.
        """
        return Crowd.of(len(self.ids), self.caption.shape[1], self.ids.device)


def attach_terms(model: ImageTextModel, terms: Sequence[LossTerm]) -> None:
    """Put terms that are modules into the model; terms of an earlier task leave it."""
    if hasattr(model, ATTRIBUTE):
        delattr(model, ATTRIBUTE)
    modules = {term.name: term.compute for term in terms if isinstance(term.compute, nn.Module)}
    if modules:
        model.add_module(ATTRIBUTE, nn.ModuleDict(modules))


def without_terms(names: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Leave out the parameters of a user's terms, which a saved model has no place for."""
    return {name: tensor for name, tensor in names.items() if not belongs(name, (ATTRIBUTE,))}


def freeze_unused_heads(model: ImageTextModel, terms: Iterable[Term]) -> None:
    """Train the heads of these terms and no others, which data parallelism would wait for."""
    trained = {head for term in terms for head in term.heads}
    for name, parameter in model.named_parameters():
        if belongs(name, HEADS):
            parameter.requires_grad_(belongs(name, trained))


def own_sum(term: LossTerm, inputs: TermInputs) -> torch.Tensor:
    """Compute a term of the user's, as a sum that stands for one over the B pairs."""
    try:
        with _frozen_heads_refuse(term, inputs.model):
            found = term.compute(inputs)
    # Told already, or the machine's failures and not the term's.
    except (PluginError, torch.OutOfMemoryError, torch.distributed.DistError):
        raise
    except Exception as error:  # the user's code may raise anything
        fails = f"it fails with {type(error).__name__}: {reason_of(error)}"
        raise CHOICES.misfit(term.choice, fails) from error
    if not isinstance(found, tuple) or len(found) != 2:
        raise CHOICES.misfit(term.choice, f"it returned a {type(found).__name__}, not a pair")
    total, count = found
    if not isinstance(total, torch.Tensor) or total.dim() or not total.is_floating_point():
        shape = f" of shape {tuple(total.shape)}" if isinstance(total, torch.Tensor) else ""
        raise CHOICES.misfit(term.choice, f"its loss is a {type(total).__name__}{shape}")
    if isinstance(count, bool) or not isinstance(count, int) or count < 0:
        raise CHOICES.misfit(term.choice, f"its count is {count!r}, not a whole number from 0 on")
    if torch.is_grad_enabled() and not total.requires_grad:
        raise CHOICES.misfit(term.choice, "its loss depends on nothing that is trained")
    # How many things a term counts is known only now, and the loop divides by counts that are known
    # before: so the term's mean is multiplied by B, and divided by the pairs again.
    return total * (len(inputs.ids) / max(count, 1))


@contextmanager
def _frozen_heads_refuse(term: LossTerm, model: ImageTextModel) -> Iterator[None]:
    """Refuse a term that reads a head which nothing trains: it would learn less, in silence."""

    def refuse(head: str, *_: object) -> None:
        fix = f"name it in the term's `heads`, beside {', '.join(term.heads) or 'nothing so far'}"
        raise PluginError(f"--term {term.choice}: it reads '{head}', which no term trains; {fix}")

    with ExitStack() as hooks:
        for head in HEADS:
            module: Any = getattr(model, head, None)  # a parameter by itself takes no hook
            weights = list(module.parameters()) if isinstance(module, nn.Module) else []
            if weights and not any(weight.requires_grad for weight in weights):
                hooks.callback(module.register_forward_pre_hook(partial(refuse, head)).remove)
        yield
