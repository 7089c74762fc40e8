"""Texts as vectors: frozen features of an encoder.

Shapes: N texts, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from maskery.core.errors import ModelError
from maskery.models.layout import max_positions
from maskery.models.loading import load_masked_lm, resolve
from maskery.models.pooling import Pooling

Vectors = npt.NDArray[np.float32]
# About what a CPU's caches and a GPU's launches are both content with.
BATCH_TOKENS = 8192


class Encoder:
    """Makes vectors of texts with a masked language model's encoder; its head is not used.

    The name is for messages.
    """

    def __init__(
        self,
        hf: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        pooling: Pooling,
        *,
        name: str = "the model",
    ) -> None:
        self.hf, self.tokenizer, self.pooling, self.name = hf, tokenizer, pooling, name
        limits = (pooling.max_length, max_positions(hf.config), 512)
        self.max_length = min(limit for limit in limits if limit)

    @classmethod
    def open(cls, name: str) -> Encoder:
        """Load an encoder by name: a run folder, a model folder, a hub name or `minilm`."""
        loaded = load_masked_lm(name)
        hf = loaded.model.to("cuda" if torch.cuda.is_available() else "cpu")
        return cls(hf, loaded.tokenizer, Pooling.of(Path(resolve(name))), name=name)

    def encode(self, texts: Sequence[str], *, progress: bool = False) -> Vectors:
        """Return a vector of each text, (N, D) float32; longer ones are cut at `max_length`."""
        vectors = np.stack(
            [
                self.pooling.pool(torch.from_numpy(rows), torch.tensor([len(rows)]))[0].numpy()
                for rows in self.hidden(texts, progress=progress)
            ]
        )
        if not np.isfinite(vectors).all():
            bad = int((~np.isfinite(vectors)).any(axis=1).sum())
            raise ModelError(
                f"'{self.name}' makes vectors that are no numbers (NaN or infinite) for {bad:,} of "
                f"{len(texts):,} texts; its weights are damaged or its training diverged"
            )
        return vectors

    def encode_words(
        self, sentences: Sequence[Sequence[str]], *, progress: bool = False
    ) -> Vectors:
        """Return the vector of each word's first piece, (words of all sentences, D) float32.

        Words past the model's limit get zeros.
        """
        if not self.tokenizer.is_fast:
            raise ModelError(
                f"the tokenizer of '{self.name}' is written in Python and does not say which "
                f"pieces belong to which word; token probes need a fast one (tokenizer.json)"
            )
        tokens = self.tokenizer(
            [list(words) for words in sentences],
            is_split_into_words=True,
            truncation=True,
            max_length=self.max_length,
        )
        hidden = self._hidden_of(tokens["input_ids"], progress)
        rows: list[Vectors] = []
        for place, (states, words) in enumerate(zip(hidden, sentences, strict=True)):
            found = np.zeros((len(words), states.shape[1]), np.float32)
            numbers = tokens.word_ids(place)
            for piece in range(len(numbers) - 1, -1, -1):  # backwards: the first piece stays
                if numbers[piece] is not None:
                    found[numbers[piece]] = states[piece]
            rows.append(found)
        return np.concatenate(rows)

    def hidden(self, texts: Sequence[str], *, progress: bool = False) -> list[Vectors]:
        """Return the last hidden states of each text, (tokens, D) float32."""
        tokens = self.tokenizer(list(texts), truncation=True, max_length=self.max_length)
        return self._hidden_of(tokens["input_ids"], progress)

    @torch.no_grad()
    def _hidden_of(self, rows: list[list[int]], progress: bool) -> list[Vectors]:
        # Longest first: too large a batch fails at once, and little is padded.
        order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
        found: list[Vectors] = [np.zeros((0, 0), np.float32)] * len(rows)
        was_training = self.hf.training
        self.hf.eval()
        with tqdm(total=len(rows), desc="encoding", leave=False, disable=not progress) as bar:
            while order:
                batch = order[: max(1, BATCH_TOKENS // len(rows[order[0]]))]
                order = order[len(batch) :]
                states = self._states([rows[i] for i in batch])[0].float().cpu().numpy()
                for i, one in zip(batch, states, strict=True):
                    found[i] = one[: len(rows[i])].copy()  # a view would keep the whole batch
                bar.update(len(batch))
        self.hf.train(was_training)
        return found

    def pooled(self, rows: list[list[int]]) -> torch.Tensor:
        """Return the vectors of B tokenised texts, (B, D), for gradients to flow through."""
        states, mask = self._states(rows)
        return self.pooling.pool(states[mask.bool()], mask.sum(dim=1))

    def _states(self, rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return last hidden states, (B, longest, D), and 1 where there is a token."""
        texts = [torch.tensor(row) for row in rows]
        pad = int(self.tokenizer.pad_token_id or 0)
        ids = pad_sequence(texts, batch_first=True, padding_value=pad)
        mask = pad_sequence([torch.ones_like(text) for text in texts], batch_first=True)
        mask = mask.to(self.hf.device)
        states: torch.Tensor = self.hf.base_model(
            input_ids=ids.to(mask.device), attention_mask=mask
        )[0]
        return states, mask
