"""TSDAE: sentence vectors from a denoising auto-encoder.

Wang et al., "TSDAE" (Findings of EMNLP 2021), section 3: words of a sentence are deleted, the rest
is encoded and pooled to one vector, and a decoder says the whole sentence again from that vector
alone, each word from those before it. So the vector has to hold the sentence. It is pooled as the
model pools (the mean where its folder does not say). The decoder has one layer of its own; its word
embeddings and its vocabulary head are the model's. There are no masks: judge such a run by --probe.

    maskery train text CORPUS --objective examples/plugins/tsdae_objective.py:Tsdae

Shapes: B sentences, L tokens of the longest, T tokens of all, M tokens to be said, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from maskery import ConfigError, MaskedLanguageModel, TextMLM, TextParts
from maskery.core.batch import MaskedTokens, TokenBatch
from maskery.masking.policies import Draws
from maskery.models.layout import EncoderInputs, pad
from maskery.models.pooling import Pooling
from maskery.objectives.mlm import mlm_loss_sum
from maskery.tasks.text_mlm import PreparedText

DELETED = 0.6  # share of the words (section 5.4)


@dataclass(frozen=True, kw_only=True)
class PreparedSentences(PreparedText):
    """What deletion leaves of sentences as `inputs`, all tokens as rows, and what is to be said."""

    lengths: torch.Tensor  # (B,) int64, of the sentences with words deleted
    whole: EncoderInputs  # the sentences, (B, L); its M rows are followed by `targets`


class Decoder(nn.Module):
    """One layer that sees words before it, and of the encoder one vector; positions it does not."""

    def __init__(self, vector: int, words: int, width: int, heads: int) -> None:
        super().__init__()
        self.vector, self.words = nn.Linear(vector, width), nn.Linear(words, width)
        self.layer = nn.TransformerDecoderLayer(width, heads, 4 * width, batch_first=True)

    def forward(self, vectors: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
        """Return states (B, L, D) from vectors (B, vector) and embeddings (B, L, words)."""
        length = words.shape[1]
        hidden = torch.ones(length, length, dtype=torch.bool, device=words.device).triu(1)
        memory = self.vector(vectors)[:, None]
        states: torch.Tensor = self.layer(self.words(words), memory, tgt_mask=hidden)
        return states


class Tsdae(TextMLM):
    """Reconstruct sentences from the vectors of what deletion leaves of them."""

    def __init__(self, parts: TextParts) -> None:
        if parts.compile_backend is not None:
            raise ConfigError("--compile and TSDAE do not go together; leave out --compile")
        super().__init__(parts.model, parts.masker)
        folder, config = parts.sentence_encoder, parts.model.hf.config
        self.pooling = Pooling.of(folder) if folder else Pooling()
        width, words = config.hidden_size, parts.model.hf.get_input_embeddings().weight.shape[1]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(parts.masker.seed)
            vector = width * len(self.pooling.modes)
            decoder = Decoder(vector, words, width, config.num_attention_heads)
        parts.model.add_head("decoder", decoder)
        self.padding = parts.model.pad_token_id
        self.loss_weights = {"tsdae": 1.0}

    def prepare(self, batch: TokenBatch, *, epoch: int, progress: float) -> PreparedSentences:
        """Delete words, one at least of each sentence stays, and lay out both."""
        del progress  # nothing changes over the run
        uniforms = Draws(seed=self.masker.seed, epoch=epoch).uniforms("tsdae", batch)
        values = np.where(self.masker.vocabulary.protected[batch.input_ids], 2.0, uniforms)
        words = np.where(values < 2.0, values, -1.0)
        best = np.maximum.reduceat(words, batch.boundaries[:-1])
        kept = (values >= DELETED) | (values == np.repeat(best, batch.lengths))
        lengths = np.add.reduceat(kept.astype(np.int64), batch.boundaries[:-1])
        left = replace(
            batch,
            input_ids=batch.input_ids[kept],
            word_starts=batch.word_starts[kept],
            boundaries=np.concatenate(([0], np.cumsum(lengths))),
        )
        places = np.setdiff1d(np.arange(batch.num_tokens), batch.boundaries[1:] - 1)
        return PreparedSentences(
            inputs=self.lay_out(MaskedTokens.unmasked(left, np.arange(left.num_tokens))),
            targets=torch.from_numpy(batch.input_ids[places + 1]),
            counts={"tsdae": len(places)},
            num_tokens=batch.num_tokens,
            lengths=torch.from_numpy(lengths),
            whole=pad(batch.input_ids, batch.boundaries, places, pad_token_id=self.padding),
        )

    def loss_sums(self, prepared: PreparedText) -> Mapping[str, torch.Tensor]:
        """Return the cross-entropy of every token but the first of a sentence, summed."""
        assert isinstance(prepared, PreparedSentences)
        whole, lengths = prepared.whole, prepared.lengths

        def read(model: MaskedLanguageModel, rows: torch.Tensor) -> Any:
            words = model.hf.get_input_embeddings()(whole.input_ids)
            states = model.heads["decoder"](self.pooling.pool(rows, lengths), words)
            return model.logits(states.flatten(0, 1)[whole.rows])

        logits = self.model(prepared.inputs, read=read)
        return {"tsdae": mlm_loss_sum(logits, prepared.targets)}
