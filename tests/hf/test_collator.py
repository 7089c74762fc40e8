"""The collator masks as the masking engine does, and pads as the tokenizer would."""

from __future__ import annotations

import copy
import itertools
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from tiny_text import lines
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from tokenizers.models import WordLevel
from torch.utils.data import DataLoader
from transformers import (
    DataCollatorForLanguageModeling,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
)

from maskery.core.errors import ConfigError, DataError
from maskery.data.rows import flatten
from maskery.data.tokenise import is_byte_level, starts_word_table
from maskery.hf.collator import MaskCollator
from maskery.masking.config import MaskingConfig
from maskery.masking.policies import Selection

SPECIAL = ["[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]"]
PAD, CLS, SEP, MASK = 1, 2, 3, 4


def tokenizer(**others: Any) -> PreTrainedTokenizerFast:
    words = SPECIAL + [f"w{n}" for n in range(94)]
    names = dict(zip(("unk", "pad", "cls", "sep", "mask"), SPECIAL, strict=True))
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel({w: n for n, w in enumerate(words)}, "[UNK]")),
        **({f"{name}_token": token for name, token in names.items()} | others),
    )


def trained_tokenizer(kind: str, texts: list[str], size: int = 150) -> PreTrainedTokenizerFast:
    """A tokenizer with small pieces, so that many words have several."""
    trainer: Any
    if kind == "wordpiece":
        backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(vocab_size=size, special_tokens=SPECIAL)
    elif kind == "metaspace":
        backend = Tokenizer(models.Unigram())
        backend.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(vocab_size=120, special_tokens=SPECIAL, unk_token="[UNK]")
    else:
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=320,
            special_tokens=SPECIAL,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        )
    backend.train_from_iterator(texts, trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)]
    )
    names = dict(zip(("unk", "pad", "cls", "sep", "mask"), SPECIAL, strict=True))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, **{f"{name}_token": token for name, token in names.items()}
    )


def make_rows(lengths: list[int], seed: int = 0) -> list[dict[str, Any]]:
    generator = np.random.default_rng(seed)
    return [{"input_ids": [CLS, *generator.integers(5, 99, n - 2).tolist(), SEP]} for n in lengths]


def selected(collator: MaskCollator, rows: list[dict[str, Any]]) -> torch.Tensor:
    return collator(rows)["labels"] != -100


@pytest.mark.parametrize("side", ["right", "left"])
def test_rows_of_unequal_length_are_padded_as_the_tokenizer_pads(side: str) -> None:
    rows = make_rows([5, 12, 3, 9])
    tokens = tokenizer(padding_side=side)
    batch = MaskCollator(tokens, pad_to_multiple_of=8)(rows)
    expected = tokens.pad(rows, pad_to_multiple_of=8, return_tensors="pt")
    assert torch.equal(batch["attention_mask"], expected["attention_mask"])
    masked = batch["labels"] != -100
    assert torch.equal(torch.where(masked, batch["labels"], batch["input_ids"]), expected.input_ids)
    assert masked.any(dim=1).all()  # at least one in each row
    assert {t.dtype for t in batch.values()} == {torch.int64}


def test_shares_are_those_of_hugging_faces_collator() -> None:
    rows = make_rows([200] * 400)
    ours = MaskCollator(tokenizer())(rows)
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
    collator = MaskCollator(tokenizer(), seed=5)
    together = collator(rows)
    for number, row in enumerate(rows):
        alone = collator([row])
        length = len(row["input_ids"])
        for name in ("input_ids", "labels"):
            assert torch.equal(alone[name][0], together[name][number, :length])
    backwards = collator(rows[::-1])["labels"].flip(0)
    assert torch.equal(backwards, together["labels"])
    again = MaskCollator(tokenizer(), seed=5)(rows)
    assert all(torch.equal(again[name], value) for name, value in together.items())
    first = selected(collator, rows)
    collator.epoch = 1
    assert not torch.equal(selected(collator, rows), first)
    assert not torch.equal(selected(MaskCollator(tokenizer(), seed=6), rows), first)


def test_a_given_example_id_decides_and_a_missing_one_is_a_hash_of_the_tokens() -> None:
    row, other = make_rows([60, 60])
    collator = MaskCollator(tokenizer())
    named = [row | {"example_id": 7}, other | {"example_id": 7}, row | {"example_id": -7}]
    forms = (7.0, np.float64(7), "7", torch.tensor(7))  # as tables and files may have them
    for form in forms:
        assert flatten([row | {"example_id": form}]).example_ids == [7]
    first, second, third = selected(collator, named)
    assert torch.equal(first, second)
    assert not torch.equal(first, third)
    hashed = flatten([row, other, row]).example_ids
    assert hashed[0] == hashed[2] != hashed[1]
    turned = {"input_ids": row["input_ids"][::-1]}
    assert len(set(flatten([row, turned, {"input_ids": row["input_ids"][:-1]}]).example_ids)) == 3


def test_lists_arrays_and_tensors_are_the_same_and_never_written_to() -> None:
    rows = make_rows([20, 9, 14])
    collator = MaskCollator(tokenizer())
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
    masked = selected(MaskCollator(tokenizer(), config), rows)
    words = masked[:, 1:118].reshape(20, 39, 3)
    assert ((words.sum(dim=2) == 0) | (words.sum(dim=2) == 3)).all()
    assert 0.1 < words.float().mean() < 0.2


def test_a_given_attention_mask_and_token_types_are_kept() -> None:
    row = {"input_ids": [CLS, 9, 8, SEP, PAD], "attention_mask": [1, 1, 1, 1, 0]}
    row["token_type_ids"] = [0, 1, 1, 1, 0]
    batch = MaskCollator(tokenizer())([row, row])
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 0]] * 2
    assert batch["token_type_ids"].tolist() == [[0, 1, 1, 1, 0]] * 2


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([], "no rows"),
        ([{"text": "a"}], "no 'input_ids'"),
        ([{"input_ids": []}] * 2, "no row of a batch has a token"),
        ([{"input_ids": [2, 9, 3], "label": 1}, {"input_ids": [2, 3]}], "no 'label'"),
        ([{"input_ids": [2, 9, 3], "attention_mask": [1]}], "must agree"),
        ([{"input_ids": [2, 9, 3], "word_starts": [True]}], "must agree"),
        # As many in all, and other ones.
        ([{"input_ids": [2, 3], "word_starts": [1] * n} for n in (1, 3)], "must agree"),
        ([{"input_ids": [2, 3]}, {"input_ids": [2, 3], "attention_mask": [1, 1]}], "no 'attention"),
        ([{"input_ids": [2, 3], "word_starts": [1, 1]}, {"input_ids": [2, 3]}], "no 'word_starts'"),
        ([{"input_ids": [2, 3], "example_id": 1}, {"input_ids": [2, 3]}], "no 'example_id'"),
        ([{"input_ids": [2, 3], "example_id": "doc"}], "an example_id is no whole number"),
        ([{"input_ids": [2, 3], "example_id": 1.5}], "an example_id is no whole number"),
        ([{"input_ids": [2, 3], "word_starts": None}], "the word_starts of a row are no list"),
        # As tokenizers return with return_tensors.
        ([{"input_ids": torch.tensor([[2, 9, 3]])}] * 2, r"no list of ids \(they have 2 dim"),
        ([{"input_ids": torch.ones(1, n).long()} for n in (3, 4)], "no list of ids"),
        ([{"input_ids": [[2, 9, 3]]}], "no list of ids"),
        ([{"input_ids": None}], "no list of ids"),
        ([{"input_ids": "a river"}], "no list of ids"),
        ([{"input_ids": torch.tensor([2, 3])}, {"input_ids": [2, 3]}], "no list of ids"),
        (["a river"], "no 'input_ids'"),
        ([torch.tensor([2, 3])], "no 'input_ids'"),
        ({"input_ids": [[2, 9, 3]]}, "no 'input_ids'"),
        ([{"input_ids": [2, 400, 3]}], "token id 400"),
        ([{"input_ids": [2, -1, 3]}], "token id -1"),
    ],
)
def test_rows_that_cannot_be_used_are_refused(rows: Any, says: str) -> None:
    with pytest.raises(DataError, match=says):
        MaskCollator(tokenizer())(rows)


def test_a_tokenizer_without_padding_is_refused() -> None:
    with pytest.raises(ConfigError, match="no padding token"):
        MaskCollator(tokenizer(pad_token=None))


def test_other_columns_pass_through_and_labels_are_replaced() -> None:
    rows = make_rows([6, 9])
    for number, row in enumerate(rows):
        length = len(row["input_ids"])
        row |= {
            "labels": 3,
            "label": number,
            "weight": 0.5 + number,
            "name": f"row {number}",
            "box": [number, 1, 2],
            "token_type_ids": [1] * length,
            "tag_labels": list(range(length)),
            "special_tokens_mask": [1, *[0] * (length - 2), 1],
        }
    batch = MaskCollator(tokenizer())(rows)
    expected = {"input_ids", "attention_mask", "token_type_ids", "labels", "label", "weight"}
    assert batch.keys() == expected | {"name", "box", "tag_labels"}
    assert batch["labels"].shape == (2, 9)
    assert batch["label"].tolist() == [0, 1]
    assert batch["weight"].tolist() == [0.5, 1.5]
    assert batch["name"] == ["row 0", "row 1"]
    assert batch["box"].tolist() == [[0, 1, 2], [1, 1, 2]]
    assert batch["token_type_ids"].tolist() == [[1] * 6 + [0] * 3, [1] * 9]
    assert batch["tag_labels"].tolist() == [[*range(6), -100, -100, -100], [*range(9)]]


def test_a_policy_of_ones_own() -> None:
    class Second:
        def select(self, batch: Any, maskable: Any, rate: float, draws: Any) -> Selection:
            chosen = np.zeros_like(maskable)
            chosen[batch.boundaries[:-1] + 2] = True
            return Selection(selected=chosen & maskable)

    masked = selected(MaskCollator(tokenizer(), policy=Second()), make_rows([9, 12]))
    assert masked.nonzero().tolist() == [[0, 2], [1, 2]]


@pytest.mark.parametrize("kind", ["wordpiece", "metaspace", "byte-level"])
def test_words_are_found_from_the_pieces_as_from_the_text(kind: str) -> None:
    texts = [f"{line}, and 12 {line.title()}s? (No.)" for line in lines(60)]
    tokens = trained_tokenizer(kind, texts)
    rows = [{"input_ids": tokens(text)["input_ids"]} for text in texts]
    found = MaskCollator(tokens, policy="word").flatten(rows)
    encoded = tokens(texts)
    always = starts_word_table(tokens.get_vocab(), is_byte_level(tokens.backend_tokenizer))
    special = set(tokens.all_special_ids)
    seen = 0
    for number, (first, last) in enumerate(itertools.pairwise(found.boundaries)):
        words, ids = encoded.word_ids(number), rows[number]["input_ids"]
        for place in range(1, last - first):
            new = words[place] != words[place - 1] or always[ids[place]]
            new = new or ids[place] in special or ids[place - 1] in special
            assert found.word_starts[first + place] == new, tokens.convert_ids_to_tokens(ids)
            seen += not new
    assert seen > 50


def test_a_tokenizer_without_marks_has_words_of_one_token() -> None:
    assert MaskCollator(tokenizer()).flatten(make_rows([9, 5])).word_starts.all()


class Recording(torch.nn.Module):
    """A model that keeps the labels it is given, by training and evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.trained: list[torch.Tensor] = []
        self.evaluated: list[torch.Tensor] = []

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        assert labels is not None
        (self.trained if self.training else self.evaluated).append(labels)
        return {"loss": self.weight**2, "logits": input_ids}


WORKERS: dict[str, dict[str, Any]] = {
    "none": {},
    "two": {"dataloader_num_workers": 2},
    "persistent": {"dataloader_num_workers": 2, "dataloader_persistent_workers": True},
}


def run(
    folder: Path,
    collator: MaskCollator,
    rows: Any,
    *,
    resume: bool = False,
    **settings: Any,
) -> Recording:
    """Train under a plain Trainer, evaluating after each epoch."""
    model = Recording()
    settings = {"num_train_epochs": 3, "per_device_train_batch_size": 2} | settings
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            str(folder),
            eval_strategy="epoch",
            per_device_eval_batch_size=2,
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            **({"save_strategy": "no"} | settings),
        ),
        train_dataset=rows,
        eval_dataset=rows,
        data_collator=collator,
    )
    trainer.train(resume_from_checkpoint=resume)
    return model


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("dataset", [list, Dataset.from_list])
def test_each_epoch_has_fresh_masks_and_evaluation_the_same(
    tmp_path: Path, workers: str, dataset: Any
) -> None:
    # One row eight times, so that only the epoch can change its masks; with a column that the
    # Trainer drops.
    rows = dataset([{**make_rows([60])[0], "text": "as it was"}] * 8)
    model = run(tmp_path, MaskCollator(tokenizer(), seed=3), rows, **WORKERS[workers])
    assert len(model.trained) == 12
    epochs = [torch.cat(model.trained[first : first + 4]) for first in (0, 4, 8)]
    for labels in epochs:
        assert (labels == labels[0]).all()  # the same row in every batch of an epoch
    assert len({tuple(labels[0].tolist()) for labels in epochs}) == 3
    assert len(model.evaluated) == 12
    assert all(torch.equal(labels, model.evaluated[0]) for labels in model.evaluated)
    # The same seed, the same masks, whatever the workers; and those of the engine itself.
    own = MaskCollator(tokenizer(), seed=3)
    for epoch, labels in enumerate(epochs):
        own.epoch = epoch
        assert torch.equal(own(make_rows([60]))["labels"][0], labels[0])


@pytest.mark.parametrize("workers", WORKERS)
def test_a_schedule_follows_the_step_under_accumulation(tmp_path: Path, workers: str) -> None:
    rows = make_rows([402] * 10)
    schedule = {"mask_rate_end": 0.8, "mask_schedule": "linear"}
    collator = MaskCollator(tokenizer(), rate=0.1, **schedule)
    accumulated = {"gradient_accumulation_steps": 2, "num_train_epochs": 2}
    model = run(tmp_path, collator, rows, **accumulated, **WORKERS[workers])
    shares = [float((labels != -100).float().mean()) * 402 / 400 for labels in model.trained]
    # Two batches a step, the last of an epoch with one; 6 steps from 0.1 towards 0.8.
    rates = np.array([0.1 + 0.7 * step / 6 for step in (0, 0, 1, 1, 2, 3, 3, 4, 4, 5)])
    # 800 tokens a batch: five standard errors, less than a step's 0.117.
    assert (np.abs(shares - rates) < 5 * np.sqrt(rates * (1 - rates) / 800)).all()


@pytest.mark.parametrize("workers", ["none", "persistent"])
def test_a_run_that_is_resumed_goes_on_with_the_masks_it_would_have_had(
    tmp_path: Path, workers: str
) -> None:
    settings = {
        "gradient_accumulation_steps": 2,
        "save_strategy": "steps",
        "save_steps": 4,
        "num_train_epochs": 2,
        **WORKERS[workers],
    }
    schedule = {"rate": 0.1, "mask_rate_end": 0.8, "mask_schedule": "linear"}
    rows = make_rows([40] * 12)  # 6 batches, 3 steps an epoch: step 4 is in the second
    whole = run(tmp_path, MaskCollator(tokenizer(), **schedule), rows, **settings)
    shutil.rmtree(tmp_path / "checkpoint-6")
    again = run(tmp_path, MaskCollator(tokenizer(), **schedule), rows, resume=True, **settings)
    assert len(again.trained) == 4
    for labels, before in zip(again.trained, whole.trained[-4:], strict=True):
        assert torch.equal(labels, before)


@pytest.mark.parametrize("persistent", [False, True])
def test_a_loop_of_ones_own_sets_the_epoch_and_workers_see_it(persistent: bool) -> None:
    collator = MaskCollator(tokenizer())
    loader: DataLoader[Any] = DataLoader(
        make_rows([50] * 4),  # type: ignore[arg-type]
        batch_size=2,
        num_workers=2,
        persistent_workers=persistent,
        collate_fn=collator,
    )
    alone = MaskCollator(tokenizer())
    for epoch in (0, 1, 5, 1):
        collator.epoch = alone.epoch = epoch
        collator.progress = epoch / 7
        assert collator.progress == epoch / 7  # to the bit, so that masks are those of any loop
        labels = torch.cat([batch["labels"] for batch in loader])
        assert torch.equal(labels, alone(make_rows([50] * 4))["labels"])


def test_whole_words_fall_together_in_an_ordinary_dataset(tmp_path: Path) -> None:
    tokens = trained_tokenizer("wordpiece", lines(200), size=60)
    rows = Dataset.from_dict(dict(tokens(lines(40))))
    model = run(tmp_path, MaskCollator(tokens, policy="word", rate=0.3), rows, num_train_epochs=1)
    together = 0
    for labels in model.trained:
        for row in labels.tolist():
            pieces = tokens.convert_ids_to_tokens([max(label, 0) for label in row])
            for place, piece in enumerate(pieces):
                if row[place] != -100 and piece.startswith("##"):
                    together += 1
                    assert row[place - 1] != -100
    assert together > 5
