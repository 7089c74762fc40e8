"""Tokenise a generated corpus of a given size and watch this process's memory.

    python benchmarks/corpus_memory.py --gigabytes 1 --folder /tmp/corpus

Memory is flat if the peak stays the same however large the corpus is: run it with 0.1 and with 1.
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from pathlib import Path

import numpy as np
import psutil

from maskery.data.batching import Batching, Template, TextSource
from maskery.data.corpus.config import CorpusConfig
from maskery.data.corpus.reader import Corpus
from maskery.data.tokenise import tokenise
from maskery.models.loading import load_tokenizer

LINE_WORDS = 20


def write_corpus(path: Path, num_bytes: int) -> None:
    """Lines of random English-looking words from the tokenizer's vocabulary."""
    generator = np.random.default_rng(0)
    vocabulary = load_tokenizer("minilm").get_vocab()
    words = np.array(sorted(word for word in vocabulary if word.isalpha() and len(word) > 2))
    written = 0
    with path.open("w", encoding="utf-8") as stream:
        while written < num_bytes:
            table = words[generator.integers(len(words), size=(5000, LINE_WORDS))]
            text = "\n".join(" ".join(row) for row in table) + "\n"
            stream.write(text)
            written += len(text)


class Watch:
    """Samples resident memory that is not shared with files, in a thread."""

    def __init__(self) -> None:
        self.peak = 0.0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._done.set()
        self._thread.join()

    def _sample(self) -> None:
        process = psutil.Process()
        while not self._done.wait(0.2):
            memory = process.memory_info()
            self.peak = max(self.peak, (memory.rss - memory.shared) / 2**20)


def main() -> None:
    """Generate, tokenise, plan, and print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--folder", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    path = arguments.folder / f"corpus-{arguments.gigabytes:g}.txt"
    if not path.exists():
        write_corpus(path, int(arguments.gigabytes * 1e9))
    tokenizer = load_tokenizer("minilm")
    base = psutil.Process().memory_info()
    began = time.perf_counter()
    with Watch() as watch:
        corpus = Corpus.open([str(path)], CorpusConfig())
        store = tokenise(corpus, tokenizer, arguments.folder)
        tokenising = watch.peak
        seconds = time.perf_counter() - began
        source = TextSource(
            store,
            np.arange(store.num_documents),
            Batching(template=Template.of(tokenizer), max_length=512, batch_tokens=4096),
        )
        for step in range(20):
            source.micro_batches(0, step)
    print(
        json.dumps(
            {
                "file_bytes": path.stat().st_size,
                "documents": store.num_documents,
                "tokens": store.num_tokens,
                "tokenising_seconds": round(seconds, 1),
                "million_tokens_per_second": round(store.num_tokens / seconds / 1e6, 3),
                "private_mb_before": round((base.rss - base.shared) / 2**20, 1),
                "private_mb_peak_while_tokenising": round(tokenising, 1),
                "private_mb_peak_with_planning": round(watch.peak, 1),
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
