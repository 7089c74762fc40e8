"""A data collator for anyone's `Trainer`, in the place of `DataCollatorForLanguageModeling`.

Shapes: B rows, L longest row, T tokens of all rows together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedTokenizerBase, TrainerCallback

from maskery.core.batch import IGNORE_INDEX, TokenBatch
from maskery.core.errors import ConfigError, DataError
from maskery.data.rows import Row, flat_column, flatten
from maskery.masking.config import MaskingConfig
from maskery.masking.masker import Masker

UNDERSTOOD = frozenset(
    {
        "input_ids",
        "attention_mask",
        "token_type_ids",
        "special_tokens_mask",
        "example_id",
        "word_starts",
    }
)


class MaskeryCollator:
    """Masks and pads tokenised rows, never writing to them.

    A row has `input_ids` (special tokens included), and optionally `attention_mask`,
    `token_type_ids`, `example_id` (stable, so that a row keeps its masks when its tokens change)
    and `word_starts` (needed for the policies word and span; `tokenise_rows` makes them). The
    Trainer drops the last two unless `remove_unused_columns=False`. Special tokens are known from
    the tokenizer, so a `special_tokens_mask` adds nothing.

    Masks are a pure function of (seed, epoch, row). The Trainer does not tell a collator the epoch:
    pass `callbacks=[MaskEpoch(collator)]` for fresh masks in each.

    Args:
        tokenizer: Of the model.
        masking: Policy, rate and shares; BERT's if None.
        seed: From 0 to 2**64 - 1.
        pad_to_multiple_of: L is rounded up to a multiple of this.

    Attributes:
        epoch: Whose masks are drawn.
        progress: The share of the run that is done, for a mask-rate schedule.

    Raises:
        ModelError: The tokenizer has no mask token.
        ConfigError: It has no padding token.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        masking: MaskingConfig | None = None,
        *,
        seed: int = 0,
        pad_to_multiple_of: int = 1,
    ) -> None:
        self.tokenizer = tokenizer
        self.masker = Masker.of(tokenizer, masking, seed=seed)
        if tokenizer.pad_token_id is None:
            raise ConfigError(
                f"the tokenizer of '{tokenizer.name_or_path}' has no padding token; set one with "
                f"tokenizer.pad_token = tokenizer.eos_token"
            )
        if pad_to_multiple_of < 1:
            raise ConfigError(f"pad_to_multiple_of is {pad_to_multiple_of}: it must be at least 1")
        self.pad_to_multiple_of = pad_to_multiple_of
        self.epoch = 0
        self.progress = 0.0

    def __call__(self, rows: Sequence[Row]) -> dict[str, torch.Tensor]:
        """Mask and pad rows.

        Returns:
            `input_ids`, `attention_mask` and `labels` (-100 wherever nothing was masked), and
            `token_type_ids` where the rows have them: (B, L) int64 each.

        Raises:
            DataError: A row cannot be used as it is.
        """
        batch = flatten(rows)
        unknown = set(rows[0]) - UNDERSTOOD
        if unknown:
            raise DataError(
                f"the rows have a column '{min(unknown)}', which would be dropped; remove it from "
                f"the dataset (the collator takes {', '.join(sorted(UNDERSTOOD))})"
            )
        if self.masker.config.policy != "token" and "word_starts" not in rows[0]:
            raise DataError(
                f"the policy '{self.masker.config.policy}' needs a column 'word_starts' in the "
                f"rows; make them with maskery.data.rows.tokenise_rows, and pass "
                f"remove_unused_columns=False to TrainingArguments"
            )
        padded = self.collate(batch)
        inside = self._inside(batch)
        for name in ("attention_mask", "token_type_ids"):
            if name in rows[0]:
                column = flat_column([row[name] for row in rows], np.int64)
                if len(column) != batch.num_tokens:
                    raise DataError(
                        f"the rows have {batch.num_tokens} input_ids and {len(column)} values of "
                        f"{name}; they must agree"
                    )
                full = np.zeros(inside.shape, np.int64)
                full[inside] = column
                padded[name] = torch.from_numpy(full)
        return padded

    def collate(self, batch: TokenBatch) -> dict[str, torch.Tensor]:
        """The same for rows that lie end to end already: the fast way."""
        size = self.masker.vocabulary.size
        if batch.num_tokens and not 0 <= int(batch.input_ids.min()) <= batch.input_ids.max() < size:
            wrong = batch.input_ids[(batch.input_ids < 0) | (batch.input_ids >= size)][0]
            raise DataError(
                f"a row has the token id {wrong}, and the tokenizer has the ids 0 to {size - 1}; "
                f"use the tokenizer that made the rows"
            )
        masked = self.masker.mask(batch, epoch=self.epoch, progress=self.progress)
        inside = self._inside(batch)
        input_ids = np.full(inside.shape, self.tokenizer.pad_token_id, np.int64)
        input_ids[inside] = masked.input_ids
        labels = np.full(inside.shape, IGNORE_INDEX, np.int64)
        # Only masked tokens are placed one by one.
        rows = np.searchsorted(batch.boundaries, masked.positions, side="right") - 1
        columns = masked.positions - batch.boundaries[rows] + self._firsts(batch, inside)[rows]
        labels[rows, columns] = masked.targets
        return {
            "input_ids": torch.from_numpy(input_ids),
            "attention_mask": torch.from_numpy(inside.astype(np.int64)),
            "labels": torch.from_numpy(labels),
        }

    def _inside(self, batch: TokenBatch) -> npt.NDArray[np.bool_]:
        """(B, L) bool: where the padded rows hold tokens."""
        longest = int(batch.lengths.max(initial=0))
        length = -(-longest // self.pad_to_multiple_of) * self.pad_to_multiple_of
        inside: npt.NDArray[np.bool_] = np.arange(length) < batch.lengths[:, None]
        return inside[:, ::-1] if self.tokenizer.padding_side == "left" else inside

    def _firsts(self, batch: TokenBatch, inside: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
        """(B,) the column of each row's first token."""
        if self.tokenizer.padding_side == "left":
            firsts: npt.NDArray[np.int64] = inside.shape[1] - batch.lengths
            return firsts
        return np.zeros(len(batch.lengths), np.int64)


class MaskEpoch(TrainerCallback):  # type: ignore[misc]  # Transformers is not typed
    """Gives a collator the Trainer's epoch, so that each epoch has fresh masks.

    Args:
        collator: The Trainer's `data_collator`.
    """

    def __init__(self, collator: MaskeryCollator) -> None:
        self.collator = collator

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """An epoch begins, or is resumed."""
        del args, control, kwargs
        # A done share may end just below a whole number.
        self.collator.epoch = int((state.epoch or 0.0) + 1e-6)
        self.collator.progress = state.global_step / max(state.max_steps, 1)
