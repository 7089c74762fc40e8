"""Sections about speed: tokens and pairs a second, the share of the matrix peak, and waiting."""

from __future__ import annotations

import os
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import AutoModelForMaskedLM

import image_text_step
import picture_views
from bench.peak import matrix_peak
from gpu.parts import (
    BACKEND,
    CUDA,
    DEVICE,
    MIXED,
    TINY,
    Report,
    clocked,
    config_of,
    flops_per_token,
    stepper_of,
    sync,
    vocabulary,
    words,
)
from maskery.masking.config import MaskingConfig
from maskery.masking.masker import Masker
from maskery.tasks.image_text import ImageTextTask
from maskery.tasks.image_text_config import PersonSearchConfig
from maskery.training.stepper import Prefetch

BUDGET = 32_768  # tokens of a step
SIZES: dict[str, dict[str, Any]] = {
    "bert": {"vocab_size": 30522},
    "modernbert": {"vocab_size": 50368},
}


def machine(report: Report) -> None:
    """Name the device and measure its peak, which every share is of."""
    name = torch.cuda.get_device_name() if CUDA else "CPU"
    report.say("device", f"{name}, {os.cpu_count()} cores")
    report.say("versions", f"torch {torch.__version__}, transformers {transformers.__version__}")
    report.peak = matrix_peak(256 if report.tiny else None)
    report.say("matrix peak, bfloat16, random", f"{report.peak / 1e12:.1f} TFLOP/s")


def bert_512(report: Report) -> None:
    """BERT-base, all four ways."""
    _speeds(report, "bert", 512, ("maskery", "maskery compiled", "hf", "hf compiled"))


def modernbert_512(report: Report) -> None:
    """ModernBERT-base, whose kernels the sections before have compiled."""
    _speeds(report, "modernbert", 512, ("maskery compiled", "hf"))


def modernbert_1024(report: Report) -> None:
    """ModernBERT-base at the length that it is pretrained at."""
    _speeds(report, "modernbert", 1024, ("maskery compiled", "hf compiled"))


def modernbert_8192(report: Report) -> None:
    """ModernBERT-base at its longest."""
    _speeds(report, "modernbert", 8192, ("maskery compiled", "hf"))


def _speeds(report: Report, family: str, length: int, ways: tuple[str, ...]) -> None:
    """Tokens a second of a model of base size, each way by itself."""
    for way in ways:
        label = f"{family}-base {length}, {way}"
        with report.guarded(label):
            torch._dynamo.reset()
            if CUDA:
                torch.cuda.reset_peak_memory_stats()
            _speed(report, label, family, min(length, 64) if report.tiny else length, way)


def _speed(report: Report, label: str, family: str, length: int, way: str) -> None:
    settings = TINY if report.tiny else SIZES[family]
    config = config_of(family, **{"max_position_embeddings": max(length, 512), **settings})
    steps, warm = (3, 1) if report.tiny else (12, 4)
    rows = [length] * ((256 if report.tiny else BUDGET) // length)
    source = words(rows, config.vocab_size, steps + warm)
    waited = 0.0
    if way.startswith("maskery"):
        stepper, prepared = stepper_of(config, source, compiled="compiled" in way)
        hf = stepper.task.model.hf
        with Prefetch(prepared) as ready:

            def step() -> None:
                nonlocal waited
                began = time.perf_counter()
                number, micro = next(ready)
                waited += time.perf_counter() - began
                stepper.step(number, micro)

            began = time.perf_counter()
            times = clocked(step, steps=steps, warm=warm)
            waiting = f", waits {waited / (time.perf_counter() - began):.1%}"
    else:
        # Its batches are made and on the device beforehand: nothing but the step is timed.
        hf = AutoModelForMaskedLM.from_config(config, attn_implementation="sdpa").to(DEVICE).train()
        step, waiting = _hugging_face(hf, source, compiled="compiled" in way), ""
        times = clocked(step, steps=steps, warm=warm)
    median, least, most = (sum(rows) / seconds for seconds in (times[0], times[2], times[1]))
    share = median * flops_per_token(hf, length) / report.peak
    memory = f", {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB" if CUDA else ""
    spread = f"{median:,.0f} tok/s ({least:,.0f} to {most:,.0f})"
    report.say(label, f"{spread}, {share:.1%} of the peak{waiting}{memory}")


def _hugging_face(hf: Any, source: Any, *, compiled: bool) -> Any:
    """The best plain recipe: bf16, SDPA, fused AdamW, nothing waited for; labels everywhere."""
    optimiser = torch.optim.AdamW(hf.parameters(), lr=1e-4, fused=True)
    masker, data = Masker.of(vocabulary(hf.config.vocab_size), seed=0), []
    for number in range(4):
        masked = masker.mask(source.micro_batches(0, number)[0], epoch=0)
        count = len(masked.batch.lengths)
        ids, labels = (
            torch.from_numpy(part).view(count, -1).to(DEVICE)
            for part in (masked.input_ids, masked.labels())
        )
        data.append({"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels})
    turn = iter(range(10**6))

    def loss_of(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        loss: torch.Tensor = hf(**inputs).loss
        return loss

    compute = torch.compile(loss_of, backend=BACKEND, dynamic=False) if compiled else loss_of

    def step() -> None:
        with torch.autocast(DEVICE.type, torch.bfloat16):
            loss = compute(data[next(turn) % len(data)])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(hf.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    return step


def hugging_face_trainer(report: Report) -> None:
    """The Trainer as it is usually run on a GPU: bf16, SDPA, fused AdamW, a collator in workers."""
    from tokenizers import Tokenizer, models
    from transformers import (
        DataCollatorForLanguageModeling,
        PreTrainedTokenizerFast,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

    config = config_of("bert", **(TINY if report.tiny else SIZES["bert"]))
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    names += [f"w{i}" for i in range(5, config.vocab_size)]
    pieces = {name: number for number, name in enumerate(names)}
    special = {f"{n.strip('[]').lower()}_token": n for n in names[:5]}
    words_of = Tokenizer(models.WordLevel(pieces, unk_token="[UNK]"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words_of, **special)
    length, rows, steps = (64, 4, 4) if report.tiny else (512, 64, 16)
    batch = words([length] * rows * steps, config.vocab_size, 1).micro_batches(0, 0)[0]
    data = [{"input_ids": ids.tolist()} for ids in batch.input_ids.reshape(-1, length)]
    marks: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
            if state.global_step in (steps // 2, steps):
                sync()
                marks.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder, per_device_train_batch_size=rows, max_steps=steps, bf16=True,
            use_cpu=not CUDA, optim="adamw_torch_fused", report_to=[], save_strategy="no",
            dataloader_num_workers=0 if report.tiny else 8, logging_strategy="no",
            disable_tqdm=True,
        )  # fmt: skip
        hf = AutoModelForMaskedLM.from_config(config, attn_implementation="sdpa")
        flops = flops_per_token(hf, length)
        collator = DataCollatorForLanguageModeling(tokenizer)
        trainer = Trainer(
            model=hf, args=arguments, train_dataset=data, data_collator=collator,
            callbacks=[Clock()],
        )  # fmt: skip
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()
    speed = rows * length * (steps - steps // 2) / (marks[1] - marks[0])
    share = speed * flops / report.peak
    report.say(f"bert-base {length}, hf Trainer", f"{speed:,.0f} tok/s, {share:.1%} of the peak")


def _pairs(batch: int, *, small: bool) -> tuple[ImageTextTask, Any, Any]:
    """RaSa's five losses on random pairs: the task, its batch, and the batch padded to 58."""
    torch.manual_seed(0)
    step = image_text_step
    special = (step.PAD, step.CLS, step.SEP, step.MASK)
    known = step.Vocabulary(size=30522, mask_token_id=step.MASK, special_ids=special)
    size = 1024 if small else 65536
    task = ImageTextTask(
        step.make_model(small, 0.0).train(),
        PersonSearchConfig(mrtd_sample_at="every", queue_size=size),
        pad_token_id=step.PAD,
        masker=Masker.of(known, seed=0),
        mrtd_masker=Masker.of(known, MaskingConfig(mask_rate=0.3), seed=1),
    )
    pairs = step.make_pairs(batch, 64 if small else 384, seed=0)
    prepared = task.prepare(pairs, epoch=0, progress=0.5)
    wide = step.padded_to_58(prepared).to(DEVICE)
    task.model.to(DEVICE)
    task.twin.follow_device()
    for queue in task.queues.values():
        queue.to(DEVICE)
    return task, prepared, wide


def person_search(report: Report) -> None:
    """The full-size step beside the released arithmetic, on the same weights."""
    batch = 2 if report.tiny else 32
    task, prepared, wide = _pairs(batch, small=report.tiny)
    here = prepared.to(DEVICE)
    with torch.device(DEVICE):  # the reference makes its masks where nothing is said
        off = image_text_step.check_agreement(task, here, wide)
    report.say(f"{batch} pairs: five losses off, fp32", f"{off:.1e}")
    parameters = [p for p in task.model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=1e-6, fused=True)
    for half in (False,) if report.tiny else (False, True):
        speeds = {}
        for name in ("released", "maskery"):
            kind = "eager" if name == "released" else "sdpa"
            for network in (task.model, task.twin.model):
                network.visual_encoder.backbone.set_attn_implementation(kind)

            def step(name: str = name, half: bool = half) -> None:
                with torch.autocast(DEVICE.type, torch.bfloat16, enabled=half):
                    if name == "released":
                        with torch.device(DEVICE):
                            losses = image_text_step.released_losses(task, wide)[0]
                    else:
                        losses = image_text_step.maskery_losses(task, prepared.to(DEVICE))
                sum(task.loss_weights[n] * value for n, value in losses.items()).backward()
                optimiser.step()
                optimiser.zero_grad(set_to_none=True)

            speeds[name] = batch / clocked(step, steps=3 if report.tiny else 6, warm=1)[0]
        ratio = speeds["maskery"] / speeds["released"]
        said = ", ".join(f"{name} {speed:.0f} pairs/s" for name, speed in speeds.items())
        report.say(f"image-text step, {'bf16' if half else 'fp32'}", f"{said}: {ratio:.2f}x")


def host_waits(report: Report) -> None:
    """By line, how often the host waits for the device in a step."""
    if not CUDA:
        report.say("host waits", "no GPU")
        return
    config = config_of("bert", **report.narrow)
    stepper, steps = stepper_of(config, words(MIXED, config.vocab_size, 4))
    task, prepared, _ = _pairs(4, small=True)

    def pairs() -> None:
        losses = image_text_step.maskery_losses(task, prepared.to(DEVICE))
        sum(losses.values()).backward()

    for name, step in {"text": lambda: stepper.step(*next(steps)), "pairs": pairs}.items():
        step()
        sync()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                step()
            finally:
                torch.cuda.set_sync_debug_mode("default")
        told = [w for w in caught if "synchroniz" in str(w.message)]
        report.say(f"host waits, {name}", [f"{Path(w.filename).name}:{w.lineno}" for w in told])


def feeding(report: Report) -> None:
    """What the host prepares: masks and layout in one thread, and pictures on all cores."""
    for length in (20, 512):
        rows = [length] * ((1024 if report.tiny else BUDGET) // length)
        config = config_of("bert", **report.narrow)
        _, steps = stepper_of(config, words(rows, config.vocab_size, 8))
        next(steps)
        began = time.perf_counter()
        count = sum(part.num_tokens for _, step in steps for part in step)
        speed = count / (time.perf_counter() - began)
        report.say(f"text prepared, lines of {length}", f"{speed / 1e6:.1f} Mtok/s, one thread")
    side, pairs, rounds = (32, 4, 1) if report.tiny else (384, 128, 2)
    found = picture_views.measure(side, pairs, rounds)
    speed = float(np.median(found["pairs_per_second"]["now"]))
    report.say(f"pictures, {found['workers']} threads", f"{speed:.0f} pairs/s at {side} pixels")
