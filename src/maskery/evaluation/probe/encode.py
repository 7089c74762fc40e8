"""Vectors of texts: frozen features of an encoder, and short fine-tunings of it with a linear head.

People who have labels will train the encoder on them, and one that probes worse may be the better
start. So it is also trained, over several seeds, by plain AdamW, its rate falling linearly, as in
BERT's fine-tuning (Devlin et al., 2019, appendix A.3).

Shapes: N texts, H held-out texts, B texts of a batch, D width, C classes.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from maskery.core.bars import Bar
from maskery.core.batch import Bools, Floats, Ints
from maskery.core.errors import ModelError
from maskery.core.processes import evaluating, inference, to_gpu
from maskery.models.layout import max_positions
from maskery.models.loading import load_masked_lm, resolve
from maskery.models.pooling import Pooling

Vectors = npt.NDArray[np.float32]
BATCH_TOKENS = 8192  # about what a CPU's caches and a GPU's launches are both content with
EPOCHS, BATCH_TEXTS = 4, 16  # as BERT's appendix searched; few labels want the longer runs
ENCODER_RATE, HEAD_RATE = 5e-5, 1e-3  # both usual; the head starts from nothing, so faster
WARMUP_SHARE, CLIP_NORM = 0.1, 1.0  # as in BERT's code: the first steps of Adam are the least sure
SEEDS = (0, 1, 2)  # fewer show no spread, and each is a whole fine-tuning


class Encoder:
    """Makes vectors of texts with a masked language model's encoder; its head is not used."""

    def __init__(
        self, hf: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pooling: Pooling, name: str
    ) -> None:
        self.hf, self.tokenizer, self.pooling, self.name = hf, tokenizer, pooling, name
        self.max_length = min(filter(None, (pooling.max_length, max_positions(hf.config), 512)))

    @classmethod
    def open(cls, name: str) -> Self:
        """Load an encoder by name: a run folder, a model folder, a hub name or `minilm`."""
        loaded, pooling = load_masked_lm(name), Pooling.of(Path(resolve(name)))
        return cls(to_gpu(loaded.model), loaded.tokenizer, pooling, name)

    def encode(self, texts: Sequence[str], *, progress: bool = False) -> Vectors:
        """Return a vector of each text, (N, D) float32; longer ones are cut at `max_length`."""
        tokens = self.tokenizer(list(texts), truncation=True, max_length=self.max_length)
        states = map(torch.from_numpy, self._hidden(tokens["input_ids"], progress))
        pooled = [self.pooling.pool(rows, torch.tensor([len(rows)]))[0] for rows in states]
        vectors: Vectors = torch.stack(pooled).numpy()
        if bad := int((~np.isfinite(vectors)).any(axis=1).sum()):
            problem = f"'{self.name}' makes vectors that are no numbers (NaN or infinite)"
            cause = "its weights are damaged or its training diverged"
            raise ModelError(f"{problem} for {bad:,} of {len(texts):,} texts; {cause}")
        return vectors

    def encode_words(self, texts: Sequence[Sequence[str]], *, progress: bool = False) -> Vectors:
        """Return (words, D) float32 of each word's first piece; zeros past the model's limit."""
        if not self.tokenizer.is_fast:
            problem = f"the tokenizer of '{self.name}' is written in Python"
            why = "does not say which pieces belong to which word"
            fix = "token probes need a fast one (tokenizer.json)"
            raise ModelError(f"{problem} and {why}; {fix}")
        split, most = [list(words) for words in texts], self.max_length
        tokens = self.tokenizer(split, is_split_into_words=True, truncation=True, max_length=most)
        hidden = self._hidden(tokens["input_ids"], progress)
        rows = []
        for place, (states, words) in enumerate(zip(hidden, split, strict=True)):
            spans = (tokens.word_to_tokens(place, number) for number in range(len(words)))
            none = np.zeros(states.shape[1], np.float32)
            rows += [none if span is None else states[span.start] for span in spans]
        return np.stack(rows)

    @inference()
    def _hidden(self, rows: list[list[int]], progress: bool) -> list[Vectors]:
        """Return the last hidden states of each tokenised text, (tokens, D)."""
        # Longest first: too large a batch fails at once, and little is padded.
        order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
        found: list[Vectors] = [np.zeros((0, 0), np.float32)] * len(rows)
        with evaluating(self.hf), Bar(len(rows), "encoding", shown=progress) as bar:
            while order:
                batch = order[: max(1, BATCH_TOKENS // len(rows[order[0]]))]
                order = order[len(batch) :]
                states = self._states([rows[i] for i in batch])[0].float().cpu().numpy()
                for i, one in zip(batch, states, strict=True):
                    found[i] = one[: len(rows[i])].copy()  # a view would keep the whole batch
                bar.update(len(batch))
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
        output: Any = self.hf.base_model(input_ids=ids.to(mask.device), attention_mask=mask)
        return output[0], mask


def tuned_hits(
    encoder: Encoder,  # left as it is; copies are trained
    texts: Sequence[str],
    classes: Ints,  # (N,) from 0
    held_out: Bools,  # (N,) True for those that are judged and not trained on
    seeds: Sequence[int],  # each decides the head, the order and the dropout of one fine-tuning
    *,
    progress: bool = False,
) -> Floats:
    """Return which held-out texts are right after each fine-tuning, (seeds, H), 0 or 1."""
    tokens = encoder.tokenizer(list(texts), truncation=True, max_length=encoder.max_length)
    steps = len(seeds) * EPOCHS * -(-int((~held_out).sum()) // BATCH_TEXTS)
    found = []
    with Bar(steps, f"fine-tuning {encoder.name}", shown=progress) as bar:
        for seed in seeds:
            with torch.random.fork_rng():  # what the caller draws afterwards is as ever
                torch.manual_seed(seed)
                found.append(_hits(encoder, tokens["input_ids"], classes, held_out, seed, bar))
    return np.array(found, np.float64)


def _hits(
    encoder: Encoder, rows: list[list[int]], classes: Ints, held_out: Bools, seed: int, bar: Bar
) -> Bools:
    """Train a copy of the encoder, and return which held-out texts it gets right, (H,)."""
    train, test = np.flatnonzero(~held_out), np.flatnonzero(held_out)
    own = copy.copy(encoder)
    own.hf = copy.deepcopy(encoder.hf).train().requires_grad_(True)
    # A linear head on vectors of length 1 would need many steps to become certain.
    own.pooling = replace(encoder.pooling, normalise=False)
    with torch.no_grad():
        width = own.pooled([rows[0]]).shape[1]
    head = nn.Linear(width, int(classes.max()) + 1, device=own.hf.device)
    rates = ((own.hf.base_model, ENCODER_RATE), (head, HEAD_RATE))
    groups = [{"params": list(part.parameters()), "lr": rate} for part, rate in rates]
    optimiser = torch.optim.AdamW(groups, weight_decay=0.01)
    total = EPOCHS * -(-len(train) // BATCH_TEXTS)
    warmup, generator = max(1.0, WARMUP_SHARE * total), np.random.default_rng(seed)
    schedule = LambdaLR(optimiser, lambda step: min((step + 1) / warmup, (total - step) / total))

    def batches(places: Ints) -> Iterator[tuple[Ints, torch.Tensor]]:
        for start in range(0, len(places), BATCH_TEXTS):
            chosen = places[start : start + BATCH_TEXTS]
            yield chosen, head(own.pooled([rows[place] for place in chosen]))

    for _ in range(EPOCHS):
        for chosen, logits in batches(generator.permutation(train)):
            right = torch.from_numpy(classes[chosen]).to(logits.device)
            F.cross_entropy(logits, right).backward()
            for group in optimiser.param_groups:
                nn.utils.clip_grad_norm_(group["params"], CLIP_NORM)
            optimiser.step()
            optimiser.zero_grad()
            schedule.step()
            bar.update()
    own.hf.eval()
    with torch.no_grad():
        found = [logits.argmax(dim=1).cpu().numpy() for _, logits in batches(test)]
    hits: Bools = np.concatenate(found) == classes[test]
    return hits
