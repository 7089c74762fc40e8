"""ELECTRA: the model tells which words a small generator, trained with it, has replaced.

Clark et al. (ICLR 2020), sections 2 and 3.2. The run's model is the discriminator; its own
vocabulary head is frozen, so judge such a run by --probe and not by the words that it fills. The
generator fills the run's masks, by draws for (seed, epoch, example, position), so that a run
resumes to the bit; it lies in checkpoints, and in `extra_state.safetensors` beside the saved model.

    maskery train text CORPUS --objective examples/plugins/electra_objective.py:Electra

The module stands around the run's model, which --sharding fsdp cannot evaluate.
Shapes: M masked tokens, T tokens, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import ElectraConfig, ElectraForMaskedLM

from maskery import ConfigError, MaskedLanguageModel, TextMLM, TextParts
from maskery.core.batch import MaskedTokens, TokenBatch
from maskery.core.random import token_uniforms
from maskery.models.attention import NAME
from maskery.models.layout import EncoderInputs
from maskery.objectives.mlm import mlm_loss_sum
from maskery.objectives.mrtd import sample_tokens
from maskery.tasks.text_mlm import PreparedText

WEIGHT = 50.0  # lambda, of the detection loss; the generator's has 1 (appendix A)
SHARE = 4  # the generator has a quarter of the width (section 3.2)


@dataclass(frozen=True, kw_only=True)
class PreparedElectra(PreparedText):
    """A masked batch, the text without masks, and the randomness of the samples."""

    text: EncoderInputs  # its rows are all T tokens
    uniforms: torch.Tensor  # (M,) float32


class Players(nn.Module):
    """Discriminator and generator in one module, which training may wrap."""

    def __init__(self, discriminator: MaskedLanguageModel, special_ids: tuple[int, ...]) -> None:
        super().__init__()
        config, words = discriminator.hf.config, discriminator.hf.get_input_embeddings()
        discriminator.hf.requires_grad_(False)
        discriminator.base.requires_grad_(True)
        (rows, width), size = words.weight.shape, config.hidden_size // SHARE
        small = ElectraConfig(
            vocab_size=rows,
            embedding_size=width,
            hidden_size=size,
            intermediate_size=4 * size,
            num_attention_heads=max(1, config.num_attention_heads // SHARE),
            num_hidden_layers=config.num_hidden_layers,
            max_position_embeddings=getattr(config, "max_position_embeddings", 512),
            attention_probs_dropout_prob=0.0,
            attn_implementation=NAME,
        )
        hf = ElectraForMaskedLM(small)
        hf.set_input_embeddings(words)  # shared with the discriminator, and with the output
        hf.generator_lm_head.weight = words.weight
        self.discriminator, self.special_ids = discriminator, list(special_ids)
        self.generator = MaskedLanguageModel(hf, packed=discriminator.packed, pad_token_id=0)
        self.head = nn.Linear(config.hidden_size, 1)

    def forward(self, prepared: PreparedElectra) -> tuple[torch.Tensor, ...]:
        """Return the generator's logits (M, V), log-odds of replacement (T,) and the truth (T,)."""
        text, rows = prepared.text, prepared.inputs.rows
        logits = self.generator(prepared.inputs)
        chances = F.softmax(logits.detach().float(), dim=-1)
        chances[:, self.special_ids] = 0.0  # a special token would give itself away
        sampled = sample_tokens(chances, prepared.uniforms)
        ids = text.input_ids.flatten().index_copy(0, rows, sampled).view_as(text.input_ids)
        hidden = self.discriminator.hidden(replace(text, input_ids=ids))
        replaced = (ids != text.input_ids).flatten()[text.rows]
        return logits, self.head(hidden)[:, 0], replaced.float()


class Electra(TextMLM):
    """The generator's masked language modelling, and replaced token detection."""

    def __init__(self, parts: TextParts) -> None:
        if parts.compile_backend is not None:
            raise ConfigError("--compile and ELECTRA do not go together; leave out --compile")
        super().__init__(parts.model, parts.masker)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(parts.masker.seed)  # of the weights that start from nothing
            self.model = Players(parts.model, parts.masker.vocabulary.special_ids)
        self.loss_weights = {"generator": 1.0, "detection": WEIGHT}

    def prepare(self, batch: TokenBatch, *, epoch: int, progress: float) -> PreparedElectra:
        """Mask a batch, and lay out its text for the samples to stand in."""
        masked = self.masker.mask(batch, epoch=epoch, progress=progress)
        return PreparedElectra(
            inputs=self.lay_out(masked),
            targets=torch.from_numpy(masked.targets),
            counts={"generator": len(masked.targets), "detection": batch.num_tokens},
            num_tokens=batch.num_tokens,
            text=self.lay_out(MaskedTokens.unmasked(batch, np.arange(batch.num_tokens))),
            uniforms=token_uniforms(batch, masked.positions, seed=self.masker.seed, epoch=epoch),
        )

    def loss_sums(self, prepared: PreparedText) -> Mapping[str, torch.Tensor]:
        """Return both terms of the loss, each summed over what it counts."""
        logits, scores, truth = self.model(prepared)
        detection = F.binary_cross_entropy_with_logits(scores.float(), truth, reduction="sum")
        return {"generator": mlm_loss_sum(logits, prepared.targets), "detection": detection}
