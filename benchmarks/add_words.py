"""Tokenising with many new words: a longer WordPiece vocabulary beside added tokens.

    python benchmarks/add_words.py meditations.txt
    python benchmarks/add_words.py notes.txt --words 5000 --json

The new words are the corpus's own that are of several pieces, or made up where there are too few.
Each way tokenises the same lines in interleaved rounds, on one thread.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import re
import statistics
import time
from collections import Counter
from pathlib import Path
from typing import Any

os.environ["TOKENIZERS_PARALLELISM"] = "false"

from tokenizers import AddedToken

from maskery.data.added_words import add_words
from maskery.data.corpus.sentences import Line
from maskery.models.loading import load_tokenizer

LETTERS = "bcdfghklmnprstvz"


def new_words(tokenizer: Any, text: str, count: int) -> list[str]:
    """Words of several pieces, the most frequent first, filled up with made-up ones."""
    counts = Counter(re.findall(r"[a-z]+", text.lower()))
    found = [word for word, _ in counts.most_common() if len(tokenizer.tokenize(word)) > 1]
    number = 0
    while len(found) < count:
        digits = [LETTERS[(number >> (4 * place)) % 16] for place in range(5)]
        found.append("q" + "a".join(digits))
        number += 1
    return found[:count]


def added_tokens(tokenizer: Any, words: list[str]) -> Any:
    """The tokenizer with added tokens, which are searched for in every text."""
    grown = copy.deepcopy(tokenizer)
    grown.add_tokens([AddedToken(word, single_word=True, lstrip=True) for word in words])
    return grown


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--words", type=int, nargs="+", default=[100, 1000, 5000])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    text = arguments.corpus.read_text("utf-8")
    lines = text.splitlines()
    plain = load_tokenizer(arguments.model)
    ways = {"as it was": plain}
    for count in arguments.words:
        words = new_words(plain, text, count)
        numbered = [Line(number, word) for number, word in enumerate(words, 1)]
        ways[f"{count} in the vocabulary"] = add_words(plain, numbered, arguments.corpus).tokenizer
        ways[f"{count} added tokens"] = added_tokens(plain, words)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(arguments.rounds):
        for name, tokenizer in ways.items():
            start = time.perf_counter()
            tokenizer.backend_tokenizer.encode_batch(lines, add_special_tokens=False)
            seconds[name].append(time.perf_counter() - start)
    characters = len(text)
    speeds = {n: characters / statistics.median(s) / 1e6 for n, s in seconds.items()}
    if arguments.json:
        print(json.dumps(speeds, indent=1))
        return
    for name, speed in speeds.items():
        print(f"{name:26} {speed:6.2f} million characters/s")


if __name__ == "__main__":
    main()
