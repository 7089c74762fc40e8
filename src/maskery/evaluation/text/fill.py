"""Fill masks: each by itself, several jointly, and the probability of chosen words.

`saliency` is gradient times input: how much the log-probability of the predicted token would change
as each word's vector shrinks, to first order (Denil, Demiraj and de Freitas, "Extraction of salient
sentences from labelled documents", 2014). It shows what the prediction reacts to, not why.

Shapes: B sequences, L tokens, M masks, V vocabulary.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from maskery.core.batch import Ints, MaskedTokens, TokenBatch
from maskery.core.errors import DataError
from maskery.core.processes import inference
from maskery.core.random import Stream, uniforms
from maskery.data.batching import cut_by_padded_size
from maskery.data.rows import flatten
from maskery.evaluation.text.masked import predict, require_numbers
from maskery.evaluation.text.opening import OpenModel, open_model
from maskery.evaluation.text.words_of_text import TextReader, Word, spoken
from maskery.models.layout import max_positions
from maskery.models.masked_lm import MaskedLanguageModel
from maskery.objectives.mrtd import sample_tokens

MASK = "[MASK]"
REPEATED = re.compile(r"\[MASK\]\*([0-9]{1,9})(?![0-9])")  # longer numbers take long to read
MOST_MASKS = 1 << 16  # more than a model has positions: it says so, before memory runs out


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One prediction for one mask."""

    token: str  # As text
    token_id: int  # Its id
    probability: float  # The softmax over the whole vocabulary


@dataclass(frozen=True, kw_only=True)
class WordProbability:
    """The probability of a chosen word in place of the first mask."""

    word: str  # As given
    pieces: tuple[str, ...]  # The tokens that the tokenizer cuts it into
    probability: float  # Its softmax; of several pieces the product, each given those left of it


@dataclass(frozen=True, kw_only=True)
class Completion:
    """All masks filled together."""

    text: str  # The sentence with its masks filled
    tokens: tuple[str, ...]  # The tokens that fill them, in order
    log_probability: float  # The sum of the log-probabilities, each mask given those left of it


@dataclass(frozen=True, kw_only=True)
class Filling:
    """Predictions for the masks of one sentence."""

    text: str  # The sentence, as given
    masks: tuple[tuple[Candidate, ...], ...]  # The likeliest of each mask on its own
    completions: tuple[Completion, ...]  # With several masks, the likeliest joint fillings
    words: tuple[WordProbability, ...]  # The probabilities of the words that were asked for


@dataclass(frozen=True, kw_only=True)
class Saliency:
    """The words that one mask's prediction depends on."""

    token: str  # The likeliest token of the mask
    probability: float  # Its probability
    words: tuple[Word, ...]  # The words of the text
    weights: tuple[float, ...]  # One for each word, not negative; they sum to 1


class Filler:
    """Fill masks with one model."""

    def __init__(self, model: MaskedLanguageModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self.model, self.tokenizer = model.eval(), tokenizer
        self.network: PreTrainedModel = model.hf
        self.mask_id = int(tokenizer.mask_token_id)
        self.limit = max_positions(model.hf.config)

    @classmethod
    def of(cls, model: str | Path | OpenModel) -> Self:
        """Open a text model for filling: `Filler.of("runs/notes").fill("A [MASK] idea.")`."""
        opened = open_model(model)
        return cls(opened.model, opened.tokenizer)

    def fill(
        self,
        text: str,
        *,
        top_k: int = 5,
        words: Sequence[str] = (),
        beams: int = 10,
        together: bool = True,
        pieces: bool = False,
    ) -> Filling:
        """Predict the masked words of a sentence.

        Args:
            text: With one or more `[MASK]`, whatever the tokenizer calls its mask.
            top_k: Candidates for each mask, and joint completions.
            words: Words whose probability in place of the first mask is computed, each as it would
                stand there: with a space before it only where the sentence has one.
            beams: Partial fillings that the joint search keeps.
            together: Also fill several masks jointly, which takes longer.
            pieces: Also offer tokens that cannot stand alone there, such as `##ef` and `[PAD]`.

        Raises:
            DataError: There is no mask, or the text exceeds the model's positions.
            ModelError: The model predicts values that are not numbers.
        """
        ids, read = self.encode(text), self._read(text)
        words = (words,) if isinstance(words, str) else words
        logs = self.log_probabilities([ids])[0]
        offered = [self.reader.offered(read, span, pieces) for span in self.reader.spans(read)]
        rows = zip(logs, offered, strict=True)
        masks = tuple(candidates(only(row, some), self.tokenizer, top_k) for row, some in rows)
        joint = self._joint(ids, read, offered, top_k, beams) if together and len(logs) > 1 else ()
        asked = tuple(self._word(ids, read, word) for word in words)
        return Filling(text=text, masks=masks, completions=joint, words=asked)

    @inference()
    def sample(
        self,
        text: str,
        *,
        temperature: float = 0.0,
        steps: int | None = None,
        block: int = 32,
        seed: int = 0,
    ) -> Completion:
        """Fill all masks step by step, the surest first (LLaDA, Nie et al. 2025, section 2.4).

        Args:
            text: With one or more `[MASK]`; `[MASK]*12` stands for twelve in a row.
            temperature: 0 takes the likeliest token of each mask; above, one is drawn.
            steps: Predictions, shared among the blocks. Default: one for each mask.
            block: Masks that are filled before any to the right of them.
            seed: Of the draws: the same text, settings and seed are filled alike.

        Raises:
            DataError: There is no mask, or the text exceeds the model's positions.
            ModelError: The model predicts values that are not numbers.
        """
        text = REPEATED.sub(lambda found: MASK * min(int(found[1]), MOST_MASKS), text)
        ids, read = np.array(self.encode(text)), self._read(text)
        places, total = np.flatnonzero(ids == self.mask_id), 0.0
        offered = [self.reader.offered(read, span) for span in self.reader.spans(read)]
        for first in range(0, len(places), block):
            last = min(first + block, len(places))
            turns = math.ceil((steps or len(places)) * (last - first) / len(places))
            for turn in range(turns, 0, -1):
                still = [at for at in range(first, last) if ids[places[at]] == self.mask_id]
                if not still:
                    break
                at = places[still]
                # Rows of later blocks follow these.
                rows = zip(self.log_probabilities([ids])[0], still, strict=False)
                logs = torch.stack([only(row, offered[place]) for row, place in rows])
                best, tokens = logs.max(dim=-1)
                if temperature:
                    # From the best on, and in float64: no temperature above 0 is too small.
                    chances = ((logs - best[:, None]).double() / temperature).softmax(dim=-1)
                    # Named by turn and place, so that no draw depends on how many came before.
                    drawn = uniforms(seed, Stream.SAMPLE, turn, at.astype(np.uint64), at)
                    tokens = sample_tokens(chances, torch.from_numpy(drawn))
                chosen = logs.gather(1, tokens[:, None])[:, 0]
                surest = chosen.topk(math.ceil(len(still) / turn)).indices.numpy()
                ids[at[surest]] = tokens.numpy()[surest]
                total += float(chosen[surest].sum())
        return self._completion(read, ids[places].tolist(), total)

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a sentence with masks, special tokens included."""
        ids: list[int] = self.reader.read(self._read(text)).ids.tolist()
        if self.mask_id not in ids:
            problem = f"the sentence {text!r} has no {MASK}, so there is nothing to fill"
            raise DataError(f"{problem}; put {MASK} where a word is wanted")
        self.require_room(len(ids), "the sentence", f"shorten it around the {MASK}")
        return ids

    def _read(self, text: str) -> str:
        return text.replace(MASK, self.reader.mask_token)

    def require_room(self, tokens: int, what: str, fix: str) -> None:
        """Refuse a text with more tokens than the model has positions."""
        if self.limit is not None and tokens > self.limit:
            problem = f"{what} has {tokens} tokens, and the model has {self.limit} positions"
            raise DataError(f"{problem}; {fix}")

    @cached_property
    def reader(self) -> TextReader:
        """Return the reader of texts, made once: it goes over the whole vocabulary."""
        return TextReader(self.tokenizer)

    def predict(self, masked: MaskedTokens) -> torch.Tensor:
        """Return the logits (M, V) of masked tokens, float32, with gradients where wanted."""
        return predict(self.model, masked)

    @inference()
    def log_probabilities(self, sequences: Sequence[npt.ArrayLike]) -> torch.Tensor:
        """Return log-probabilities (B, M, V) at the masks of B texts with M masks each."""
        logs = self.predict(self.hidden(sequences)).cpu().log_softmax(dim=-1)
        # The likeliest of each: a vocabulary may have entries at minus infinity, which is a number.
        require_numbers(logs.amax(dim=-1))
        return logs.view(len(sequences), -1, logs.shape[-1])

    def hidden(self, sequences: Sequence[npt.ArrayLike]) -> MaskedTokens:
        """Return a batch of token ids whose masks are to be predicted."""
        batch = end_to_end(sequences)
        return MaskedTokens.unmasked(batch, np.flatnonzero(batch.input_ids == self.mask_id))

    def _joint(
        self, ids: list[int], text: str, offered: Sequence[torch.Tensor], top_k: int, beams: int
    ) -> tuple[Completion, ...]:
        """Search with beams from left to right; each step sees the masks already filled."""
        sequences, scores = np.array([ids]), torch.zeros(1)
        places = np.flatnonzero(sequences[0] == self.mask_id)
        for place, some in zip(places.tolist(), offered, strict=True):
            # The leftmost mask still there is the first row of each sequence.
            logs = only(self.log_probabilities(list(sequences))[:, 0], some)
            logs[:, self.mask_id] = -math.inf  # a mask filled with the mask is not filled
            totals = (logs + scores[:, None]).flatten()
            best = totals.topk(min(max(beams, top_k), len(totals)))
            kept = best.values > -math.inf
            parents, tokens = np.divmod(best.indices[kept].numpy(), logs.shape[1])
            sequences, scores = sequences[parents], best.values[kept]
            sequences[:, place] = tokens
        found = zip(sequences[:top_k, places].tolist(), scores.tolist(), strict=False)
        return tuple(self._completion(text, tokens, score) for tokens, score in found)

    def _completion(self, text: str, tokens: list[int], score: float) -> Completion:
        filled, spelt = self.reader.fill(text, tokens), self.reader.pieces(tokens)
        return Completion(text=filled, tokens=spelt, log_probability=score)

    def _word(self, ids: list[int], text: str, word: str) -> WordProbability:
        pieces = self.reader.pieces_at(word.strip(), text, self.reader.spans(text)[0])
        if not pieces:
            raise DataError(f"the word {word!r} has no tokens; give a word")
        place = ids.index(self.mask_id)
        sequence = [*ids[:place], *[self.mask_id] * len(pieces), *ids[place + 1 :]]
        self.require_room(len(sequence), f"the sentence with {word!r:.60}", "shorten one of them")
        total = 0.0
        # Each piece is given those left of it; the masks right of it stay.
        for at, piece in enumerate(pieces, place):
            total += float(self.log_probabilities([sequence])[0, 0, piece])
            sequence[at] = piece
        spelt = self.reader.pieces(pieces)
        return WordProbability(word=word, pieces=spelt, probability=math.exp(total))


def end_to_end(texts: Sequence[npt.ArrayLike]) -> TokenBatch:
    """Return texts, as token ids with special tokens, as a batch that nothing is drawn for."""
    return flatten([{"input_ids": text, "example_id": 0} for text in texts])


def by_length(lengths: Ints, batch_tokens: int, most: float = math.inf) -> list[Ints]:
    """Return indices in groups of like length, at most `batch_tokens` once padded, and `most`."""
    # A text longer than `batch_tokens` has a group of its own.
    order = np.argsort(lengths, kind="stable")
    cost = np.minimum(lengths[order], batch_tokens)
    return [order[a:b] for a, b in pairwise(cut_by_padded_size(cost, batch_tokens, most).tolist())]


def only(logs: torch.Tensor, offered: torch.Tensor) -> torch.Tensor:
    """Return log-probabilities (..., V) with minus infinity for tokens that are not offered."""
    # A model may have rows that no token belongs to.
    kept = torch.nn.functional.pad(offered, (0, logs.shape[-1] - len(offered)))
    return logs.masked_fill(~kept, -math.inf)


def candidates(
    logs: torch.Tensor, tokenizer: PreTrainedTokenizerBase, top_k: int
) -> tuple[Candidate, ...]:
    """Return the likeliest tokens of (V,) log-probabilities, most likely first."""
    top = logs.topk(min(top_k, len(logs)))
    found = zip(top.values.tolist(), top.indices.tolist(), strict=True)
    kept = [(token, math.exp(value)) for value, token in found if value > -math.inf]
    return tuple(Candidate(token=spoken(tokenizer, t), token_id=t, probability=p) for t, p in kept)


def saliency(filler: Filler, text: str, *, mask: int = 0) -> Saliency:
    """Weigh the words of a text by how much the likeliest token of a mask depends on them.

    The text has at least one mask, as the tokenizer writes it; `mask` counts them from 0.
    """
    held: list[torch.Tensor] = []  # the vectors of the tokens, (1, L, D)

    def keep(_module: Any, _arguments: Any, output: torch.Tensor) -> torch.Tensor:
        held.append(output.detach().requires_grad_())
        return held[0]

    with filler.network.get_input_embeddings().register_forward_hook(keep), torch.enable_grad():
        logits = filler.predict(filler.hidden([filler.encode(text)]))
        if mask >= len(logits):
            problem = f"mask {mask + 1} is asked for and the text has {len(logits)}"
            raise DataError(f"{problem}; name another")
        logs = logits[mask].log_softmax(dim=-1)
        require_numbers(logs.amax())
        token = int(logs.argmax())
        (gradient,) = torch.autograd.grad(logs[token], held[0])
    norms = (gradient * held[0].detach()).norm(dim=-1).flatten().cpu()
    words = filler.reader.read(text).words
    sums = [float(norms[word.first : word.last].sum()) for word in words]
    total = sum(sums) or 1.0  # of a model that looks at nothing, all weights are 0
    spelt, probability = filler.tokenizer.decode([token]).strip(), logs[token].exp().item()
    weights = tuple(value / total for value in sums)
    return Saliency(token=spelt, probability=probability, words=words, weights=weights)
