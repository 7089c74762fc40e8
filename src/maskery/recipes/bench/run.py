"""Interleaved rounds, medians and ratios; peak memory in processes of their own."""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from maskery.core.errors import MaskeryError
from maskery.recipes.bench.config import BenchConfig
from maskery.recipes.bench.contenders import Turn, build
from maskery.recipes.run_folder import from_plain, to_plain


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
        peak_memory_mb: Peak resident memory of a process that runs it alone, or None.
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


def run_bench(config: BenchConfig, say: Callable[[str], None]) -> dict[str, Any]:
    """Run a benchmark.

    Args:
        config: Who and how much.
        say: Told about progress, a line at a time.

    Returns:
        `rows` (one for each contender) and `environment`, as plain data.
    """
    takes = {}
    for name in config.contenders:
        say(f"setting up {name}")
        takes[name] = build(name, config)
        takes[name](1)  # one step to warm up
    turns: dict[str, list[Turn]] = {name: [] for name in takes}
    for number in range(config.rounds):
        for name, take in takes.items():
            turn = take(config.tokens)
            turns[name].append(turn)
            speed = turn.real_tokens / turn.seconds
            say(f"round {number + 1} of {config.rounds}: {name}: {speed:,.0f} real tokens/s")
    del takes
    rows = []
    for name in config.contenders:
        memory = peak_memory(name, config, say) if config.memory else None
        rows.append(summarise(name, turns[name], turns[config.contenders[0]], memory))
    return {"rows": [asdict(row) for row in rows], "environment": environment(config)}


def summarise(name: str, turns: list[Turn], first: list[Turn], memory: float | None) -> Row:
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
    )


def peak_memory(name: str, config: BenchConfig, say: Callable[[str], None]) -> float:
    """Peak resident memory, in MB, of a process in which a contender takes one turn."""
    say(f"measuring the memory of {name}")
    request = json.dumps({"name": name, "config": to_plain(config)})
    done = subprocess.run(
        [sys.executable, "-m", "maskery.recipes.bench.run"],
        input=request,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise MaskeryError(f"measuring the memory of {name} failed: {done.stderr.strip()[-300:]}")
    return float(done.stdout.strip().splitlines()[-1])


def environment(config: BenchConfig) -> dict[str, Any]:
    """What the figures were measured on and with."""
    cuda = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name()
        if cuda
        else f"CPU, {torch.get_num_threads()} threads",
        "machine": platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "config": to_plain(config),
    }


def _measure_memory() -> None:
    request = json.load(sys.stdin)
    config = from_plain(request["config"], BenchConfig, "request")
    take = build(request["name"], config)
    take(config.batch_tokens)
    print(_peak_resident_mb())


def _peak_resident_mb() -> float:
    """Of this process alone; `ru_maxrss` would also count what its parent had before the fork."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    _measure_memory()
