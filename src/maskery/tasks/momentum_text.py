"""Masked language modelling of text with a momentum twin: soft labels and replaced tokens.

RaSa's sensitivity-aware learning (Bai et al., IJCAI 2023, section 3.3) without pictures: the steps
of `ImageTextMLM`, on text of any layout. The twin reads the masked text and, for replaced token
detection (MRTD), the text masked anew, in one pass; so does the model with the masked text and the
text in which the twin's samples stand. The vocabulary projection runs on masked tokens alone.

Shapes: S places of one copy of the text, padding included where it is padded; M masked tokens, N
sampled tokens, P judged tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import nn

from maskery.core.batch import MaskedTokens, TokenBatch, Vocabulary
from maskery.core.errors import ConfigError
from maskery.core.random import token_uniforms
from maskery.core.task import moved, part_of
from maskery.masking.masker import Masker
from maskery.models.layout import EncoderInputs
from maskery.models.masked_lm import MaskedLanguageModel
from maskery.models.momentum import MomentumTwin
from maskery.objectives.mlm import mlm_loss_sum, soft_mlm_loss_sum
from maskery.objectives.mrtd import mrtd_loss_sum, mrtd_mask_modeling
from maskery.tasks.text_mlm import PreparedText, TextParts
from maskery.tasks.text_mlm_config import DEFAULT_MOMENTUM, TextMLMConfig

HEAD = "mrtd_head"


@dataclass(frozen=True, kw_only=True)
class ReplacementPlan:
    """The words that the twin will fill anew, and those that the model will judge.

    Attributes:
        input_ids: (S,) int64, the original text.
        real: (S,) bool, False at padding.
        sampled_at: (N,) int64, where the twin's samples go, as indices into the S.
        uniforms: (N,) float32, the randomness of the draws.
        judged_at: (P,) int64, where the model says whether a token was replaced.
        sampled: (N,) int64, the draws themselves, where a step is replayed.
    """

    input_ids: torch.Tensor
    real: torch.Tensor
    sampled_at: torch.Tensor
    uniforms: torch.Tensor
    judged_at: torch.Tensor
    sampled: torch.Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class PreparedMomentumText(PreparedText):
    """A masked batch with every decision taken that does not need the model.

    Attributes:
        inputs: The model's text: the masked text and, with MRTD, the original after it, whose
            samples are filled in later. Its rows are the M masked and the P judged tokens.
        teacher: The twin's text: the masked text where there are soft labels, and with MRTD the
            text masked anew. Its rows are the masked tokens of both.
        plan: The replacements of MRTD; None without it.
        alpha: The weight of the soft labels at this point of the run.
    """

    teacher: EncoderInputs
    plan: ReplacementPlan | None
    alpha: float

    def to(self, device: torch.device) -> Self:
        """Copy to `device`."""
        plan = None if self.plan is None else moved(self.plan, device)
        return replace(super().to(device), teacher=self.teacher.to(device), plan=plan)

    def pin_memory(self) -> Self:
        """Copy to page-locked memory; what MRTD needs stays, being small."""
        return replace(super().pin_memory(), teacher=self.teacher.pin_memory())


@dataclass(frozen=True, kw_only=True)
class TwinTargets:
    """The momentum twin's part of a step: soft labels, and the text with its replacements.

    Attributes:
        soft_labels: (M, V), its probabilities at the masked tokens; None where alpha is 0.
        input_ids: (S,) int64, the text with its samples; None without MRTD.
        labels: (P,) int64: 1 where the token is not the original, 0 where it is; likewise.
    """

    soft_labels: torch.Tensor | None
    input_ids: torch.Tensor | None
    labels: torch.Tensor | None


@dataclass(frozen=True, kw_only=True)
class TextStep:
    """The losses of a step, and everything that is needed to replay it.

    Attributes:
        loss_sums: By loss term, its sum over the prepared batch's `counts`.
        prepared: The batch with every random decision filled in: the same step again.
    """

    loss_sums: Mapping[str, torch.Tensor]
    prepared: PreparedMomentumText


class MomentumTextMLM:
    """The task: MLM with soft labels, and MRTD, on text alone.

    Attributes:
        model: The trained model, or what the loop wrapped it in; with MRTD it has the head
            `mrtd_head` (D to 2), original against replaced.
        twin: Its momentum twin.
        loss_weights: By loss term, its weight in the total.
    """

    def __init__(
        self,
        model: MaskedLanguageModel,
        config: TextMLMConfig,
        *,
        vocabulary: Vocabulary,
        masker: Masker,
        mrtd_masker: Masker,
        pin_memory: bool = False,
    ) -> None:
        """Make the twin, and the head that MRTD needs.

        The seed of `masker` also draws the weights of that head. `mrtd_masker` masks the text anew
        for the twin to fill; its seed, which also draws the samples, must be another one.
        `pin_memory` prepares batches in page-locked memory, for a GPU.
        """
        if config.detects:
            model.add_head(HEAD, new_head(model.hf.config.hidden_size, seed=masker.seed))
        self.config, self.vocabulary = config, vocabulary
        self.masker, self.mrtd_masker = masker, mrtd_masker
        momentum = DEFAULT_MOMENTUM if config.momentum is None else config.momentum
        self.twin = MomentumTwin(model, momentum, train_mode=config.twin_train_mode)
        self.loss_weights: Mapping[str, float] = config.weights
        self._lay_out, self.pin_memory = model.lay_out, pin_memory
        self.model: nn.Module = model

    def prepare(self, batch: TokenBatch, *, epoch: int, progress: float) -> PreparedMomentumText:
        """Mask a batch, once for each use, and lay it out for both models."""
        masked = self.masker.mask(batch, epoch=epoch, progress=progress)
        copies, for_twin = [(masked.input_ids, masked.positions)], []
        if self.config.alpha > 0:
            for_twin = copies.copy()
        anew = None
        if "mrtd" in self.loss_weights:
            anew = self.mrtd_masker.mask(batch, epoch=epoch, progress=progress)
            judged = np.flatnonzero(~self.vocabulary.protected[batch.input_ids])
            copies.append((batch.input_ids, judged))
            for_twin.append((anew.input_ids, anew.positions))
        inputs = self._lay_out_copies(batch, copies)
        teacher = self._lay_out_copies(batch, for_twin)
        num_masked = len(masked.positions)
        plan = None if anew is None else self._plan(inputs, teacher, anew, num_masked, epoch)
        prepared = PreparedMomentumText(
            inputs=inputs,
            targets=torch.from_numpy(masked.targets),
            counts={"mlm": num_masked} | ({} if plan is None else {"mrtd": len(plan.judged_at)}),
            num_tokens=batch.num_tokens,
            teacher=teacher,
            plan=plan,
            alpha=self.config.alpha_at(progress),
        )
        return prepared.pin_memory() if self.pin_memory else prepared

    def _lay_out_copies(
        self,
        batch: TokenBatch,
        copies: Sequence[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]],
    ) -> EncoderInputs:
        """Lay a batch out several times, one copy after another, each with ids (T,) and rows."""
        starts = np.arange(len(copies))[:, None] * batch.num_tokens
        ends = (starts + batch.boundaries[1:]).ravel()
        whole = TokenBatch(
            input_ids=np.tile(batch.input_ids, len(copies)),
            boundaries=np.concatenate((batch.boundaries[:1], ends)),
            example_ids=np.tile(batch.example_ids, len(copies)),
            starts=np.tile(batch.starts, len(copies)),
            word_starts=np.tile(batch.word_starts, len(copies)),
        )
        rows = [start + rows for start, (_, rows) in zip(starts, copies, strict=True)]
        positions = np.concatenate(rows)
        ids = np.concatenate([ids for ids, _ in copies])
        return self._lay_out(
            MaskedTokens(
                batch=whole, input_ids=ids, positions=positions, targets=whole.input_ids[positions]
            )
        )

    def _plan(
        self,
        inputs: EncoderInputs,
        teacher: EncoderInputs,
        anew: MaskedTokens,
        num_masked: int,
        epoch: int,
    ) -> ReplacementPlan:
        size = inputs.input_ids.numel() // 2
        mask = inputs.arguments.get("attention_mask")
        real = torch.ones(size, dtype=torch.bool) if mask is None else mask.flatten()[size:].bool()
        num_sampled, seed = len(anew.positions), self.mrtd_masker.seed
        sampled_rows = teacher.rows[len(teacher.rows) - num_sampled :]
        return ReplacementPlan(
            input_ids=inputs.input_ids.flatten()[size:],
            real=real,
            sampled_at=sampled_rows - (teacher.input_ids.numel() - size),
            uniforms=token_uniforms(anew.batch, anew.positions, seed=seed, epoch=epoch),
            judged_at=inputs.rows[num_masked:] - size,
        )

    @torch.no_grad()
    def before_step(self) -> None:
        """Move the twin: once per optimiser step, before its first forward pass."""
        self.twin.update()

    def loss_sums(self, prepared: PreparedMomentumText) -> Mapping[str, torch.Tensor]:
        """Return each loss term as a sum over `prepared.counts`."""
        return self.step(prepared).loss_sums

    def step(self, prepared: PreparedMomentumText) -> TextStep:
        """The twin teaches, the model learns."""
        taught = self._teach(prepared)
        if taught.labels is None:
            sums = {"mlm": self._mlm_sum(self.model(prepared.inputs), prepared, taught)}
        else:
            logits, judgements = self._read(prepared, taught)
            sums = {
                "mlm": self._mlm_sum(logits, prepared, taught),
                "mrtd": mrtd_loss_sum(judgements, taught.labels),
            }
        return TextStep(loss_sums=sums, prepared=_replayable(prepared, taught))

    @torch.no_grad()
    def judge(self, prepared: PreparedMomentumText) -> tuple[torch.Tensor, torch.Tensor]:
        """Ask the model, in evaluation mode, which words the twin replaced.

        Returns:
            (P,) float32, the log-odds of being replaced, and (P,) int64, 1 where it was.

        Raises:
            ConfigError: The task has no replaced token detection.
        """
        taught = self._teach(prepared)
        if taught.labels is None:
            raise ConfigError("there is no detection to judge; train with --objective mlm+mrtd")
        scores = self._read(prepared, taught)[1].float()
        return scores[:, 1] - scores[:, 0], taught.labels

    @torch.no_grad()
    def _teach(self, prepared: PreparedMomentumText) -> TwinTargets:
        """Let the twin give soft labels, and sample its replacements."""
        probabilities = F.softmax(self.twin.model(prepared.teacher).float(), dim=-1)
        plan, num_soft = prepared.plan, len(prepared.targets)
        if plan is None:
            return TwinTargets(soft_labels=probabilities, input_ids=None, labels=None)
        num_soft = len(probabilities) - len(plan.sampled_at)
        replaced, labels = mrtd_mask_modeling(
            prepared.teacher.input_ids.flatten()[-len(plan.input_ids) :],
            plan.input_ids,
            plan.real,
            probabilities[num_soft:],
            positions=plan.sampled_at,
            uniforms=plan.uniforms,
            sampled=plan.sampled,
            special_ids=self.vocabulary.special_ids,
        )
        soft_labels = probabilities[:num_soft] if self.config.alpha > 0 else None
        return TwinTargets(
            soft_labels=soft_labels, input_ids=replaced, labels=labels[plan.judged_at]
        )

    def _read(
        self, prepared: PreparedMomentumText, taught: TwinTargets
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Read the masked text and the text with replacements in one pass.

        Returns:
            (M, V), logits at the masked tokens, and (P, 2), original against replaced.
        """
        assert taught.input_ids is not None
        inputs = prepared.inputs
        flat = inputs.input_ids.flatten()
        ids = torch.cat((flat[: -len(taught.input_ids)], taught.input_ids))
        inputs = replace(inputs, input_ids=ids.view_as(inputs.input_ids))
        num_masked = len(prepared.targets)

        def read(model: MaskedLanguageModel, rows: torch.Tensor) -> Any:
            return model.logits(rows[:num_masked]), model.heads[HEAD](rows[num_masked:])

        logits, judgements = self.model(inputs, read=read)
        return logits, judgements

    def _mlm_sum(
        self, logits: torch.Tensor, prepared: PreparedMomentumText, taught: TwinTargets
    ) -> torch.Tensor:
        if taught.soft_labels is None:
            return mlm_loss_sum(logits, prepared.targets)
        return soft_mlm_loss_sum(logits, prepared.targets, taught.soft_labels, prepared.alpha)

    def extra_state(self) -> Mapping[str, torch.Tensor]:
        """Return the momentum twin, as `twin.*`."""
        return {f"twin.{name}": tensor for name, tensor in self.twin.state_dict().items()}

    def load_extra_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Restore what `extra_state` gave."""
        self.twin.load_state_dict(part_of(state, "twin."))


def _replayable(prepared: PreparedMomentumText, taught: TwinTargets) -> PreparedMomentumText:
    """Return the batch with the sampled replacements, so that the step can be repeated."""
    plan = prepared.plan
    if plan is None or taught.input_ids is None:
        return prepared
    return replace(prepared, plan=replace(plan, sampled=taught.input_ids[plan.sampled_at]))


def momentum_text_mlm(parts: TextParts) -> MomentumTextMLM:
    """Make the task of `--objective mlm+mrtd`, or of mlm with a twin, as the settings say."""
    if parts.compile_backend is not None:
        raise ConfigError(
            "--compile and a momentum twin do not go together: the text that the model reads "
            "depends on the twin's samples; leave out --compile"
        )
    return MomentumTextMLM(
        parts.model,
        parts.settings,
        vocabulary=Vocabulary.of(parts.tokenizer),
        masker=parts.masker,
        mrtd_masker=parts.masker.for_generator(parts.settings.mrtd_mask_rate),
        pin_memory=parts.pin_memory,
    )


def new_head(width: int, *, seed: int) -> nn.Linear:
    """Make a head that judges rows of `width` as original or replaced (RaSa, section 3.3)."""
    head = nn.Linear(width, 2)
    weights = torch.randn(head.weight.shape, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        head.weight.copy_(weights * width**-0.5)
        head.bias.zero_()
    return head
