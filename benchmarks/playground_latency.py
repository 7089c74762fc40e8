"""The playground's answer to a fill, over HTTP on this machine: median of 50 requests.

    python benchmarks/playground_latency.py
    python benchmarks/playground_latency.py runs/meditations-minilm --requests 50 --json
    python benchmarks/playground_latency.py --idle 200 --active 40
    python benchmarks/playground_latency.py --readers 900

Each request has another text of the same length, one mask, and asks for ten predictions, as a click
on the page does. The time runs from sending the first byte to having read the last; where the
server is too busy, it is asked again after a second, as the page does, and that counts.

With a crowd, a process of its own keeps connections open meanwhile: idle ones that say nothing,
active ones that fill or read the page and begin again at once, and readers that send 400 requests
and take no answer.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import http.client
import json
import multiprocessing
import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from multiprocessing.synchronize import Event
from typing import Any

import torch
import transformers

from maskery.evaluation.text import fill, opening
from maskery.playground.app import listen, make_server
from maskery.playground.session import Session

WORDS = """
the universe is change and our life is what our thoughts make it so begin each day by telling
yourself that you will meet with the busybody the ungrateful the arrogant and the deceitful for all
these things happen to them because they do not know what is good and what is evil but I who have
seen the nature of the good
"""


def make_text(number: int, length: int) -> str:
    """A text of `length` words with one mask, another for each number."""
    known = WORDS.split()
    words = [known[(number * 7 + i) % len(known)] for i in range(length)]
    words[number % length] = "[MASK]"
    return " ".join(words)


def fill_body(number: int, words: int) -> bytes:
    """What a click on the page asks."""
    return json.dumps({"text": make_text(number, words), "top_k": 10}).encode()


def measure(model: str, requests: int, words: int, crowd: Sequence[int]) -> dict[str, Any]:
    """Milliseconds of each request, after three that are not counted."""
    transformers.logging.set_verbosity_error()
    # Speed does not depend on the weights: a model without a trained head is taken as it is.
    fill.open_model = lambda name: opening.open_model(name, trained_head=False)
    listener = listen(0)
    server = make_server(Session(model))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    port = listener.getsockname()[1]
    with crowded(port, crowd):
        times = [ask(port, fill_body(number, words)) for number in range(requests + 3)][3:]
    server.should_exit = True
    thread.join()
    return describe(times, model, words) | {"crowd": list(crowd)}


def ask(port: int, body: bytes) -> float:
    """Ask until there is an answer; the milliseconds that took."""
    start = time.perf_counter()
    while True:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request("POST", "/api/fill", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        answer = json.loads(response.read())
        connection.close()
        if response.status != 503:
            break
        time.sleep(1)
    assert response.status == 200, answer
    return 1000 * (time.perf_counter() - start)


@contextlib.contextmanager
def crowded(port: int, crowd: Sequence[int]) -> Iterator[None]:
    """Keep a crowd at the server while the block runs."""
    if not any(crowd):
        yield
        return
    context = multiprocessing.get_context("spawn")
    there = context.Event()
    process = context.Process(target=run_crowd, args=(port, tuple(crowd), there), daemon=True)
    process.start()
    there.wait(60)
    yield
    process.terminate()
    process.join()


def run_crowd(port: int, crowd: Sequence[int], there: Event) -> None:
    """Send idle, active and reading clients to the server, for ever."""
    asyncio.run(send_crowd(port, crowd, there))


async def send_crowd(port: int, crowd: Sequence[int], there: Event) -> None:
    """See `run_crowd`; one that is let go comes again."""
    head = f"Host: 127.0.0.1:{port}\r\n"
    page = f"GET /main.js HTTP/1.1\r\n{head}\r\n".encode()
    body = fill_body(1, 60)
    kind = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    fills = f"POST /api/fill HTTP/1.1\r\n{head}{kind}".encode() + body
    idle, active, readers = crowd
    said = [b""] * idle + [fills, page] * (active // 2) + [page * 400] * readers
    clients = [asyncio.create_task(keep_asking(port, one)) for one in said]
    await asyncio.sleep(1)
    there.set()
    await asyncio.gather(*clients)


async def keep_asking(port: int, said: bytes) -> None:
    """Say one thing; with one request in it, take the answer and say it again."""
    while True:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 12)
            writer.write(said)
            while said and len(said) < 1 << 14:
                head = await reader.readuntil(b"\r\n\r\n")
                length = head.lower().partition(b"content-length:")[2].split()[0]
                await reader.readexactly(int(length))
                writer.write(said)
            await writer.wait_closed() if not said else await asyncio.sleep(3600)


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
    for kind in ("idle", "active", "readers"):
        parser.add_argument(f"--{kind}", type=int, default=0, help="connections of a crowd")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    crowd = arguments.idle, arguments.active, arguments.readers
    result = measure(arguments.model, arguments.requests, arguments.words, crowd)
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
