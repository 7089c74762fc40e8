"""Masked language modelling of text with a momentum twin: soft labels and replaced tokens.

RaSa's sensitivity-aware learning (Bai et al., IJCAI 2023, section 3.3) without pictures: the steps
of `ImageTextTask`, on text of any layout. The twin reads the masked text and, for replaced token
detection (MRTD), the text masked anew, in one pass; so does the model with the masked text and the
text in which the twin's samples stand. The vocabulary projection runs on masked tokens alone.

Shapes: S places of one copy of the text, padding included where it is padded; M masked tokens, N
sampled tokens, P judged tokens, V vocabulary.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from maskery.core.batch import MaskedTokens, TokenBatch
from maskery.core.errors import ConfigError
from maskery.core.random import token_uniforms
from maskery.core.task import part_of
from maskery.masking.masker import Masker
from maskery.models.layout import EncoderInputs
from maskery.models.masked_lm import MaskedLanguageModel
from maskery.models.momentum import MomentumTwin
from maskery.objectives import mrtd
from maskery.objectives.mlm import soft_mlm_loss_sum
from maskery.tasks.text_mlm import PreparedText, TextMLM, TextParts
from maskery.tasks.text_mlm_config import DEFAULT_MOMENTUM, TextMLMConfig

HEAD = "mrtd_head"


@dataclass(frozen=True, kw_only=True)
class PreparedMomentumText(PreparedText):
    """A masked batch with every decision taken that does not need the model.

    `inputs` is the model's text: the masked text and, with MRTD, the original after it, in which
    the twin's samples will stand. Its rows are the M masked and the P judged tokens.
    """

    # The twin's text: masked for soft labels, and with MRTD anew. Its rows are the masked tokens.
    teacher: EncoderInputs
    plan: mrtd.ReplacementPlan | None  # Of MRTD, as indices into the S; None without it
    alpha: float  # The weight of the soft labels at this point of the run

    def pin_memory(self) -> Self:
        """Copy to page-locked memory; what MRTD needs stays, being small."""
        return replace(super().pin_memory(), teacher=self.teacher.pin_memory())


class MomentumTextMLM(TextMLM):
    """The task: MLM with soft labels, and MRTD, on text alone."""

    def __init__(
        self,
        model: MaskedLanguageModel,
        config: TextMLMConfig,
        *,
        masker: Masker,  # its seed draws the weights of the head
        mrtd_masker: Masker,  # masks the text anew for the twin to fill; another seed, for samples
        pin_memory: bool = False,
    ) -> None:
        """Make the twin, and the head that MRTD needs."""
        super().__init__(model, masker, pin_memory=pin_memory)
        if config.detects:
            # Original against replaced (RaSa, section 3.3).
            width = model.hf.config.get_text_config().hidden_size
            head, generator = nn.Linear(width, 2), torch.Generator()
            drawn = torch.randn(head.weight.shape, generator=generator.manual_seed(masker.seed))
            head.load_state_dict({"weight": drawn * width**-0.5, "bias": torch.zeros(2)})
            model.add_head(HEAD, head)
        self.config, self.mrtd_masker, self.loss_weights = config, mrtd_masker, config.weights
        momentum = DEFAULT_MOMENTUM if config.momentum is None else config.momentum
        self.twin = MomentumTwin(model, momentum, train_mode=config.twin_train_mode)

    @classmethod
    def of(cls, parts: TextParts) -> Self:
        """Make the task of `--objective mlm+mrtd`, or of mlm with a twin, as the settings say."""
        if parts.compile_backend is not None:
            reason = "the text that the model reads depends on the twin's samples"
            problem = f"--compile and a momentum twin do not go together: {reason}"
            raise ConfigError(f"{problem}; leave out --compile")
        model, masker, settings = parts.model, parts.masker, parts.settings
        anew = masker.for_generator(settings.mrtd_mask_rate)
        return cls(model, settings, masker=masker, mrtd_masker=anew, pin_memory=parts.pin_memory)

    def prepare(self, batch: TokenBatch, *, epoch: int, progress: float) -> PreparedMomentumText:
        """Mask a batch, once for each use, and lay it out for both models."""
        masked = self.masker.mask(batch, epoch=epoch, progress=progress)
        copies, for_twin = [masked], [masked] if self.config.alpha > 0 else []
        counts, plan = {"mlm": len(masked.positions)}, None
        if "mrtd" in self.loss_weights:
            anew = self.mrtd_masker.mask(batch, epoch=epoch, progress=progress)
            judged = np.flatnonzero(~self.masker.vocabulary.protected[batch.input_ids])
            original = MaskedTokens.unmasked(batch, judged)
            copies.append(original)
            for_twin.append(anew)
            counts["mrtd"] = len(judged)
            drawn = token_uniforms(batch, anew.positions, seed=self.mrtd_masker.seed, epoch=epoch)
            sampled_at, judged_at = self.lay_out(anew).rows, self.lay_out(original).rows
            plan = mrtd.ReplacementPlan(sampled_at=sampled_at, uniforms=drawn, judged_at=judged_at)
        prepared = PreparedMomentumText(
            inputs=self._lay_out_copies(copies),
            targets=torch.from_numpy(masked.targets),
            counts=counts,
            num_tokens=batch.num_tokens,
            teacher=self._lay_out_copies(for_twin),
            plan=plan,
            alpha=self.config.alpha_at(progress),
        )
        return prepared.pin_memory() if self.pin_memory else prepared

    def _lay_out_copies(self, copies: Sequence[MaskedTokens]) -> EncoderInputs:
        batch = copies[0].batch
        starts = np.arange(len(copies))[:, None] * batch.num_tokens
        ends = (starts + batch.boundaries[1:]).ravel()
        boundaries = np.concatenate((batch.boundaries[:1], ends))
        rows = [start + one.positions for start, one in zip(starts, copies, strict=True)]
        # What names the tokens stays that of one copy: layouts do not read it.
        ids = np.concatenate([one.input_ids for one in copies])
        whole = replace(batch, input_ids=ids, boundaries=boundaries)
        return self.lay_out(MaskedTokens.unmasked(whole, np.concatenate(rows)))

    @torch.no_grad()
    def before_step(self) -> None:
        """Move the twin: once per optimiser step, before its first forward pass."""
        self.twin.update()

    def loss_sums(self, prepared: PreparedText) -> Mapping[str, torch.Tensor]:
        """Return each loss term as a sum over `prepared.counts`."""
        assert isinstance(prepared, PreparedMomentumText)
        return self.step(prepared)[0]

    def step(
        self, prepared: PreparedMomentumText
    ) -> tuple[Mapping[str, torch.Tensor], PreparedMomentumText]:
        """Let the twin teach and the model learn; returns the sums and what replays the step."""
        taught, plan = self._teach(prepared), prepared.plan
        right = (prepared.targets, taught.soft_labels, prepared.alpha)
        if plan is None or taught.replacements is None:
            return {"mlm": soft_mlm_loss_sum(self.model(prepared.inputs), *right)}, prepared
        logits, judgements = self._read(prepared, taught.replacements)
        sums = {"mlm": soft_mlm_loss_sum(logits, *right)}
        sums["mrtd"] = mrtd.mrtd_loss_sum(judgements, taught.replacements.labels[plan.judged_at])
        plan = replace(plan, sampled=taught.replacements.sampled)
        return sums, replace(prepared, plan=plan)

    @torch.no_grad()
    def judge(self, prepared: PreparedMomentumText) -> tuple[torch.Tensor, torch.Tensor]:
        """Judge in evaluation mode which words were replaced: (P,) log-odds, and (P,) 1 if so."""
        replacements = self._teach(prepared).replacements
        if replacements is None or prepared.plan is None:
            raise ConfigError("there is no detection to judge; train with --objective mlm+mrtd")
        scores = self._read(prepared, replacements)[1].float()
        return scores[:, 1] - scores[:, 0], replacements.labels[prepared.plan.judged_at]

    @torch.no_grad()
    def _teach(self, prepared: PreparedMomentumText) -> mrtd.TwinTargets:
        """Let the twin give soft labels, and sample its replacements."""
        probabilities = F.softmax(self.twin.model(prepared.teacher).float(), dim=-1)
        plan = prepared.plan
        if plan is None:
            return mrtd.TwinTargets(soft_labels=probabilities)
        num_soft = len(probabilities) - len(plan.sampled_at)
        ids = prepared.inputs.input_ids.flatten()
        original = ids[len(ids) // 2 :]  # (S,), the text before it is masked
        soft = probabilities[:num_soft] if self.config.alpha > 0 else None
        everywhere = torch.ones_like(original)  # padding is not among the plan's places
        weights, special_ids = probabilities[num_soft:], self.masker.vocabulary.special_ids
        replacements = mrtd.replace_words(original, everywhere, weights, plan, special_ids)
        return mrtd.TwinTargets(soft_labels=soft, replacements=replacements)

    def _read(
        self, prepared: PreparedMomentumText, replacements: mrtd.Replacements
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (M, V) logits of masked tokens, and (P, 2) of the text with replacements."""
        inputs, num_masked = prepared.inputs, len(prepared.targets)
        replaced = replacements.input_ids  # (S,)
        ids = torch.cat((inputs.input_ids.flatten()[: len(replaced)], replaced))
        inputs = replace(inputs, input_ids=ids.view_as(inputs.input_ids))

        def read(model: MaskedLanguageModel, rows: torch.Tensor) -> Any:
            return model.logits(rows[:num_masked]), model.heads[HEAD](rows[num_masked:])

        logits, judgements = self.model(inputs, read=read)
        return logits, judgements

    def extra_state(self) -> Mapping[str, torch.Tensor]:
        """Return the momentum twin, as `twin.*`."""
        return {f"twin.{name}": tensor for name, tensor in self.twin.state_dict().items()}

    def load_extra_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Restore what `extra_state` gave."""
        self.twin.load_state_dict(part_of(state, "twin."))


momentum_text_mlm = MomentumTextMLM.of  # by this name, the table of objectives finds it
