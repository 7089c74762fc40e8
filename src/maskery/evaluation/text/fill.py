"""Filling masks: predictions for each, several jointly, and the probability of chosen words.

Shapes: M masks, V vocabulary, L tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from maskery.core.errors import DataError
from maskery.models.layout import EncoderInputs
from maskery.models.masked_lm import MaskedLanguageModel
from maskery.models.packing import max_positions

MASK = "[MASK]"


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One prediction for one mask.

    Attributes:
        token: As text.
        token_id: Its id.
        probability: The softmax over the whole vocabulary.
    """

    token: str
    token_id: int
    probability: float


@dataclass(frozen=True, kw_only=True)
class WordProbability:
    """How likely a chosen word is in place of the first mask.

    Attributes:
        word: As given.
        pieces: What the tokenizer makes of it.
        probability: Of one piece, its softmax; of several, the product of their probabilities
            filled from left to right into as many masks.
    """

    word: str
    pieces: tuple[str, ...]
    probability: float


@dataclass(frozen=True, kw_only=True)
class Completion:
    """All masks filled together.

    Attributes:
        text: The sentence with its masks filled.
        tokens: What fills them, in order.
        log_probability: The sum of the log-probabilities, each mask given those left of it.
    """

    text: str
    tokens: tuple[str, ...]
    log_probability: float


@dataclass(frozen=True, kw_only=True)
class Filling:
    """What `fill` found.

    Attributes:
        text: The sentence.
        masks: For each mask, its likeliest candidates, each mask on its own.
        completions: With several masks, the likeliest joint fillings.
        words: The probabilities asked for.
    """

    text: str
    masks: tuple[tuple[Candidate, ...], ...]
    completions: tuple[Completion, ...]
    words: tuple[WordProbability, ...]


class Filler:
    """Fills masks with one model.

    Args:
        model: Used in evaluation mode.
        tokenizer: The model's own.
    """

    def __init__(self, model: MaskedLanguageModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self.model, self.tokenizer = model.eval(), tokenizer
        self.mask_id = int(tokenizer.mask_token_id)
        self.limit = max_positions(model.hf.config)

    def fill(
        self,
        text: str,
        *,
        top_k: int = 5,
        words: Sequence[str] = (),
        beams: int = 10,
        together: bool = True,
    ) -> Filling:
        """Predict what the masks of a sentence hide.

        Args:
            text: With one or more `[MASK]`, whatever the tokenizer calls its mask.
            top_k: Candidates for each mask, and joint completions.
            words: Words whose probability in place of the first mask is wanted.
            beams: Partial fillings that the joint search keeps.
            together: Whether several masks are also filled jointly, which takes longer.

        Raises:
            DataError: There is no mask, or the text exceeds the model's positions.
        """
        ids = self.encode(text)
        places = self._places(ids)
        logs = self.log_probabilities([ids])[0]
        top = logs.topk(min(top_k, logs.shape[-1]), dim=-1)
        masks = tuple(
            tuple(
                Candidate(
                    token=self.tokenizer.decode([token]).strip() or self._piece(token),
                    token_id=token,
                    probability=value,
                )
                for value, token in zip(values, tokens, strict=True)
            )
            for values, tokens in zip(top.values.exp().tolist(), top.indices.tolist(), strict=True)
        )
        return Filling(
            text=text,
            masks=masks,
            completions=self._joint(ids, top_k, beams) if together and len(places) > 1 else (),
            words=tuple(self._word(ids, word) for word in words),
        )

    def encode(self, text: str) -> list[int]:
        """Token ids of a sentence with masks, special tokens included.

        Raises:
            DataError: There is no mask, or there are too many tokens.
        """
        text = text.replace(MASK, self.tokenizer.mask_token)
        ids: list[int] = self.tokenizer(text, truncation=False, verbose=False)["input_ids"]
        if self.mask_id not in ids:
            raise DataError(
                f"the sentence {text!r} has no {MASK}, so there is nothing to fill; put {MASK} "
                f"where a word is wanted"
            )
        if self.limit is not None and len(ids) > self.limit:
            raise DataError(
                f"the sentence has {len(ids)} tokens, and the model has {self.limit} positions; "
                f"shorten it around the {MASK}"
            )
        return ids

    @torch.no_grad()
    def log_probabilities(self, sequences: Sequence[list[int]]) -> torch.Tensor:
        """Log-softmax over the vocabulary at the masks of equally long sequences.

        Args:
            sequences: B lists of L ids, each with M masks.

        Returns:
            (B, M, V) float32.
        """
        logits = self.logits(torch.tensor(sequences)).float().cpu()
        logs = logits.log_softmax(dim=-1)
        return logs.view(len(sequences), -1, logs.shape[-1])

    @property
    def embeddings(self) -> torch.nn.Module:
        """What turns ids into vectors."""
        module: torch.nn.Module = self.model.hf.get_input_embeddings()
        return module

    def logits(self, ids: torch.Tensor) -> torch.Tensor:
        """Scores of the vocabulary at the masks of equally long sequences.

        Args:
            ids: (B, L) int64, without padding.

        Returns:
            (B * M, V), on the model's device, with gradients where they are asked for.
        """
        inputs = EncoderInputs(
            input_ids=ids,
            rows=(ids == self.mask_id).flatten().nonzero().flatten(),
            arguments={"attention_mask": torch.ones_like(ids)},
        )
        logits: torch.Tensor = self.model(inputs.to(self.model.hf.device))
        return logits

    def _joint(self, ids: list[int], top_k: int, beams: int) -> tuple[Completion, ...]:
        """Beam search from left to right; each step sees the masks already filled."""
        places = self._places(ids)
        states: list[tuple[float, list[int]]] = [(0.0, ids)]
        for place in places:
            # The leftmost mask still there is the first row of each sequence.
            logs = self.log_probabilities([sequence for _, sequence in states])[:, 0]
            logs[:, self.mask_id] = -math.inf  # a mask filled with the mask is not filled
            totals = logs + torch.tensor([score for score, _ in states])[:, None]
            best = totals.flatten().topk(min(max(beams, top_k), totals.numel()))
            grown = []
            for score, index in zip(best.values.tolist(), best.indices.tolist(), strict=True):
                if score == -math.inf:
                    continue
                parent, token = divmod(index, totals.shape[1])
                sequence = list(states[parent][1])
                sequence[place] = token
                grown.append((score, sequence))
            states = grown
        return tuple(
            Completion(
                text=self.tokenizer.decode(sequence, skip_special_tokens=True),
                tokens=tuple(self._piece(sequence[place]) for place in places),
                log_probability=score,
            )
            for score, sequence in states[:top_k]
        )

    def _word(self, ids: list[int], word: str) -> WordProbability:
        """The probability of a word in place of the first mask."""
        # A space in front, as within a sentence; WordPiece ignores it.
        pieces = self.tokenizer(f" {word}", add_special_tokens=False)["input_ids"]
        if not pieces:
            raise DataError(f"the word {word!r} has no tokens; give a word")
        place = ids.index(self.mask_id)
        sequence = [*ids[:place], *[self.mask_id] * len(pieces), *ids[place + 1 :]]
        if self.limit is not None and len(sequence) > self.limit:
            raise DataError(
                f"the word {word!r:.60} has {len(pieces)} tokens, and with it the sentence has "
                f"{len(sequence)}, more than the model's {self.limit} positions; shorten one"
            )
        total = 0.0
        for offset, piece in enumerate(pieces):
            total += float(self.log_probabilities([sequence])[0, 0, piece])
            sequence[place + offset] = piece
        return WordProbability(
            word=word,
            pieces=tuple(self._piece(piece) for piece in pieces),
            probability=float(torch.tensor(total).exp()),
        )

    def _places(self, ids: Sequence[int]) -> list[int]:
        return [index for index, token in enumerate(ids) if token == self.mask_id]

    def _piece(self, token: int) -> str:
        return str(self.tokenizer.convert_ids_to_tokens(token))
