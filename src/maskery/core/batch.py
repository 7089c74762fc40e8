"""Batches, sequences end to end and never padded; and the vocabulary that masking needs.

Shapes: B sequences, T tokens of all sequences together, M masked tokens.
"""

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Self, TypeAlias

import numpy as np
import numpy.typing as npt

from maskery.core.errors import ModelError

# Arrays as docstrings name their shapes; of other types they are spelled out.
Ints: TypeAlias = npt.NDArray[np.int64]
Ids: TypeAlias = npt.NDArray[np.uint64]
Bools: TypeAlias = npt.NDArray[np.bool_]
Floats: TypeAlias = npt.NDArray[np.float64]
IGNORE_INDEX = -100  # The label of what nothing is learned from, as in PyTorch and Hugging Face

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True)
class TokenBatch:
    """B token sequences laid end to end, special tokens included.

    Position `starts[b] + i` of example `example_ids[b]` names token i of sequence b for good: every
    random decision about the token is drawn for that name, whatever batch it stands in.
    """

    input_ids: Ints  # (T,)
    boundaries: Ints  # (B + 1,); sequence b is `input_ids[boundaries[b]:boundaries[b + 1]]`
    example_ids: Ids  # (B,); the windows of one document share its id
    starts: Ints  # (B,); where the sequence starts in its document, in tokens
    word_starts: Bools  # (T,); the first token of each word, and special tokens

    @cached_property
    def lengths(self) -> Ints:
        """Return (B,) int64: the tokens of each sequence."""
        return np.diff(self.boundaries)

    def sequences_of(self, positions: Ints) -> Ints:
        """Return the sequence that each token position lies in."""
        return np.searchsorted(self.boundaries, positions, side="right") - 1

    @property
    def num_tokens(self) -> int:
        """Return T."""
        return len(self.input_ids)


@dataclass(frozen=True, kw_only=True)
class MaskedTokens:
    """A `TokenBatch` after masking."""

    batch: TokenBatch  # As before masking
    input_ids: Ints  # (T,), corrupted
    positions: Ints  # (M,), ascending indices of the masked tokens into the T
    targets: Ints  # (M,), the original ids there
    weights: npt.NDArray[np.float32] | None = None  # (M,), of their losses; None: 1 each
    count: int | None = None  # Divides the sum of the losses; None: M

    @classmethod
    def unmasked(cls, batch: TokenBatch, positions: Ints) -> Self:
        """Return a batch as it is, with positions (M,) whose rows an encoder is to hand out."""
        targets = batch.input_ids[positions]
        return cls(batch=batch, input_ids=batch.input_ids, positions=positions, targets=targets)

    def labels(self, ignore_index: int = IGNORE_INDEX) -> Ints:
        """Return (T,) int64: the original ids at masked positions, `ignore_index` elsewhere."""
        labels = np.full(len(self.input_ids), ignore_index, np.int64)
        labels[self.positions] = self.targets
        return labels


@dataclass(frozen=True, kw_only=True)
class StaticShapes:
    """Sizes to which every micro-batch of a run is filled up, for steps that are compiled.

    The sequences of a batch are followed by padding tokens in sequences of their own, which no
    other sequence sees and nothing is learned from.
    """

    # A packed batch has other sizes at every step, for each of which it would be compiled again.

    num_tokens: int  # T
    num_segments: int  # Sequences, padding and empty ones included
    longest: int  # The most tokens of a sequence; padding is cut into sequences of this length
    num_masked: int  # M. Masked tokens beyond are left out of the loss, and counted.

    def hold(self, batch: TokenBatch) -> bool:
        """Return True if a batch fits: its tokens, and its sequences beside those of padding."""
        padding = self.num_tokens - batch.num_tokens
        segments = len(batch.lengths) + -(-padding // self.longest)
        longest = int(batch.lengths.max(initial=0))
        return padding >= 0 and segments <= self.num_segments and longest <= self.longest


def require_mask(tokenizer: "PreTrainedTokenizerBase") -> int:
    """Return the id of the mask token; a ModelError if there is none that means nothing else."""
    found, roles = tokenizer.mask_token_id, ("unk", "pad", "cls", "sep", "bos", "eos")
    same = [role for role in roles if getattr(tokenizer, f"{role}_token_id") == found]
    if found is None or same:
        but = "" if found is None else f" but '{tokenizer.mask_token}', its {same[-1]} token"
        problem = f"the tokenizer of '{tokenizer.name_or_path}' has no mask token{but}"
        fix = "add one to the tokenizer (mask_token in its special_tokens_map)"
        told = f"{problem}: masked language modelling needs one; use a BERT-like model, or {fix}"
        raise ModelError(told)
    return int(found)


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """The token ids that masking deals with."""

    size: int  # Ids run from 0 to `size` - 1
    mask_token_id: int
    special_ids: tuple[int, ...]  # Never masked; sorted
    protected: Bools = field(init=False, repr=False, compare=False)  # (size,), True at special ids
    replacements: Ints = field(init=False, repr=False, compare=False)  # (N,), all other ids

    def __post_init__(self) -> None:
        protected = np.isin(np.arange(self.size), self.special_ids)
        object.__setattr__(self, "protected", protected)
        object.__setattr__(self, "replacements", np.flatnonzero(~protected))
        if not len(self.replacements):
            problem = f"all {self.size} ids of the vocabulary are special tokens"
            fix = "use the tokenizer that belongs to the model"
            raise ModelError(f"{problem}, so nothing can be masked; {fix}")

    @classmethod
    def of(cls, tokenizer: "PreTrainedTokenizerBase") -> Self:
        """Read them from a Hugging Face tokenizer; without a mask token it is a ModelError."""
        mask_token_id = require_mask(tokenizer)
        special = {int(i) for i in tokenizer.all_special_ids}
        # Added tokens that are marked as special, such as ModernBERT's `<|endoftext|>`.
        special |= {int(i) for i, t in tokenizer.added_tokens_decoder.items() if t.special}
        size = vocabulary_size(tokenizer)
        # Ids may have holes; one that stands for no token is never drawn as a replacement.
        special |= set(range(size)).difference(tokenizer.get_vocab().values())
        return cls(size=size, mask_token_id=mask_token_id, special_ids=tuple(sorted(special)))


def vocabulary_size(tokenizer: "PreTrainedTokenizerBase") -> int:
    """Return one more than the largest id of a tokenizer, or the number of its tokens if larger."""
    return max(len(tokenizer), max(tokenizer.get_vocab().values(), default=-1) + 1)
