"""What masking must know of a tokenizer: its mask token and which ids are special."""

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
        """Ask a Hugging Face tokenizer.

        Raises:
            ModelError: The tokenizer has no mask token.
        """
        if tokenizer.mask_token_id is None:
            raise ModelError(
                f"the tokenizer of '{tokenizer.name_or_path}' has no mask token: masked language "
                f"modelling needs one; use a BERT-like model, or add one to the tokenizer "
                f"(mask_token in its special_tokens_map)"
            )
        return cls(
            size=len(tokenizer),
            mask_token_id=int(tokenizer.mask_token_id),
            special_ids=tuple(sorted({int(i) for i in tokenizer.all_special_ids})),
        )
