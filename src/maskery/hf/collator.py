"""`MaskCollator`, a data collator for the Hugging Face `Trainer`, with fresh masks in each epoch.

The Trainer tells a collator neither the epoch nor the step, and worker processes have copies of it.
So the first `MaskCollator` adds a callback to those that every Trainer starts with. When training
begins, that callback gives the training loader, and no other, a copy of the collator that reads a
clock in shared memory; when an epoch begins, it sets the clock. From there on workers count their
own batches, so each batch knows its step, however far ahead of the training it is made. Evaluation
keeps the collator itself, whose clock stands still.

Shapes: B rows, L longest row, T tokens of all rows together.
"""

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import get_worker_info
from transformers import PreTrainedTokenizerBase, TrainerCallback

from maskery.core.batch import IGNORE_INDEX, Bools, Ints, MaskedTokens, TokenBatch
from maskery.core.errors import ConfigError, DataError
from maskery.data.rows import PieceWords, Row, flat_column, flatten
from maskery.masking.config import MaskingConfig, PolicyChoice
from maskery.masking.masker import Masker

# Made or used up here; every other column is passed on.
CONSUMED = {"input_ids", "labels", "special_tokens_mask", "example_id", "word_starts"}
# A number of batches that no epoch has: with it the clock stands still.
FOREVER = 2.0**53


class MaskCollator:
    """Masks and pads tokenised rows; `Trainer(..., data_collator=MaskCollator(tokenizer))`.

    A row has `input_ids` (special tokens included), and optionally `attention_mask`,
    `example_id` (stable, so that a row keeps its masks when its tokens change) and `word_starts`;
    without these, a row is named by a hash of its tokens, and its words are found from the
    tokenizer's pieces. Other columns are passed on: values that are one for each token are padded
    like the row, others become a tensor, or stay a list where they are no numbers. `labels` is
    replaced. Rows are never written to.

    Masks are a pure function of (seed, epoch, row, position), with or without workers, and training
    that is resumed goes on with those it would have had. Make the collator before its Trainer. In a
    loop of your own, set `epoch` (and `progress`, for a rate with a schedule) before each epoch;
    workers see it.

    Args:
        masking: The settings to start from; BERT's if None.
        policy: As in `Masker.of`: a name, `FILE.py:NAME`, or an object.
        rate: Share of the tokens that is masked, in expectation.
        seed: From 0 to 2**64 - 1.
        pad_to_multiple_of: L is rounded up to a multiple of this.
        **settings: Further settings of `MaskingConfig` by name.

    Raises:
        ModelError: The tokenizer has no mask token.
        ConfigError: It has no padding token, or a setting is out of range.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        masking: MaskingConfig | None = None,
        *,
        policy: PolicyChoice | None = None,
        rate: float | None = None,
        seed: int = 0,
        pad_to_multiple_of: int | None = None,
        **settings: Any,
    ) -> None:
        self.tokenizer = tokenizer
        self.masker = Masker.of(tokenizer, masking, policy=policy, rate=rate, seed=seed, **settings)
        if tokenizer.pad_token_id is None:
            problem = f"the tokenizer of '{tokenizer.name_or_path}' has no padding token"
            fix = "set one with tokenizer.pad_token = tokenizer.eos_token"
            raise ConfigError(f"{problem}; {fix}")
        self.pad_to_multiple_of = 1 if pad_to_multiple_of is None else pad_to_multiple_of
        if self.pad_to_multiple_of < 1:
            raise ConfigError(f"pad_to_multiple_of is {pad_to_multiple_of}: it must be at least 1")
        self._words = PieceWords(tokenizer, self.masker.vocabulary.special_ids)
        self._clock = _Clock()
        from transformers import trainer

        # The callbacks that every Trainer starts with.
        if _FollowTrainer not in trainer.DEFAULT_CALLBACKS:
            trainer.DEFAULT_CALLBACKS.append(_FollowTrainer)

    @property
    def epoch(self) -> int:
        """Epoch whose masks are drawn; workers that run already see a change."""
        return self._clock.read()[0]

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self._clock.set(epoch=epoch, progress=self.progress)

    @property
    def progress(self) -> float:
        """Share of the run that is done, for a mask rate with a schedule."""
        return self._clock.read()[1]

    @progress.setter
    def progress(self, progress: float) -> None:
        self._clock.set(epoch=self.epoch, progress=progress)

    def __call__(self, rows: Sequence[Row]) -> dict[str, Any]:
        """Mask and pad rows to `input_ids`, `attention_mask` and `labels`, (B, L) int64 each.

        `labels` is -100 wherever nothing was masked; the other columns of the rows come along.
        """
        batch = self.flatten(rows)
        epoch, progress = self._clock.tick()
        masked = self.masker.mask(batch, epoch=epoch, progress=progress)
        return self.arrange(masked, rows)

    def flatten(self, rows: Sequence[Row]) -> TokenBatch:
        """Lay rows end to end, with their names and words."""
        batch = flatten(rows)
        ids, size = batch.input_ids, self.masker.vocabulary.size
        if not len(ids):
            raise DataError("no row of a batch has a token; leave empty texts out of the dataset")
        if (wrong := ids[(ids < 0) | (ids >= size)]).size:
            problem = f"a row has the token id {wrong[0]}, and the tokenizer has the ids 0 to"
            raise DataError(f"{problem} {size - 1}; use the tokenizer that made the rows")
        if "word_starts" not in rows[0]:
            # Where there is no column, each token was taken for a word.
            batch.word_starts[:] = self._words(batch.input_ids)
        return batch

    def arrange(self, masked: MaskedTokens, rows: Sequence[Row]) -> dict[str, Any]:
        """Pad a masked batch, and add the other columns of its rows."""
        inside = self._inside(masked.batch.lengths)
        padded = {
            "input_ids": _padded(masked.input_ids, inside, int(self.tokenizer.pad_token_id)),
            "attention_mask": torch.from_numpy(inside.astype(np.int64)),
            "labels": _padded(masked.labels(), inside, IGNORE_INDEX),
        }
        for name in rows[0].keys() - CONSUMED:
            given = _tokenwise(rows, name, masked.batch)
            if given is None and name == "attention_mask":
                raise DataError("attention_mask and input_ids of a row must agree in length")
            # Labels of other kinds, one for each token, are left out of a loss as ours are.
            filling = IGNORE_INDEX if name.endswith("labels") else 0
            if name == "token_type_ids":
                filling = int(self.tokenizer.pad_token_type_id)
            if given is not None:
                padded[name] = _padded(given, inside, filling)
            else:
                padded[name] = _stacked([row[name] for row in rows])
        return padded

    def _inside(self, lengths: Ints) -> Bools:
        """Return where the padded rows hold tokens: (B, L) bool."""
        multiple = self.pad_to_multiple_of
        length = -(-int(lengths.max(initial=0)) // multiple) * multiple
        inside: Bools = np.arange(length) < lengths[:, None]
        return inside[:, ::-1] if self.tokenizer.padding_side == "left" else inside


class _Clock:
    """The epoch and the progress of a run, in memory that worker processes share."""

    def __init__(self) -> None:
        # turn, epoch, progress at the epoch's start, progress of a step, batches of a step; the
        # turn counts the epochs begun: by it a worker notices that its count starts anew
        self._shared = torch.tensor([0, 0, 0, 0, FOREVER], dtype=torch.float64).share_memory_()
        self._turn, self._taken = -1, 0

    def read(self) -> tuple[int, float]:
        return int(self._shared[1]), float(self._shared[2])

    def set(self, epoch: int, progress: float, step: float = 0, batches: float = FOREVER) -> None:
        turn = float(self._shared[0]) + 1.0
        now = [turn, epoch, progress, step, batches]
        self._shared.copy_(torch.tensor(now, dtype=torch.float64))

    def tick(self) -> tuple[int, float]:
        """Return the epoch and the progress of the next batch of this process."""
        turn, epoch, progress, step, batches = self._shared.tolist()
        if turn != self._turn:
            self._turn, self._taken = turn, 0
        worker = get_worker_info()
        # A loader deals its batches out to its workers in turn, from the first of each epoch.
        number = self._taken if worker is None else self._taken * worker.num_workers + worker.id
        self._taken += 1
        return int(epoch), min(1.0, progress + number // batches * step)


class _FollowTrainer(TrainerCallback):  # type: ignore[misc]  # Transformers is not typed
    """Sets the clock of the training loader's collator, if that is a `MaskCollator`."""

    clock: _Clock | None = None

    def on_train_begin(
        self, _args: Any, _state: Any, _control: Any, train_dataloader: Any = None, **_others: Any
    ) -> None:
        """Give the training loader a copy of its collator with a clock of its own."""
        # Accelerate wraps the loader, and the Trainer the collator where a dataset is no `Dataset`.
        holder: Any = getattr(train_dataloader, "base_dataloader", train_dataloader)
        name, inner = "collate_fn", getattr(holder, "collate_fn", None)
        while inner is not None and not isinstance(inner, MaskCollator):
            holder, name = inner, "data_collator"
            inner = getattr(holder, name, None)
        self.clock = None
        if inner is not None:
            collator, self.clock = copy.copy(inner), _Clock()
            collator._clock = self.clock
            setattr(holder, name, collator)

    def on_epoch_begin(self, args: Any, state: Any, _control: Any, **_others: Any) -> None:
        """Set the clock, also where an epoch is resumed in its midst."""
        if self.clock is not None:
            last = max(state.max_steps, 1)
            self.clock.set(
                # A done share may end just below a whole number.
                epoch=int((state.epoch or 0.0) + 1e-6),
                progress=state.global_step / last,
                step=1 / last,
                batches=args.gradient_accumulation_steps,
            )


def _tokenwise(rows: Sequence[Row], name: str, batch: TokenBatch) -> npt.NDArray[Any] | None:
    """Return a column that has one number for each token, end to end; None for another."""
    values = [row[name] for row in rows]
    if any(isinstance(value, str) or not hasattr(value, "__len__") for value in values):
        return None
    one_dimension = all(getattr(value, "ndim", 1) == 1 for value in values)
    if not one_dimension or [len(value) for value in values] != batch.lengths.tolist():
        return None
    first = np.asarray(values[0])
    return flat_column(values, first.dtype) if first.dtype.kind in "biuf" else None


def _padded(values: npt.NDArray[Any], inside: Bools, filling: int) -> torch.Tensor:
    full = np.full(inside.shape, filling, values.dtype)
    full[inside] = values
    return torch.from_numpy(full)


def _stacked(values: list[Any]) -> Any:
    """Return values as one tensor, or as they are where they are no numbers of one shape."""
    if all(isinstance(value, torch.Tensor) for value in values):
        same = len({value.shape for value in values}) == 1
        return torch.stack(values) if same else values
    try:
        array = np.asarray(values)
    except ValueError:
        return values  # of unequal lengths
    return torch.from_numpy(array) if array.dtype.kind in "biuf" else values
