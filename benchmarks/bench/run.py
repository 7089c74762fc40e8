"""Interleaved rounds, medians and ratios; each contender in a process of its own."""

from __future__ import annotations

import contextlib
import platform
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
import transformers

from bench.config import BenchConfig
from bench.contenders import Turn
from bench.peak import matrix_peak
from bench.worker import Worker
from maskery.runs.frame.config_file import to_plain


@dataclass(frozen=True, kw_only=True)
class Row:
    """One contender's result.

    Attributes:
        name: Of the contender.
        tokens_per_second: Median over the rounds, real tokens.
        slowest: Real tokens a second in its slowest round.
        fastest: In its fastest.
        ratio: How many times as fast the first contender is: the median over rounds of the ratio
            within a round.
        ratio_low: The smallest ratio of a round.
        ratio_high: The largest.
        padding_efficiency: Real tokens over computed ones.
        peak_memory_mb: Peak memory of its process, on the GPU where there is one; or None.
        peak_share: What it computes a second, as a share of the fastest matrix product seen.
    """

    name: str
    tokens_per_second: float
    slowest: float
    fastest: float
    ratio: float
    ratio_low: float
    ratio_high: float
    padding_efficiency: float
    peak_memory_mb: float | None
    peak_share: float


def run_bench(config: BenchConfig, say: Callable[[str], None]) -> dict[str, Any]:
    """Run a benchmark.

    Args:
        config: Who and how much.
        say: Told about progress, a line at a time.

    Returns:
        `rows` (one for each contender) and `environment`, as plain data.

    Raises:
        MaskeryError: A contender's process failed.
    """
    peak = matrix_peak()
    with contextlib.ExitStack() as stack:
        workers = {}
        for name in config.contenders:
            say(f"setting up {name}")
            workers[name] = stack.enter_context(Worker(name, config))
        turns: dict[str, list[Turn]] = {name: [] for name in workers}
        for number in range(config.rounds):
            for name, worker in workers.items():
                turn = worker.take(config.tokens)
                turns[name].append(turn)
                speed = turn.real_tokens / turn.seconds
                say(f"round {number + 1} of {config.rounds}: {name}: {speed:,.0f} real tokens/s")
        first = turns[config.contenders[0]]
        rows = [
            summarise(
                name,
                turns[name],
                first,
                memory=worker.peak_memory_mb() if config.memory else None,
                flops_per_token=worker.flops_per_token,
                peak=peak,
            )
            for name, worker in workers.items()
        ]
    return {"rows": [asdict(row) for row in rows], "environment": environment(config, peak)}


def summarise(
    name: str,
    turns: list[Turn],
    first: list[Turn],
    *,
    memory: float | None,
    flops_per_token: float,
    peak: float,
) -> Row:
    """Medians of one contender beside the first one's."""
    speeds = [turn.real_tokens / turn.seconds for turn in turns]
    reference = [turn.real_tokens / turn.seconds for turn in first]
    ratios = [r / s for r, s in zip(reference, speeds, strict=True)]
    return Row(
        name=name,
        tokens_per_second=statistics.median(speeds),
        slowest=min(speeds),
        fastest=max(speeds),
        ratio=statistics.median(ratios),
        ratio_low=min(ratios),
        ratio_high=max(ratios),
        padding_efficiency=sum(t.real_tokens for t in turns)
        / sum(t.computed_tokens for t in turns),
        peak_memory_mb=memory,
        peak_share=statistics.median(speeds) * flops_per_token / peak,
    )


def environment(config: BenchConfig, peak: float) -> dict[str, Any]:
    """Return the machine, the versions and the settings that the figures belong to."""
    cuda = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name()
        if cuda
        else f"CPU, {torch.get_num_threads()} threads",
        "matrix_peak_gflops": peak / 1e9,
        "machine": platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "config": to_plain(config),
    }
