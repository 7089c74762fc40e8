"""What the sections share: the report, random text, models without downloads, and a clock."""

from __future__ import annotations

import contextlib
import json
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForMaskedLM

from maskery.core.batch import Vocabulary
from maskery.data.rows import RowSource
from maskery.masking.masker import Masker
from maskery.models import attention
from maskery.models.masked_lm import MaskedLanguageModel
from maskery.tasks.compiling import static_shapes
from maskery.tasks.text_mlm import TextMLM
from maskery.training.config import TrainingConfig
from maskery.training.stepper import Stepper

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
BACKEND = "inductor" if CUDA else "eager"  # on a CPU only what is traced is tried
SPECIAL = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2}
SPECIAL |= {"sep_token_id": 3}
DROPOUTS = ("hidden_dropout_prob", "attention_probs_dropout_prob", "attention_dropout")
DROPOUTS += ("embedding_dropout", "mlp_dropout")
# Narrow models whose steps are compared; lengths that leave a batch ragged.
SMALL = {"vocab_size": 4096, "hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4}
SMALL |= {"intermediate_size": 1024, "max_position_embeddings": 512}
TINY = {"vocab_size": 500, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
TINY |= {"intermediate_size": 96}
MIXED = [7, 60, 128, 3, 33, 200, 90, 12, 128, 64]


class Report:
    """The lines of the table, on the screen and in a file."""

    def __init__(self, path: Path, *, tiny: bool) -> None:
        self.path, self.tiny = path, tiny
        self.lines: dict[str, str] = {}
        self.failures: dict[str, str] = {}
        self.peak = float("nan")  # FLOP/s of the largest matrix product
        self.began = time.perf_counter()

    @property
    def narrow(self) -> dict[str, int]:
        """Sizes of the models whose steps are compared."""
        return {**SMALL, **(TINY if self.tiny else {})}

    @property
    def passed(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self.began

    def say(self, name: str, value: object) -> None:
        """Add a line."""
        self.lines[name] = str(value)
        print(f"[{self.passed:4.0f} s] {name}: {value}", flush=True)
        figures = {"table": self.lines, "failures": self.failures}
        self.path.write_text(json.dumps(figures, indent=1), "utf-8")

    @contextlib.contextmanager
    def guarded(self, name: str) -> Iterator[None]:
        """Let a failure of one section stop no other."""
        try:
            yield
        except Exception as error:
            self.failures[name] = traceback.format_exc()
            self.say(name, f"FAILED: {type(error).__name__}: {str(error)[:300]}")

    def __str__(self) -> str:
        return "\n" + "\n".join(f"{name:48} {value}" for name, value in self.lines.items())


def sync() -> None:
    """Wait for the GPU."""
    if CUDA:
        torch.cuda.synchronize()


def config_of(family: str, **settings: Any) -> Any:
    """The settings of a family without dropout, of random weights."""
    torch.manual_seed(0)
    return AutoConfig.for_model(family, **dict.fromkeys(DROPOUTS, 0.0), **SPECIAL, **settings)


def vocabulary(size: int) -> Vocabulary:
    """Five special tokens, then words."""
    return Vocabulary(size=size, mask_token_id=4, special_ids=(0, 1, 2, 3, 4))


def words(lengths: list[int], vocab_size: int, steps: int) -> RowSource:
    """Steps of sequences in which a word is mostly the one before it plus one: easy to learn."""
    rng, rows = np.random.default_rng(0), []
    for length in lengths * steps:
        ids = (rng.integers(5, vocab_size) + np.arange(length)) % (vocab_size - 5) + 5
        noise = rng.random(length) < 0.2
        ids[noise] = rng.integers(5, vocab_size, int(noise.sum()))
        rows.append({"input_ids": ids, "example_id": len(rows)})
    return RowSource(rows, batch_tokens=sum(lengths))


def stepper_of(
    config: Any, source: RowSource, *, compiled: bool = False, **settings: Any
) -> tuple[Stepper, Iterator[Any]]:
    """Maskery's own step on a model of random weights, and its prepared steps in order."""
    torch.manual_seed(0)
    hf = AutoModelForMaskedLM.from_config(config, attn_implementation=attention.NAME).float()
    model = MaskedLanguageModel(hf, packed=True, pad_token_id=0)
    masker = Masker.of(vocabulary(config.vocab_size), seed=0)
    shapes = static_shapes(source, masker, epochs=1) if compiled else None
    backend = BACKEND if compiled else None
    task = TextMLM(model, masker, shapes=shapes, compile_backend=backend, pin_memory=CUDA)
    training = TrainingConfig(learning_rate=3e-4, **{"precision": "bf16", **settings})
    total = source.num_steps(0)
    stepper = Stepper(task, training, total_steps=total)
    batches = (source.micro_batches(0, number) for number in range(total))
    prepared = (stepper.prepare(number, part) for number, part in enumerate(batches))
    return stepper, enumerate(prepared)


def flops_per_token(hf: Any, length: int, share: float = 0.15) -> float:
    """docs/scaling.md: 6 P + 12 d (keys that each layer reads) + 6 m d (V + d)."""
    config, base = hf.config, hf.base_model
    matrices = sum(m.weight.numel() for m in base.modules() if isinstance(m, torch.nn.Linear))
    kinds = getattr(config, "layer_types", None) or ["full"] * config.num_hidden_layers
    window = getattr(config, "local_attention", 0) + 1
    keys = sum(min(length, window) if "sliding" in kind else length for kind in kinds)
    width = config.hidden_size
    head = share * width * (config.vocab_size + width)
    return float(6 * matrices + 12 * width * keys + 6 * head)


def clocked(step: Callable[[], object], *, steps: int, warm: int) -> tuple[float, float, float]:
    """Median, least and most seconds of a step, over three blocks of steps after a warm-up."""
    for _ in range(warm):
        step()
    sync()
    times = []
    for _ in range(3):
        began = time.perf_counter()
        for _ in range(steps // 3):
            step()
        sync()
        times.append((time.perf_counter() - began) / (steps // 3))
    return float(np.median(times)), min(times), max(times)
