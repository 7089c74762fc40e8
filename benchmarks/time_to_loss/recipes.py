"""The tracks, and the recipes that race on them; each trains and leaves a Hugging Face folder."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import DataCollatorForLanguageModeling, Trainer, TrainingArguments

from maskery import MaskingConfig, TextRunConfig, TrainingConfig, evaluate
from maskery.data.corpus.config import CorpusConfig
from maskery.models.loading import load_masked_lm, new_masked_lm
from maskery.runs.text.quickstart import write_corpus
from maskery.runs.text.run import train_text
from maskery.tasks.text_mlm_config import TextMLMConfig

BLOCK = 512
BATCH_TOKENS = 4096
VOCABULARY = 8000
HELD_OUT_EVERY = 10


@dataclass(frozen=True, kw_only=True)
class Track:
    """A text, a start, and the loss to reach."""

    model: str  # A model, or scratch:SIZE
    target: float  # Mean nats on frozen masks, 15% of the held-out tokens


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What is tuned of a recipe on a track."""

    steps: int  # Optimiser steps: the whole schedule
    learning_rate: float
    mask_rate: float = 0.15
    batch_tokens: int = BATCH_TOKENS
    precision_bits: int = 32  # 16: bfloat16; Maskery chooses by itself


TRACKS = {
    "meditations": Track(model="minilm", target=5.5),
    "reference": Track(model="minilm", target=3.6),
    "scratch": Track(model="scratch:tiny", target=5.0),
}


def write_texts(track: str, corpus: Path | None, folder: Path) -> None:
    """Write `train.txt` and `held_out.txt`, an example a line: every tenth is held out."""
    if (folder / "held_out.txt").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    if track == "meditations":
        if corpus is None:
            raise SystemExit("the track meditations needs --corpus FILE: lines of text")
        examples = corpus.read_text("utf-8").splitlines()
    else:
        examples = write_corpus(folder).read_text("utf-8").split("\n\n")
    # On one line, so that every recipe reads the same examples.
    lines = [" ".join(example.split()) for example in examples if example.strip()]
    held_out = lines[::HELD_OUT_EVERY]
    train = [line for i, line in enumerate(lines) if i % HELD_OUT_EVERY]
    (folder / "train.txt").write_text("\n".join(train) + "\n", "utf-8")
    (folder / "held_out.txt").write_text("\n".join(held_out) + "\n", "utf-8")


def run_recipe(name: str, recipe: Recipe, track: str, folder: Path, seed: int) -> dict[str, float]:
    """Train, and score what came of it on the frozen masks of the held-out lines."""
    output = folder / "runs" / f"{name}-{seed}"
    shutil.rmtree(output, ignore_errors=True)
    seconds = TRAIN[name](recipe, TRACKS[track].model, folder, output, seed)
    held_out = (folder / "held_out.txt").read_text("utf-8").splitlines()
    loss = evaluate(output / "model", held_out).scores.loss
    return {"seconds": round(seconds, 2), "loss": round(loss.value, 4)}


def train_maskery(recipe: Recipe, model: str, folder: Path, output: Path, seed: int) -> float:
    """`maskery train text`; nothing is held to the start, for words alone are judged here."""
    scratch = model.startswith("scratch:")
    result = train_text(
        TextRunConfig(
            corpus=(str(folder / "train.txt"),),
            eval_data=(str(folder / "held_out.txt"),),
            model=model,
            output=output,
            vocab_size=VOCABULARY,
            hidden_dropout=0.0,
            head_first="off",
            reading=CorpusConfig(unit="line"),
            masking=MaskingConfig(mask_rate=recipe.mask_rate),
            objectives=TextMLMConfig(keep_embedding="off"),
            training=TrainingConfig(
                epochs=1000,
                max_steps=recipe.steps,
                batch_tokens=recipe.batch_tokens,
                learning_rate=recipe.learning_rate,
                head_learning_rate=None if scratch else max(recipe.learning_rate, 1e-3),
                optimiser="muon" if scratch else "adamw",
                warmup_share=0.1,
                seed=seed,
                checkpoint_every=10**9,
            ),
        ),
        progress=False,
    )
    return result.summary.seconds


def start(model: str, folder: Path, seed: int, *, dropout: float | None) -> tuple[Any, Any]:
    """Return the model and tokenizer that every other recipe starts from."""
    if not model.startswith("scratch:"):
        loaded = load_masked_lm(model, attention_dropout=dropout is None, hidden_dropout=dropout)
        return loaded.model, loaded.tokenizer
    # The vocabulary is learnt once, by Maskery's first run: the loss must count the same tokens.
    tokenizer = load_masked_lm(str(folder / "runs/maskery-0/model")).tokenizer
    loaded = new_masked_lm(model.removeprefix("scratch:"), tokenizer, seed=seed)
    return loaded.model, tokenizer


def train_hf(recipe: Recipe, model: str, folder: Path, output: Path, seed: int) -> float:
    """The Trainer as its examples have it: 512-token blocks, its collator, a linear schedule.

    Without dropout too, and with fused AdamW: both are faster and no worse here.
    """
    torch.manual_seed(seed)
    hf, tokenizer = start(model, folder, seed, dropout=0.0)
    ids: list[int] = []
    for line in (folder / "train.txt").read_text("utf-8").splitlines():
        ids += tokenizer(line)["input_ids"]
    blocks = [ids[i : i + BLOCK] for i in range(0, len(ids) - BLOCK + 1, BLOCK)]
    trainer = Trainer(
        model=hf,
        args=TrainingArguments(
            output_dir=str(output / "trainer"),
            per_device_train_batch_size=recipe.batch_tokens // BLOCK,
            max_steps=recipe.steps,
            learning_rate=recipe.learning_rate,
            warmup_steps=recipe.steps // 10,
            optim="adamw_torch_fused",
            weight_decay=0.01,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            logging_strategy="no",
            seed=seed,
            bf16=recipe.precision_bits == 16,
            use_cpu=not torch.cuda.is_available(),
        ),
        train_dataset=[{"input_ids": block, "attention_mask": [1] * BLOCK} for block in blocks],
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm_probability=recipe.mask_rate),
    )
    began = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - began
    hf.save_pretrained(output / "model")
    tokenizer.save_pretrained(output / "model")
    return seconds


def train_seed(recipe: Recipe, model: str, folder: Path, output: Path, seed: int) -> float:
    """The seed document's loop: every line padded to 512, masked once, the loss on all tokens."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    hf, tokenizer = start(model, folder, seed, dropout=None)
    lines = (folder / "train.txt").read_text("utf-8").splitlines()
    rows = tokenizer(
        lines, return_tensors="pt", max_length=BLOCK, truncation=True, padding="max_length"
    )
    chosen = torch.rand(rows.input_ids.shape, generator=generator) < recipe.mask_rate
    chosen &= ~torch.isin(rows.input_ids, torch.tensor(tokenizer.all_special_ids))
    masked = rows.input_ids.masked_fill(chosen, tokenizer.mask_token_id)
    data = torch.utils.data.TensorDataset(masked, rows.attention_mask, rows.input_ids)
    loader = torch.utils.data.DataLoader(data, batch_size=16, shuffle=True, generator=generator)
    optimiser = torch.optim.AdamW(hf.parameters(), lr=recipe.learning_rate)
    hf.train()
    done, began = 0, time.perf_counter()
    while done < recipe.steps:
        for ids, attended, labels in loader:
            optimiser.zero_grad()
            hf(ids, attention_mask=attended, labels=labels).loss.backward()
            optimiser.step()
            done += 1
            if done == recipe.steps:
                break
    seconds = time.perf_counter() - began
    hf.save_pretrained(output / "model")
    tokenizer.save_pretrained(output / "model")
    return seconds


TRAIN: dict[str, Callable[[Recipe, str, Path, Path, int], float]] = {
    "maskery": train_maskery,
    "hf": train_hf,
    "seed": train_seed,
}
RECIPES: dict[str, dict[str, Recipe]] = {
    "maskery": {
        "meditations": Recipe(steps=30, learning_rate=1e-3, mask_rate=0.3, batch_tokens=2048),
        "reference": Recipe(steps=48, learning_rate=5e-4, mask_rate=0.3, batch_tokens=2048),
        "scratch": Recipe(steps=30, learning_rate=2e-3, mask_rate=0.15, batch_tokens=2048),
    },
    "hf": {
        "meditations": Recipe(steps=120, learning_rate=5e-4, batch_tokens=1024),
        "reference": Recipe(steps=190, learning_rate=2.5e-4, batch_tokens=1024, precision_bits=16),
        "scratch": Recipe(steps=100, learning_rate=1e-3),
    },
    "seed": {name: Recipe(steps=40, learning_rate=5e-5) for name in TRACKS},
}
