"""The contenders: each turns a model and a corpus into steps that can be timed.

A contender's `turn` trains on at least a number of real tokens and says how many there were and how
long it took. Making the batches is inside the time for everybody; loading and set-up are outside.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import (
    DataCollatorForLanguageModeling,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from bench.config import BenchConfig
from maskery.core.system import keep_freed_memory
from maskery.core.task import Prepared
from maskery.data.batching import Batching, Template, TextSource
from maskery.data.corpus.config import CorpusConfig
from maskery.data.corpus.reader import Corpus
from maskery.data.tokenise import tokenise
from maskery.models.attention import use_fast_dropout
from maskery.models.layout import can_pack
from maskery.models.loading import load_masked_lm
from maskery.models.masked_lm import MaskedLanguageModel
from maskery.runs.text.config import TextRunConfig
from maskery.runs.text.prepare import compiled, text_parts
from maskery.tasks.text_mlm import make_text_task
from maskery.training.config import Precision, TrainingConfig
from maskery.training.stepper import Prefetch, Stepper

BLOCK = 512
# More than any bench reads.
EPOCHS = 100


@dataclass(frozen=True, kw_only=True)
class Turn:
    """The work of a contender in one round.

    Attributes:
        real_tokens: Tokens that are not padding.
        computed_tokens: Tokens that went through the encoder, padding included.
        seconds: Wall-clock time.
    """

    real_tokens: int
    computed_tokens: int
    seconds: float


Take = Callable[[int], Turn]


def build(name: str, config: BenchConfig) -> Take:
    """Set a contender up; the result takes one turn of at least so many real tokens."""
    loaded = load_masked_lm(
        config.model,
        attention_dropout=config.dropout == "model",
        hidden_dropout=None if config.dropout == "model" else 0.0,
    )
    return CONTENDERS[name](loaded.model, loaded.tokenizer, config)


def maskery(
    hf: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    config: BenchConfig,
    *,
    precision: Precision = "auto",
) -> Take:
    """Maskery's own loop, as `maskery train text` runs it.

    Packed where possible, the next batch prepared in a thread, bfloat16 where it is faster.
    """
    keep_freed_memory()
    folder = Path(tempfile.mkdtemp(prefix="maskery-bench-"))
    corpus = Corpus.open([str(config.corpus)], CorpusConfig())
    store = tokenise(corpus, tokenizer, folder, progress=False)
    pad = int(tokenizer.pad_token_id or 0)
    packed, _ = can_pack(hf, pad)
    model = MaskedLanguageModel(hf, packed=packed, pad_token_id=pad)
    use_fast_dropout(model)
    settings = TrainingConfig(
        epochs=EPOCHS,
        batch_tokens=config.batch_tokens,
        learning_rate=5e-5,
        seed=config.seed,
        compile=config.compile,
        precision=precision,
    )
    source = TextSource(
        store,
        torch.arange(store.num_documents).numpy(),
        Batching(
            template=Template.of(tokenizer),
            max_length=BLOCK,
            batch_tokens=config.batch_tokens,
            layout="packed" if packed else "padded",
            seed=config.seed,
        ),
    )
    run = TextRunConfig(corpus=(str(config.corpus),), training=settings)
    parts = text_parts(run, model, tokenizer)
    task = make_text_task(compiled(parts, run, source) if config.compile else parts)
    total = sum(source.num_steps(epoch) for epoch in range(EPOCHS))
    stepper = Stepper(task, settings, total_steps=total)

    def prepared() -> Iterator[tuple[int, list[Prepared]]]:
        number = 0
        for epoch in range(EPOCHS):
            for index in range(source.num_steps(epoch)):
                batches = source.micro_batches(epoch, index, rank=0, world_size=1)
                yield number, stepper.prepare(number, batches, epoch=epoch)
                number += 1

    steps = Prefetch(prepared()).__enter__()

    def take(tokens: int) -> Turn:
        done = 0
        began = time.perf_counter()
        while done < tokens:
            number, micro_batches = next(steps)
            stepper.step(number, micro_batches)
            done += sum(micro.num_tokens for micro in micro_batches)
        wait_for_device()
        return Turn(real_tokens=done, computed_tokens=done, seconds=time.perf_counter() - began)

    return take


def seed_loop(hf: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, config: BenchConfig) -> Take:
    """The seed document's hand-written loop: everything padded to 512, loss on every token."""
    texts = config.corpus.read_text("utf-8").split("\n")
    inputs = tokenizer(
        texts, return_tensors="pt", max_length=BLOCK, truncation=True, padding="max_length"
    )
    labels = inputs.input_ids.detach().clone()
    special = torch.tensor(tokenizer.all_special_ids)
    generator = torch.Generator().manual_seed(config.seed)
    chosen = torch.rand(inputs.input_ids.shape, generator=generator) < 0.15
    chosen &= ~torch.isin(inputs.input_ids, special)
    ids = inputs.input_ids.masked_fill(chosen, tokenizer.mask_token_id)
    rows = torch.utils.data.TensorDataset(ids, inputs.attention_mask, labels)
    loader = torch.utils.data.DataLoader(rows, batch_size=16, shuffle=True, generator=generator)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    hf.to(device).train()
    optimiser = torch.optim.AdamW(hf.parameters(), lr=5e-5)

    def forever() -> Iterator[list[torch.Tensor]]:
        while True:
            yield from loader

    batches = forever()

    def take(tokens: int) -> Turn:
        real = computed = 0
        began = time.perf_counter()
        while real < tokens:
            input_ids, attention_mask, targets = (part.to(device) for part in next(batches))
            optimiser.zero_grad()
            loss = hf(input_ids, attention_mask=attention_mask, labels=targets).loss
            loss.backward()
            optimiser.step()
            loss.item()
            real += int(attention_mask.sum())
            computed += input_ids.numel()
        return Turn(real_tokens=real, computed_tokens=computed, seconds=time.perf_counter() - began)

    return take


def hf_blocks(
    hf: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    config: BenchConfig,
    *,
    half: bool = False,
) -> Take:
    """HF's recipe: the corpus end to end in 512-token blocks, its collator, its Trainer.

    The Trainer's defaults, which are float32; `half` gives it bfloat16.
    """
    ids: list[int] = []
    for text in config.corpus.read_text("utf-8").split("\n"):
        ids += tokenizer(text, return_special_tokens_mask=False)["input_ids"]
    blocks = [ids[i : i + BLOCK] for i in range(0, len(ids) - BLOCK + 1, BLOCK)]
    return _hf_trainer(hf, tokenizer, blocks, config.batch_tokens // BLOCK, config, half)


def hf_lines(hf: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, config: BenchConfig) -> Take:
    """HF's recipe line by line: batches of 8, padded to the longest."""
    texts = [text for text in config.corpus.read_text("utf-8").split("\n") if text.strip()]
    rows = tokenizer(texts, truncation=True, max_length=BLOCK)["input_ids"]
    return _hf_trainer(hf, tokenizer, rows, 8, config)


class _Stopwatch(TrainerCallback):  # type: ignore[misc]
    """Times a Trainer from its first step's start to its last step's end."""

    def __init__(self) -> None:
        self.began = 0.0
        self.ended = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The first step begins."""
        del args, control, kwargs
        if state.global_step == 0:
            self.began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A step ended, perhaps the last."""
        del args, state, control, kwargs
        wait_for_device()
        self.ended = time.perf_counter()


class _Counting:
    """HF's collator, counting real and computed tokens of each batch that it hands out."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.collate = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15)
        self.batches: list[tuple[int, int]] = []

    def __call__(self, rows: list[dict[str, Any]]) -> Any:
        batch = self.collate(rows)
        self.batches.append((int(batch["attention_mask"].sum()), batch["input_ids"].numel()))
        return batch


def _hf_trainer(
    hf: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[list[int]],
    batch_size: int,
    config: BenchConfig,
    half: bool = False,
) -> Take:
    dataset = [{"input_ids": row, "attention_mask": [1] * len(row)} for row in rows]
    mean = sum(map(len, rows)) / len(rows)
    turns = 0

    def take(tokens: int) -> Turn:
        nonlocal turns
        turns += 1
        watch, collator = _Stopwatch(), _Counting(tokenizer)
        with tempfile.TemporaryDirectory() as folder:
            arguments = TrainingArguments(
                output_dir=folder,
                per_device_train_batch_size=batch_size,
                max_steps=max(1, -(-tokens // int(mean * batch_size))),
                save_strategy="no",
                report_to=[],
                disable_tqdm=True,
                logging_strategy="no",
                seed=config.seed + turns,
                bf16=half,
                use_cpu=not torch.cuda.is_available(),  # else bf16 is refused
            )
            trainer = Trainer(
                model=hf,
                args=arguments,
                train_dataset=dataset,
                data_collator=collator,
                callbacks=[watch],
            )
            trainer.remove_callback(PrinterCallback)
            trainer.train()
        # The Trainer's loader is a batch ahead: the last one is collated and never trained on.
        trained = collator.batches[: trainer.state.global_step]
        real, computed = map(sum, zip(*trained, strict=True))
        seconds = watch.ended - watch.began
        return Turn(real_tokens=real, computed_tokens=computed, seconds=seconds)

    return take


def wait_for_device() -> None:
    """A GPU works on after its calls return; a clock must not be read before it is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


CONTENDERS: dict[str, Callable[[PreTrainedModel, PreTrainedTokenizerBase, BenchConfig], Take]] = {
    "maskery": maskery,
    "maskery-fp32": partial(maskery, precision="fp32"),
    "hf-blocks": hf_blocks,
    "hf-blocks-bf16": partial(hf_blocks, half=True),
    "hf-lines": hf_lines,
    "seed": seed_loop,
}
