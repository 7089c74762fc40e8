"""Shards of a generated corpus: memory while training, and the time to go on in the middle.

    python benchmarks/shards_memory.py --gigabytes 0.5 --folder /tmp/shards
    python benchmarks/shards_memory.py --gigabytes 5 --folder /tmp/shards --write shards

The text is generated, tokenised by `make_shards` and trained on by a tiny model, each in a process
of its own, whose peak resident memory is printed. With `--write shards` the text is left out:
random tokens go through the same writer and records, which is as much to stream, minutes earlier.
Memory is flat if the peak of training stays the same however large the corpus is.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from transformers import BertConfig, BertForMaskedLM, BertTokenizer

from maskery.core.batch import vocabulary_size
from maskery.data.batching import Batching, Template
from maskery.data.corpus.config import CorpusConfig, ShardingConfig
from maskery.data.corpus.examples import example_id
from maskery.data.corpus.reader import Corpus
from maskery.data.shards.making import about_tokenizer, claim_folder, make_shards, write_manifest
from maskery.data.shards.pieces import Job, PieceRecord, write_record, write_stretch
from maskery.data.shards.places import open_place
from maskery.data.shards.source import ShardSource, TokenShards
from maskery.runs.text.config import TextRunConfig
from maskery.runs.text.run import train_text
from maskery.training.config import TrainingConfig

NUM_WORDS, LINE_WORDS = 2000, 20
SYLLABLES = ["ra", "no", "ti", "ka", "mo", "le", "su", "vi", "do", "pen"]


def words() -> list[str]:
    """Made-up words, each one token."""
    generator = np.random.default_rng(0)
    found: dict[str, None] = {}
    while len(found) < NUM_WORDS:
        found["".join(generator.choice(SYLLABLES, generator.integers(1, 5)))] = None
    return list(found)


def save_model(folder: Path) -> Path:
    """A model of a few thousand parameters beside the vocabulary."""
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words()]
    tokenizer = BertTokenizer(vocab={p: n for n, p in enumerate(pieces)}, model_max_length=128)
    torch.manual_seed(0)
    model = BertForMaskedLM(
        BertConfig(
            vocab_size=len(pieces),
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=128,
            pad_token_id=0,
        )
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_corpus(path: Path, num_bytes: int) -> None:
    """Lines of random words."""
    generator, table, written = np.random.default_rng(1), np.array(words()), 0
    with path.open("w", encoding="utf-8") as stream:
        while written < num_bytes:
            rows = table[generator.integers(NUM_WORDS, size=(5000, LINE_WORDS))]
            text = "\n".join(" ".join(row) for row in rows) + "\n"
            stream.write(text)
            written += len(text)


def write_shards(folder: Path, tokenizer: BertTokenizer, num_bytes: int) -> None:
    """As many shards as that much text makes, of random tokens."""
    generator, config = np.random.default_rng(2), ShardingConfig()
    bytes_a_line = LINE_WORDS * (float(np.mean([len(word) for word in words()])) + 1)
    lines = int(config.shard_bytes / bytes_a_line)
    count = max(1, round(num_bytes / config.shard_bytes))
    claim_folder(folder, "0" * 32)
    job = Job(
        corpus=Corpus(config=CorpusConfig()),
        config=config,
        folder=folder,
        pieces=((),) * count,
        tokenizer=tokenizer,
        fingerprint="0" * 32,
        vocab_size=vocabulary_size(tokenizer),
        about=about_tokenizer(folder, tokenizer),
    )
    for number in range(count):
        ids = [example_id(f"{number} {line}") for line in range(lines)]

        def batches(ids: list[int] = ids) -> Iterator[tuple[list[str], list[int]]]:
            yield [""] * len(ids), ids

        def encode(texts: list[str]) -> Any:
            tokens = generator.integers(5, 5 + NUM_WORDS, len(texts) * LINE_WORDS)
            return tokens, np.ones(len(tokens), np.bool_), np.full(len(texts), LINE_WORDS)

        write_stretch(f"{number:06d}-0000", batches(), job, encode)
        write_record(f"{number:06d}", PieceRecord(shards=1, report={}), job)
    write_manifest(job)


def tokenise(corpus: Path, shards: Path, model: Path) -> dict[str, Any]:
    """Make the shards from text."""
    tokenizer = BertTokenizer.from_pretrained(model)
    began = time.perf_counter()
    made = make_shards(
        Corpus.open([str(corpus)]), tokenizer, shards, ShardingConfig(workers=1), progress=False
    )
    seconds = time.perf_counter() - began
    return {
        "tokenising_seconds": round(seconds, 1),
        "million_tokens_per_second": round(made.tokens_made / seconds / 1e6, 3),
    }


def train(shards: Path, model: Path, steps: int) -> dict[str, Any]:
    """Train for some steps and tell the peak of this process's memory."""
    before = memory()
    output = shards.with_name(f"run-{shards.name}-{time.time_ns()}")
    result = train_text(
        TextRunConfig(
            corpus=(str(shards),),
            model=str(model),
            output=output,
            cache_dir=shards.with_name("cache"),
            training=TrainingConfig(max_steps=steps, epochs=1, batch_tokens=4096, log_every=50),
        ),
        progress=False,
    )
    source = TokenShards(open_place(str(shards), shards))
    return {
        "shards": len(source.manifest.shards),
        "tokens": source.manifest.tokens,
        "steps": result.summary.steps,
        "tokens_per_second": round(result.summary.tokens / result.summary.seconds),
        "mb_before": before,
        "peak_mb": peak(),
    }


def stream(shards: Path, blocks: int) -> dict[str, Any]:
    """Read batches of several blocks of shards without a model: nothing else moves memory."""
    before = memory()
    source = make_source(shards)
    epoch, batches = source.epoch(0), 0
    began = time.perf_counter()
    tokens = 0
    for step in range(int(epoch.firsts[min(blocks, len(epoch.blocks))])):
        tokens += sum(batch.num_tokens for batch in source.micro_batches(0, step))  # type: ignore[union-attr]
        batches += 1
    seconds = time.perf_counter() - began
    source.close()
    return {
        "batches": batches,
        "blocks": min(blocks, len(epoch.blocks)),
        "million_tokens_per_second": round(tokens / seconds / 1e6, 2),
        "mb_before": before,
        "peak_mb": peak(),
    }


def resume(shards: Path) -> dict[str, Any]:
    """The time from nothing to a batch of the middle of the second epoch."""
    began = time.perf_counter()
    source = make_source(shards)
    middle = source.num_steps(1) // 2
    counted = time.perf_counter() - began
    source.micro_batches(1, middle)
    seconds = time.perf_counter() - began
    source.close()
    return {
        "steps_of_an_epoch": source.num_steps(1),
        "seconds_to_count_steps": round(counted, 2),
        "seconds_to_first_batch": round(seconds, 2),
    }


def resume_command(shards: Path, model: Path) -> dict[str, Any]:
    """The time from the start of `maskery train text ... --resume auto` to its first new step.

    A run of these shards is stopped after its first steps, and its checkpoint is then dated to the
    middle of its second epoch, which the same run would take hours to reach.
    """
    output = shards.with_name(f"resumed-{shards.name}-{time.time_ns()}")
    command = [sys.executable, "-m", "maskery.cli.main", "train", "text", str(shards)]
    command += ["--model", str(model), "--output", str(output), "--resume", "auto"]
    command += ["--batch-tokens", "4096", "--epochs", "2", "--log-every", "1"]
    until_logged(command, output, after=0)
    middle = make_source(shards)
    steps = middle.num_steps(0), middle.num_steps(1)
    middle.close()
    position = {"epoch": 1, "epoch_step": steps[1] // 2, "step": steps[0] + steps[1] // 2}
    checkpoint = max((output / "checkpoints").glob("step-????????"))
    state = json.loads((checkpoint / "state.json").read_text("utf-8"))
    (checkpoint / "state.json").write_text(json.dumps({**state, **position}), "utf-8")
    manifest = json.loads((checkpoint / "manifest.json").read_text("utf-8"))
    manifest["state.json"] = hashlib.sha256((checkpoint / "state.json").read_bytes()).hexdigest()
    (checkpoint / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    checkpoint.rename(checkpoint.with_name(f"step-{position['step']:08d}"))
    seconds = []
    for number in range(3):
        copy = output.with_name(f"{output.name}-{number}")
        shutil.copytree(output, copy)
        again = [str(copy) if part == str(output) else part for part in command]
        seconds.append(until_logged(again, copy, after=position["step"]))
    return {
        "from_step": position["step"],
        "seconds_to_first_step": [round(value, 2) for value in seconds],
    }


def until_logged(command: list[str], run: Path, *, after: int) -> float:
    """Seconds until a run logs a step beyond `after`; it is then stopped as a user would."""
    began = time.perf_counter()
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        while not any(step > after for step in logged(run / "metrics.jsonl")):
            if process.poll() is not None:
                raise SystemExit(f"the run ended with {process.returncode}: {' '.join(command)}")
            time.sleep(0.005)
        seconds = time.perf_counter() - began
        process.terminate()
    return seconds


def logged(path: Path) -> list[int]:
    """The steps of the lines about training so far."""
    if not path.exists():
        return []
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines() if line[-1:] == "}"]
    return [row["step"] for row in rows if row["kind"] == "train"]


def make_source(shards: Path) -> ShardSource:
    """As a run makes it."""
    opened = TokenShards(open_place(str(shards), shards))
    template = Template(prefix=(2,), suffix=(3,))
    return ShardSource(opened, Batching(template=template, max_length=128, batch_tokens=4096))


def memory() -> float:
    """Resident memory of this process in MB, mapped files included."""
    return round(psutil.Process().memory_info().rss / 1e6, 1)


def peak() -> float:
    """The most that `memory` has been, in MB."""
    status = Path("/proc/self/status").read_text("utf-8")
    kilobytes = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
    return round(int(kilobytes) * 1024 / 1e6, 1)


def main() -> None:
    """Run each part in a process of its own and print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=0.5)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--write", choices=("text", "shards"), default="text")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--blocks", type=int, default=8)
    parser.add_argument(
        "--part", choices=("tokenise", "train", "stream", "resume", "resume-command")
    )
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    model, name = folder / "model", f"{arguments.write}-{arguments.gigabytes:g}"
    corpus, shards = folder / f"{name}.txt", folder / f"shards-{name}"
    torch.set_num_threads(1)
    if arguments.part == "tokenise":
        print(json.dumps(tokenise(corpus, shards, model)))
    elif arguments.part == "train":
        print(json.dumps(train(shards, model, arguments.steps)))
    elif arguments.part == "stream":
        print(json.dumps(stream(shards, arguments.blocks)))
    elif arguments.part == "resume":
        print(json.dumps(resume(shards)))
    elif arguments.part == "resume-command":
        print(json.dumps(resume_command(shards, model)))
    if arguments.part:
        return
    if not model.exists():
        save_model(model)
    parts = ["train", "stream", "resume", "resume-command"]
    if arguments.write == "shards":
        if not (shards / "shards.json").exists():
            write_shards(
                shards, BertTokenizer.from_pretrained(model), int(arguments.gigabytes * 1e9)
            )
    else:
        if not corpus.exists():
            write_corpus(corpus, int(arguments.gigabytes * 1e9))
        parts.insert(0, "tokenise")
    figures: dict[str, Any] = {"gigabytes": arguments.gigabytes, "written": arguments.write}
    for part in parts:
        command = [sys.executable, __file__, *sys.argv[1:], "--part", part]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        figures[part] = json.loads(done.stdout.splitlines()[-1])
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
