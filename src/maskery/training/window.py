"""Sums over the steps between two lines of `metrics.jsonl`, read only when a line is written."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence

import torch

from maskery.core.processes import Processes

# What every process knows whole, where of the loss each has a share.
WHOLE = "grad_norm"
STEPS, SKIPPED, TOKENS = "steps", "skipped_steps", "tokens"
COUNTED = "counted."


class Window:
    """The steps since the last line.

    Steps whose gradient is not finite are counted and left out of the means.
    """

    def __init__(self) -> None:
        self.sums: dict[str, torch.Tensor] = {}
        self.counted: Counter[str] = Counter()
        self.skipped: torch.Tensor | float = 0.0
        self.steps = 0
        self.tokens = 0
        self.began = time.perf_counter()

    def add(
        self,
        losses: Mapping[str, torch.Tensor],
        tokens: int,
        counted: Mapping[str, int] | None = None,
    ) -> None:
        """Take a step in, without waiting for its values.

        Args:
            losses: Its terms, the total and the gradient's norm.
            tokens: Of this process.
            counted: What else this process counts; the sum is logged, skipped steps included.
        """
        sound = torch.isfinite(losses[WHOLE])
        for name, value in losses.items():
            kept = torch.where(sound, value, torch.zeros_like(value)).float()
            self.sums[name] = self.sums[name] + kept if name in self.sums else kept
        self.skipped = self.skipped + (~sound).float()
        self.counted.update(counted or {})
        self.steps += 1
        self.tokens += tokens

    def means(self, processes: Processes) -> dict[str, float]:
        """Over the steps and all processes; every process must ask.

        Without one sound step there are no losses, only what was skipped.
        """
        names = sorted(self.sums.keys() - {WHOLE})
        sound = self.steps - int(self.skipped)
        own = [float(self.sums[name]) / max(sound, 1) for name in names]
        counted = sorted(self.counted)
        own += [self.counted[name] for name in counted]
        *shares, tokens = processes.sum([*own, self.tokens])
        means = dict(zip((*names, *counted), shares, strict=True))
        means[WHOLE] = float(self.sums[WHOLE]) / max(sound, 1)
        values = {name: means[name] for name in self.sums} if sound else {}
        values |= {name: means[name] for name in counted}
        values["tokens_per_second"] = tokens / (time.perf_counter() - self.began)
        if sound < self.steps:
            values[SKIPPED] = float(self.steps - sound)
        return values

    def state(self, processes: Processes) -> tuple[Mapping[str, float], ...]:
        """Each process's sums, for a checkpoint; every process must ask."""
        if not self.steps:
            return ()
        counted = {f"{COUNTED}{name}": float(self.counted[name]) for name in sorted(self.counted)}
        names = [*self.sums, *counted, SKIPPED, STEPS, TOKENS]
        values = [float(value) for value in self.sums.values()]
        values += [*counted.values(), float(self.skipped), self.steps, self.tokens]
        rows = processes.gather(values)
        return tuple(dict(zip(names, row, strict=True)) for row in rows)

    @classmethod
    def restored(
        cls,
        state: Sequence[Mapping[str, float]],
        processes: Processes,
        device: torch.device,
    ) -> Window:
        """The window of a checkpoint: with as many processes as then, bit for bit.

        With another number, the main process takes all that is shared.
        """
        window = cls()
        if not state:
            return window
        if len(state) == processes.world_size:
            own = dict(state[processes.rank])
        else:
            own = dict(state[0])
            for name in own.keys() - {WHOLE, SKIPPED, STEPS}:
                own[name] = sum(row[name] for row in state) if processes.is_main else 0.0
        window.steps, window.tokens = int(own.pop(STEPS)), int(own.pop(TOKENS))
        window.skipped = own.pop(SKIPPED)
        for name in [name for name in own if name.startswith(COUNTED)]:
            window.counted[name.removeprefix(COUNTED)] = int(own.pop(name))
        window.sums = {name: torch.tensor(value, device=device) for name, value in own.items()}
        return window
