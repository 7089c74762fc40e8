"""Loss terms of the user's own in an image-text step, and the heads that terms train.

Shapes: B pairs of this process, G of all processes, C candidates, N image tokens, W image width,
L caption length, D text width, E features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import nn

from maskery.core.errors import PluginError, reason_of
from maskery.models.gather import Crowd
from maskery.models.image_text.model import ImageTextModel
from maskery.objectives.itc import Features
from maskery.objectives.terms import CHOICES, HEADS, LossTerm, Term, belongs

# Where terms with parameters stand in the model, so that they are trained, spread over processes
# and checkpointed with it.
ATTRIBUTE = "loss_terms"


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
    # Scalar, the contrast's; a term that trains it names "temp" in its `heads`.
    temperature: torch.Tensor
    alpha: float  # Weight of soft labels at this point of the run, in [0, 1]
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
            text=self.model.text_feature(self.caption),
        )

    @cached_property
    def fused(self) -> torch.Tensor:
        """(B, L, D): the unmasked captions, each having seen its own picture."""
        return self.fuse()

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


def own_sums(terms: Sequence[LossTerm], inputs: TermInputs) -> dict[str, torch.Tensor]:
    """Compute the user's terms, each as a sum that stands for one over the B pairs.

    How many things a term counts is known only after it has run, and the loop divides by counts
    that are known before: so the term's mean is multiplied by B, and divided by the pairs again.

    Raises:
        PluginError: A term fails, or returns something else than a sum and a count.
    """
    return {term.name: _sum_of(term, inputs) for term in terms}


def _sum_of(term: LossTerm, inputs: TermInputs) -> torch.Tensor:
    try:
        with _frozen_heads_refuse(term, inputs.model):
            found = term.compute(inputs)
    # Told already, or the machine's failures and not the term's.
    except (PluginError, torch.OutOfMemoryError, torch.distributed.DistError):
        raise
    except Exception as error:  # the user's code may raise anything
        raise CHOICES.misfit(
            term.choice, f"it fails with {type(error).__name__}: {reason_of(error)}"
        ) from error
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
    return total * (len(inputs.ids) / max(count, 1))


@contextmanager
def _frozen_heads_refuse(term: LossTerm, model: ImageTextModel) -> Iterator[None]:
    """Refuse a term that reads a head which nothing trains: it would learn less, in silence."""

    def refuse(head: str, *_: object) -> None:
        raise PluginError(
            f"--term {term.choice}: it reads '{head}', which no term trains; name it in the "
            f"term's `heads`, beside {', '.join(term.heads) or 'nothing so far'}"
        )

    with ExitStack() as hooks:
        for head in HEADS:
            module: Any = getattr(model, head, None)  # a parameter by itself takes no hook
            weights = list(module.parameters()) if isinstance(module, nn.Module) else []
            if weights and not any(weight.requires_grad for weight in weights):
                hooks.callback(module.register_forward_pre_hook(partial(refuse, head)).remove)
        yield
