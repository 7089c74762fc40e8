"""Masking and collating: Maskery beside Hugging Face's collator, in million real tokens a second.

    python benchmarks/collate.py
    python benchmarks/collate.py --corpus notes.txt --model bert-base-uncased --json

Everybody gets the same sequences, in the same batches, one after another in each round, on one
thread. `masker` draws the masks of flat batches; `flat` masks and pads flat batches, as Maskery's
loader holds them; `arrays` and `lists` are the collator called with a Trainer's rows.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from transformers import DataCollatorForLanguageModeling

from maskery.core.batch import TokenBatch
from maskery.data.rows import flatten, tokenise_rows
from maskery.hf.collator import MaskCollator
from maskery.models.loading import load_tokenizer


def read_texts(corpus: Path | None) -> list[str]:
    """The lines of a file, or the paragraphs of Python's language reference."""
    if corpus is not None:
        return corpus.read_text("utf-8").splitlines()
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics)).split("\n\n")


def contenders(model: str, texts: Sequence[str], rows_per_batch: int) -> tuple[int, dict[str, Any]]:
    """The real tokens of one pass, and by name a function that makes the pass."""
    tokenizer = load_tokenizer(model)
    rows = tokenise_rows(texts, tokenizer, max_length=512)
    arrays = [{"input_ids": row["input_ids"]} for row in rows]
    lists = [
        {"input_ids": row["input_ids"].tolist(), "attention_mask": [1] * len(row["input_ids"])}
        for row in rows
    ]

    def batches(source: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
        return [source[i : i + rows_per_batch] for i in range(0, len(source), rows_per_batch)]

    def over(function: Callable[[Any], Any], items: Sequence[Any]) -> Callable[[], None]:
        def make_pass() -> None:
            for item in items:
                function(item)

        return make_pass

    flat = [flatten(batch) for batch in batches(arrays)]
    collator = MaskCollator(tokenizer)

    def flat_collate(batch: TokenBatch) -> dict[str, torch.Tensor]:
        return collator.arrange(collator.masker.mask(batch, epoch=0), [{}])

    hf = {
        kind: DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15, return_tensors=kind)
        for kind in ("pt", "np")
    }
    return sum(batch.num_tokens for batch in flat), {
        "maskery masker": over(lambda batch: collator.masker.mask(batch, epoch=0), flat),
        "maskery flat": over(
            lambda batch: collator.arrange(collator.masker.mask(batch, epoch=0), [{}]), flat
        ),
        "maskery arrays": over(collator, batches(arrays)),
        "maskery lists": over(collator, batches(lists)),
        "hf torch": over(hf["pt"], batches(lists)),
        "hf numpy": over(hf["np"], batches(lists)),
    }


def measure(passes: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each pass, by name; the contenders take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in passes}
    for make_pass in passes.values():
        make_pass()  # caches warm up
    for _ in range(rounds):
        for name, make_pass in passes.items():
            began = time.perf_counter()
            make_pass()
            seconds[name].append(time.perf_counter() - began)
    return seconds


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="minilm", help="whose tokenizer")
    parser.add_argument("--corpus", type=Path, help="a text file, a line a sequence")
    parser.add_argument("--rows", type=int, default=512, help="sequences in a batch")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true", help="print JSON")
    wanted = parser.parse_args()
    torch.set_num_threads(1)
    tokens, passes = contenders(wanted.model, read_texts(wanted.corpus), wanted.rows)
    seconds = measure(passes, wanted.rounds)
    ratios = {
        name: [
            theirs / ours for ours, theirs in zip(seconds[name], seconds["hf torch"], strict=True)
        ]
        for name in passes
    }
    result = {
        "tokens": tokens,
        "rows_per_batch": wanted.rows,
        "rounds": wanted.rounds,
        "contenders": {
            name: {
                "million_tokens_per_second": tokens / statistics.median(seconds[name]) / 1e6,
                "best": tokens / min(seconds[name]) / 1e6,
                "times_hf_torch": statistics.median(ratios[name]),
                "lowest_ratio": min(ratios[name]),
                "highest_ratio": max(ratios[name]),
            }
            for name in passes
        },
    }
    if wanted.json:
        print(json.dumps(result))
        return
    print(f"{tokens:,} real tokens, {wanted.rows} sequences a batch, {wanted.rounds} rounds")
    print(f"{'':16}{'M tok/s':>9}{'best':>9}{'x HF torch':>12}{'(lowest to highest)':>22}")
    for name, entry in result["contenders"].items():
        spread = f"{entry['lowest_ratio']:.0f} to {entry['highest_ratio']:.0f}"
        print(
            f"{name:16}{entry['million_tokens_per_second']:9.2f}{entry['best']:9.2f}"
            f"{entry['times_hf_torch']:12.1f}{spread:>22}"
        )


if __name__ == "__main__":
    main()
