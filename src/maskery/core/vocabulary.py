"""The parts of a tokenizer that masking needs: its mask token and which ids are special."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from maskery.core.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """The token ids that masking deals with.

    Attributes:
        size: Ids run from 0 to `size` - 1.
        mask_token_id: The id of the mask token.
        special_ids: Ids that are never masked, sorted.
        protected: (size,) bool, True at `special_ids`.
        replacements: The ids a masked token may be replaced by: all that are not special.
    """

    size: int
    mask_token_id: int
    special_ids: tuple[int, ...]
    protected: npt.NDArray[np.bool_] = field(init=False, repr=False, compare=False)
    replacements: npt.NDArray[np.int64] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        protected = np.zeros(self.size, np.bool_)
        protected[[i for i in self.special_ids if i < self.size]] = True
        object.__setattr__(self, "protected", protected)
        object.__setattr__(self, "replacements", np.flatnonzero(~protected).astype(np.int64))
        if not len(self.replacements):
            raise ModelError(
                f"all {self.size} ids of the vocabulary are special tokens, so nothing can be "
                f"masked; use the tokenizer that belongs to the model"
            )

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> Vocabulary:
        """Read them from a Hugging Face tokenizer.

        Special are its special tokens and every added token it marks as special, such as
        ModernBERT's `<|endoftext|>`. Where ids have holes, `size` is one more than the largest, and
        an id that stands for no token counts as special, so that none is drawn as a replacement.

        Raises:
            ModelError: The tokenizer has no mask token.
        """
        if tokenizer.mask_token_id is None:
            raise ModelError(
                f"the tokenizer of '{tokenizer.name_or_path}' has no mask token: masked language "
                f"modelling needs one; use a BERT-like model, or add one to the tokenizer "
                f"(mask_token in its special_tokens_map)"
            )
        added = tokenizer.added_tokens_decoder
        special = {int(i) for i in tokenizer.all_special_ids}
        special |= {int(i) for i, token in added.items() if token.special}
        size = vocabulary_size(tokenizer)
        special |= set(range(size)).difference(tokenizer.get_vocab().values())
        return cls(
            size=size,
            mask_token_id=int(tokenizer.mask_token_id),
            special_ids=tuple(sorted(special)),
        )


def vocabulary_size(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return one more than the largest id of a tokenizer, or the number of its tokens if larger."""
    return max(len(tokenizer), max(tokenizer.get_vocab().values(), default=-1) + 1)
