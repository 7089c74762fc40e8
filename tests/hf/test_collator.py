"""The collator masks as the masking engine does, and pads as the tokenizer would."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import tiny
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import (
    DataCollatorForLanguageModeling,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
)

from maskery.core.errors import ConfigError, DataError
from maskery.data.rows import flatten
from maskery.hf.collator import MaskEpoch, MaskeryCollator
from maskery.masking.config import MaskingConfig

SPECIAL = ["[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]"]
PAD, CLS, SEP, MASK = 1, 2, 3, 4


def tokenizer(**others: Any) -> PreTrainedTokenizerFast:
    words = SPECIAL + [f"w{n}" for n in range(94)]
    names = dict(zip(("unk", "pad", "cls", "sep", "mask"), SPECIAL, strict=True))
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel({w: n for n, w in enumerate(words)}, "[UNK]")),
        **({f"{name}_token": token for name, token in names.items()} | others),
    )


def make_rows(lengths: list[int], seed: int = 0) -> list[dict[str, Any]]:
    generator = np.random.default_rng(seed)
    return [{"input_ids": [CLS, *generator.integers(5, 99, n - 2).tolist(), SEP]} for n in lengths]


def selected(collator: MaskeryCollator, rows: list[dict[str, Any]]) -> torch.Tensor:
    return collator(rows)["labels"] != -100


@pytest.mark.parametrize("side", ["right", "left"])
def test_rows_of_unequal_length_are_padded_as_the_tokenizer_pads(side: str) -> None:
    rows = make_rows([5, 12, 3, 9])
    tokens = tokenizer(padding_side=side)
    batch = MaskeryCollator(tokens, pad_to_multiple_of=8)(rows)
    expected = tokens.pad(rows, pad_to_multiple_of=8, return_tensors="pt")
    assert torch.equal(batch["attention_mask"], expected["attention_mask"])
    masked = batch["labels"] != -100
    assert torch.equal(torch.where(masked, batch["labels"], batch["input_ids"]), expected.input_ids)
    assert masked.any(dim=1).all()  # at least one in each row
    assert {t.dtype for t in batch.values()} == {torch.int64}


def test_shares_are_those_of_hugging_faces_collator() -> None:
    rows = make_rows([200] * 400)
    ours = MaskeryCollator(tokenizer())(rows)
    torch.manual_seed(0)
    theirs = DataCollatorForLanguageModeling(tokenizer(), mlm_probability=0.15)(rows)
    for batch in (ours, theirs):
        masked = batch["labels"] != -100
        share = masked.float().sum() / (198 * 400)
        assert abs(share - 0.15) < 0.005
        shown = batch["input_ids"][masked]
        assert abs((shown == MASK).float().mean() - 0.8) < 0.02
        kept = (shown == batch["labels"][masked]).float().mean()
        assert abs(kept - 0.1 - 0.1 / 94) < 0.015
    assert not ((ours["input_ids"] != MASK) & (ours["input_ids"] < 5))[:, 1:-1].any()


def test_a_rows_masks_depend_on_nothing_but_seed_epoch_and_row() -> None:
    rows = make_rows([20, 31, 8, 20, 15])
    collator = MaskeryCollator(tokenizer(), seed=5)
    together = collator(rows)
    for number, row in enumerate(rows):
        alone = collator([row])
        length = len(row["input_ids"])
        for name in ("input_ids", "labels"):
            assert torch.equal(alone[name][0], together[name][number, :length])
    backwards = collator(rows[::-1])["labels"].flip(0)
    assert torch.equal(backwards, together["labels"])
    again = MaskeryCollator(tokenizer(), seed=5)(rows)
    assert all(torch.equal(again[name], value) for name, value in together.items())
    first = selected(collator, rows)
    collator.epoch = 1
    assert not torch.equal(selected(collator, rows), first)
    assert not torch.equal(selected(MaskeryCollator(tokenizer(), seed=6), rows), first)


def test_a_given_example_id_decides_and_a_missing_one_is_a_hash_of_the_tokens() -> None:
    row, other = make_rows([60, 60])
    collator = MaskeryCollator(tokenizer())
    named = [row | {"example_id": 7}, other | {"example_id": 7}, row | {"example_id": -7}]
    first, second, third = selected(collator, named)
    assert torch.equal(first, second)
    assert not torch.equal(first, third)
    hashed = flatten([row, other, row]).example_ids
    assert hashed[0] == hashed[2] != hashed[1]
    turned = {"input_ids": row["input_ids"][::-1]}
    assert len(set(flatten([row, turned, {"input_ids": row["input_ids"][:-1]}]).example_ids)) == 3


def test_lists_arrays_and_tensors_are_the_same_and_never_written_to() -> None:
    rows = make_rows([20, 9, 14])
    collator = MaskeryCollator(tokenizer())
    batches = []
    for kind in (list, np.array, torch.tensor):
        given: list[Any] = [{"input_ids": kind(row["input_ids"])} for row in rows]
        before = copy.deepcopy(given)
        batches.append(collator(given))
        for row, old in zip(given, before, strict=True):
            assert list(row["input_ids"]) == list(old["input_ids"])
    for batch in batches[1:]:
        assert all(torch.equal(batch[name], value) for name, value in batches[0].items())


def test_whole_words_fall_together() -> None:
    rows = make_rows([120] * 20)
    for row in rows:
        row["word_starts"] = [n < 2 or n % 3 == 1 or n == 119 for n in range(120)]
    config = MaskingConfig(policy="word")
    masked = selected(MaskeryCollator(tokenizer(), config), rows)
    words = masked[:, 1:118].reshape(20, 39, 3)
    assert ((words.sum(dim=2) == 0) | (words.sum(dim=2) == 3)).all()
    assert 0.1 < words.float().mean() < 0.2
    with pytest.raises(DataError, match="needs a column 'word_starts'"):
        MaskeryCollator(tokenizer(), config)(make_rows([9]))


def test_a_given_attention_mask_and_token_types_are_kept() -> None:
    row = {"input_ids": [CLS, 9, 8, SEP, PAD], "attention_mask": [1, 1, 1, 1, 0]}
    row["token_type_ids"] = [0, 1, 1, 1, 0]
    batch = MaskeryCollator(tokenizer())([row, row])
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 0]] * 2
    assert batch["token_type_ids"].tolist() == [[0, 1, 1, 1, 0]] * 2


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([], "no rows"),
        ([{"text": "a"}], "no 'input_ids'"),
        ([{"input_ids": [2, 9, 3], "label": 1}], "column 'label'"),
        ([{"input_ids": [2, 9, 3], "attention_mask": [1]}], "must agree"),
        ([{"input_ids": [2, 9, 3], "word_starts": [True]}], "must agree"),
        ([{"input_ids": [2, 400, 3]}], "token id 400"),
        ([{"input_ids": [2, -1, 3]}], "token id -1"),
    ],
)
def test_rows_that_cannot_be_used_are_refused(rows: list[dict[str, Any]], says: str) -> None:
    with pytest.raises(DataError, match=says):
        MaskeryCollator(tokenizer())(rows)


def test_a_tokenizer_without_padding_is_refused() -> None:
    with pytest.raises(ConfigError, match="no padding token"):
        MaskeryCollator(tokenizer(pad_token=None))


def test_the_trainer_takes_it_and_each_epoch_has_fresh_masks(tmp_path: Path) -> None:
    class Recording(MaskeryCollator):
        seen: dict[int, list[torch.Tensor]]

        def __call__(self, rows: Any) -> dict[str, torch.Tensor]:
            batch = super().__call__(rows)
            self.seen.setdefault(self.epoch, []).append(batch["labels"])
            return batch

    collator = Recording(tokenizer())
    collator.seen = {}
    row = make_rows([40])[0]
    trainer = Trainer(
        model=tiny("bert"),
        args=TrainingArguments(
            str(tmp_path),
            num_train_epochs=3,
            per_device_train_batch_size=2,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
        ),
        train_dataset=[row] * 4,  # one row, so that only the epoch can change its masks
        data_collator=collator,
        callbacks=[MaskEpoch(collator)],
    )
    trainer.train()
    assert sorted(collator.seen) == [0, 1, 2]
    assert [len(labels) for labels in collator.seen.values()] == [2, 2, 2]
    for labels in collator.seen.values():
        assert torch.equal(labels[0], labels[1])
    assert not torch.equal(collator.seen[0][0], collator.seen[1][0])
