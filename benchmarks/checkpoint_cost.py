"""What saving costs: the wait for the copy, and the processor time of the thread that writes.

    python benchmarks/checkpoint_cost.py CORPUS.txt [--model minilm] [--steps 6] [--saves 3]

Takes some steps of an ordinary text run, then saves its state as the loop does, and sets both
against the steps between two checkpoints at the default settings. The thread's processor time is
counted in full, as if nothing else could have run beside it: an upper bound.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
import time
from pathlib import Path

from maskery.masking.masker import Masker
from maskery.models.attention import use_fast_dropout
from maskery.runs.text.config import TextRunConfig
from maskery.runs.text.prepare import TextRun
from maskery.tasks.text_mlm import TextMLM
from maskery.training.checkpoint import Checkpoints
from maskery.training.config import TrainingConfig
from maskery.training.snapshot import Position, SnapshotMaker
from maskery.training.stepper import Stepper


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpus")
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--saves", type=int, default=3)
    wanted = parser.parse_args()
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        measure(wanted.corpus, wanted.model, wanted.steps, wanted.saves, Path(folder))


def measure(corpus: str, model: str, num_steps: int, num_saves: int, folder: Path) -> None:
    """One model: seconds of a step, of a copy and of a write."""
    training = TrainingConfig(epochs=1)
    config = TextRunConfig(
        corpus=(corpus,), model=model, training=training, cache_dir=folder / "cache"
    )
    run = TextRun(config, progress=False)
    use_fast_dropout(run.model)
    task = TextMLM(run.model, Masker.of(run.vocabulary))
    stepper = Stepper(task, training, total_steps=run.train.num_steps(0))
    camera, checkpoints = SnapshotMaker(), Checkpoints(folder / "checkpoints")
    steps = []
    for number in range(min(num_steps, stepper.total_steps)):
        batches = run.train.micro_batches(0, number, rank=0, world_size=1)
        prepared = stepper.prepare(number, batches)
        began = time.perf_counter()
        stepper.step(number, prepared)
        steps.append(time.perf_counter() - began)
    waits, writes, processor = [], [], []
    for number in range(num_saves):
        began = time.perf_counter()
        at = Position(step=number, epoch=0, epoch_step=0, identity="cost")
        snapshot = camera.take(task, stepper.optimiser, at)
        waits.append(time.perf_counter() - began)
        began, used = time.perf_counter(), time.process_time()
        checkpoints.begin(snapshot, must=True)
        checkpoints.finish()
        writes.append(time.perf_counter() - began)
        processor.append(time.process_time() - used)
    step, wait = statistics.median(steps), statistics.median(waits[1:] or waits)
    write, cpu = statistics.median(writes), statistics.median(processor)
    between = min(training.checkpoint_every * step, 60 * (training.checkpoint_minutes or 1e9))
    size = sum(tensor.nbytes for file in snapshot.files.values() for tensor in file.values())
    print(f"{model}: {size / 1e6:,.0f} MB a checkpoint")
    print(f"a step of {training.batch_tokens} tokens: {step:.3f} s (median of {len(steps)})")
    print(f"a save: the steps wait {wait:.3f} s (first {waits[0]:.3f} s); its thread takes")
    print(f"  {write:.3f} s, {cpu:.3f} s of them on a processor (medians of {num_saves})")
    print(f"between two saves at the default interval: {between:,.0f} s")
    print(f"saving costs {wait / between:.3%} of that, {(wait + cpu) / between:.3%} at the most")


if __name__ == "__main__":
    main()
