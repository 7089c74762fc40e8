"""The playground's answer to a fill, over HTTP on this machine: median of 50 requests.

    python benchmarks/playground_latency.py
    python benchmarks/playground_latency.py runs/meditations-minilm --requests 50 --json

Each request has another text of the same length, one mask, and asks for ten predictions, as a click
on the page does. The time runs from sending the first byte to having read the last.
"""

from __future__ import annotations

import argparse
import http.client
import json
import statistics
import threading
import time
from collections.abc import Sequence
from typing import Any

import torch
import transformers

from maskery.evaluation.text import fill, opening
from maskery.playground.serve import listen, make_server
from maskery.playground.session import Session

WORDS = [
    "the",
    "universe",
    "is",
    "change",
    "and",
    "our",
    "life",
    "is",
    "what",
    "our",
    "thoughts",
    "make",
    "it",
    "so",
    "begin",
    "each",
    "day",
    "by",
    "telling",
    "yourself",
    "that",
    "you",
    "will",
    "meet",
    "with",
    "the",
    "busybody",
    "the",
    "ungrateful",
    "the",
    "arrogant",
    "and",
    "the",
    "deceitful",
    "for",
    "all",
    "these",
    "things",
    "happen",
    "to",
    "them",
    "because",
    "they",
    "do",
    "not",
    "know",
    "what",
    "is",
    "good",
    "and",
    "what",
    "is",
    "evil",
    "but",
    "I",
    "who",
    "have",
    "seen",
    "the",
    "nature",
    "of",
    "the",
    "good",
]


def make_text(number: int, length: int) -> str:
    """A text of `length` words with one mask, another for each number."""
    words = [WORDS[(number * 7 + i) % len(WORDS)] for i in range(length)]
    words[number % length] = "[MASK]"
    return " ".join(words)


def measure(model: str, requests: int, words: int) -> dict[str, Any]:
    """Milliseconds of each request, after three that are not counted."""
    transformers.logging.set_verbosity_error()
    # Speed does not depend on the weights: a model without a trained head is taken as it is.
    fill.open_model = lambda name: opening.open_model(name, trained_head=False)
    listener = listen(0)
    server = make_server(Session(model))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    port = listener.getsockname()[1]
    times = []
    for number in range(-3, requests):
        body = json.dumps({"text": make_text(number + 3, words), "top_k": 10})
        start = time.perf_counter()
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request("POST", "/api/fill", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        answer = json.loads(response.read())
        connection.close()
        if number >= 0:
            times.append(1000 * (time.perf_counter() - start))
        assert response.status == 200, answer
    server.should_exit = True
    thread.join()
    return describe(times, model, words)


def describe(times: Sequence[float], model: str, words: int) -> dict[str, Any]:
    """Medians and spread."""
    ordered = sorted(times)
    return {
        "model": model,
        "words": words,
        "requests": len(times),
        "median_ms": statistics.median(times),
        "p90_ms": ordered[int(0.9 * len(ordered))],
        "max_ms": ordered[-1],
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="minilm")
    parser.add_argument("--requests", type=int, default=50)
    parser.add_argument("--words", type=int, default=60)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    result = measure(arguments.model, arguments.requests, arguments.words)
    if arguments.json:
        print(json.dumps(result, indent=1))
        return
    print(
        f"{result['requests']} fills of {result['words']} words, {result['threads']} threads: "
        f"median {result['median_ms']:.0f} ms, 90% within {result['p90_ms']:.0f} ms, "
        f"at most {result['max_ms']:.0f} ms"
    )


if __name__ == "__main__":
    main()
