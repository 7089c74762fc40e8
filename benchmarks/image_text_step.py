"""One person-search training step at RaSa's full size: Maskery's against the released arithmetic.

    python benchmarks/image_text_step.py --batch 2 --steps 3 --json step.json
    python benchmarks/image_text_step.py --small          # seconds, to see that it runs

The reference below is written straight from the released step: ten encoder passes on text padded to
58 tokens, image keys and values projected in every pass that reads an image, attention by explicit
softmax, logits over the vocabulary at every token, `torch.multinomial` at every token, the momentum
update parameter by parameter, AdamW as PyTorch gives it by default. It works on the same weights as
Maskery's step, and before anything is timed both must agree on all five losses. Steps of the two
are interleaved, so that a machine that slows down slows both.

Shapes: B pairs, L text length, D text width, N image tokens, V vocabulary.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import platform
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import BertConfig, ViTConfig

from maskery.core.batch import TokenBatch, Vocabulary
from maskery.masking.config import MaskingConfig
from maskery.masking.masker import Masker
from maskery.models.image_text.model import ImageTextConfig, ImageTextModel
from maskery.tasks.caption_steps import PreparedPairs
from maskery.tasks.image_text import ImageTextTask
from maskery.tasks.image_text_config import PersonSearchConfig

PAD, CLS, SEP, MASK = 0, 101, 102, 103
PADDED_LENGTH = 58
LOSSES = ("itc", "itm", "mlm", "prd", "mrtd")


@dataclass(frozen=True)
class Pairs:
    """Noise in place of `ViewedPersons`."""

    image1: torch.Tensor
    image2: torch.Tensor
    text1: TokenBatch
    text2: TokenBatch
    person_ids: torch.Tensor
    crowd_ids: torch.Tensor
    replaced: torch.Tensor


# --- the released step ---------------------------------------------------------------------------


def attend(attention: Any, hidden: torch.Tensor, context: torch.Tensor, mask: Any) -> torch.Tensor:
    """One attention block with explicit softmax; (R, L, D)."""
    core, output = attention.self, attention.output
    query = core.split_heads(core.query(hidden))
    key, value = core.split_heads(core.key(context)), core.split_heads(core.value(context))
    scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
    weights = F.dropout(F.softmax(scores + mask, dim=-1), core.dropout, core.training)
    attended: torch.Tensor = output((weights @ value).transpose(1, 2).flatten(2), hidden)
    return attended


def additive(mask: torch.Tensor) -> torch.Tensor:
    """(R, L) bool to (R, 1, 1, L): 0 where real, -10000 at padding."""
    return (1.0 - mask[:, None, None, :].float()) * -10000.0


def text_pass(model: Any, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mode "text": (R, L) to (R, L, D)."""
    hidden = model.text_encoder.bert.embeddings(ids)
    for layer in model.text_encoder.bert.encoder.layer[: model.config.fusion_layer]:
        hidden = attend(layer.attention, hidden, hidden, additive(mask))
        hidden = layer.output(layer.intermediate(hidden), hidden)
    return hidden


def fusion_pass(
    model: Any, hidden: torch.Tensor, mask: torch.Tensor, image_tokens: torch.Tensor
) -> torch.Tensor:
    """Mode "fusion": (R, L, D) and (R, N, W) to (R, L, D)."""
    seen = torch.ones(image_tokens.shape[:2], dtype=torch.bool)
    for layer in model.text_encoder.bert.encoder.layer[model.config.fusion_layer :]:
        hidden = attend(layer.attention, hidden, hidden, additive(mask))
        hidden = attend(layer.crossattention, hidden, image_tokens, additive(seen))
        hidden = layer.output(layer.intermediate(hidden), hidden)
    return hidden


def released_losses(task: ImageTextTask, p: PreparedPairs) -> tuple[dict[str, Any], dict[str, Any]]:
    """The five mean losses of the released step, and the decisions that it drew."""
    model, twin = task.model, task.twin.model
    ids, mask, mask1 = p.text2.input_ids, p.text2.attention_mask, p.text1.attention_mask
    batch, alpha, temp = len(ids), p.alpha, model.temp
    same = p.ids[:, None] == p.ids[None, :]
    everyone = torch.cat((p.ids, task.queues["image_queue"].ids))
    positive = (p.ids[:, None] == everyone[None, :]).float()
    targets = positive / positive.sum(1, keepdim=True)

    image = model.encode_image(p.image1)  # 1
    text = text_pass(model, ids, mask)  # 2
    image_feature, text_feature = model.image_feature(image), model.text_feature(text)
    with torch.no_grad():
        for theirs, ours in zip(twin.parameters(), model.parameters(), strict=True):
            theirs.data = theirs.data * task.twin.momentum + ours.data * (1 - task.twin.momentum)
        image_m = twin.encode_image(p.image2)  # 3
        text_m = twin.text_feature(text_pass(twin, ids, mask))  # 4
        sides_m = {"i": twin.image_feature(image_m), "t": text_m}
        images = torch.cat((sides_m["i"].t(), task.queues["image_queue"].features.t()), dim=1)
        texts = torch.cat((sides_m["t"].t(), task.queues["text_queue"].features.t()), dim=1)
    losses, similar = {}, {}
    terms = []
    for query, query_m, keys in (
        ("i", "i", "t"),
        ("t", "t", "i"),
        ("i", "i", "i"),
        ("t", "t", "t"),
    ):
        candidates = texts if keys == "t" else images
        with torch.no_grad():
            soft = F.softmax(sides_m[query_m] @ candidates / temp, dim=1)
            goal = alpha * soft + (1 - alpha) * targets
        scores = (image_feature if query == "i" else text_feature) @ candidates / temp
        similar[query + keys] = scores[:, :batch].detach()
        terms.append(-(F.log_softmax(scores, dim=1) * goal).sum(dim=1).mean())
    losses["itc"] = torch.stack(terms).mean()
    task.queues["image_queue"].enqueue(sides_m["i"], p.ids)
    task.queues["text_queue"].enqueue(sides_m["t"], p.ids)

    fused = fusion_pass(model, text, mask, image)  # 5
    for_texts = F.softmax(similar["ti"], dim=1).masked_fill(same, 0)
    for_images = F.softmax(similar["it"], dim=1).masked_fill(same, 0)
    image_negatives = torch.multinomial(for_texts, 1).flatten()
    text_negatives = torch.multinomial(for_images, 1).flatten()
    wrong = fusion_pass(  # 6, on twice the batch
        model,
        torch.cat((text, text[text_negatives])),
        torch.cat((mask, mask[text_negatives])),
        torch.cat((image[image_negatives], image)),
    )
    judged = model.itm_head(torch.cat((fused[:, 0], wrong[:, 0])))
    losses["itm"] = F.cross_entropy(judged, (torch.arange(3 * batch) < batch).long())
    losses["prd"] = F.cross_entropy(model.prd_head(fused[:, 0]), p.replaced)

    labels = torch.full_like(p.mlm.input_ids, -100)
    labels.view(-1)[p.mlm.positions] = p.mlm.targets
    masked = p.mlm.input_ids
    with torch.no_grad():
        state = fusion_pass(twin, text_pass(twin, masked, mask1), mask1, image_m)  # 7
        soft_labels = F.softmax(twin.text_encoder.mlm_logits(state), dim=-1)
    state = fusion_pass(model, text_pass(model, masked, mask1), mask1, image)  # 8
    logits = model.text_encoder.mlm_logits(state)
    hard = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
    soft = -(F.log_softmax(logits, dim=-1) * soft_labels).sum(-1)[labels != -100].mean()
    losses["mlm"] = (1 - alpha) * hard + alpha * soft

    generated = p.mrtd.masked_ids
    with torch.no_grad():
        state = fusion_pass(twin, text_pass(twin, generated, mask1), mask1, image_m)  # 9
        weights = F.softmax(twin.text_encoder.mlm_logits(state), dim=-1)
        drawn = torch.multinomial(weights.flatten(0, 1), 1).view_as(generated)
        drawn[:, 0] = CLS
        replaced = drawn * mask1
        answers = (drawn != p.text1.input_ids).long()
        answers[~mask1 | (replaced == PAD) | (replaced == CLS)] = -100
    state = fusion_pass(model, text_pass(model, replaced, mask1), mask1, image)  # 10
    losses["mrtd"] = F.cross_entropy(model.mrtd_head(state).flatten(0, 1), answers.flatten())
    decisions = {"images": image_negatives, "texts": text_negatives, "drawn": drawn}
    return losses, decisions


# --- Maskery's -----------------------------------------------------------------------------------


def maskery_losses(task: ImageTextTask, prepared: PreparedPairs) -> dict[str, torch.Tensor]:
    """The five mean losses of Maskery's step."""
    task.before_step()
    sums = task.loss_sums(prepared)
    return {name: sums[name] / prepared.counts[name] for name in sums}


# --- what both work on ---------------------------------------------------------------------------


def make_model(small: bool, dropout: float) -> ImageTextModel:
    """RaSa's sizes, or tiny ones, with random weights."""
    text = BertConfig(
        hidden_size=64 if small else 768,
        num_hidden_layers=4 if small else 12,
        num_attention_heads=4 if small else 12,
        intermediate_size=128 if small else 3072,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    vision = ViTConfig(
        hidden_size=64 if small else 768,
        num_hidden_layers=2 if small else 12,
        num_attention_heads=4 if small else 12,
        intermediate_size=128 if small else 3072,
        image_size=64 if small else 384,
        layer_norm_eps=1e-6,
    )
    fusion_layer = 2 if small else 6
    config = ImageTextConfig(text_config=text, vision_config=vision, fusion_layer=fusion_layer)
    return ImageTextModel(config)


def tokens(lengths: np.ndarray, first_id: int, generator: np.random.Generator) -> TokenBatch:
    """Captions of random words."""
    rows = [[CLS, *generator.integers(1000, 30000, n - 2), SEP] for n in lengths]
    boundaries = np.concatenate(([0], np.cumsum(lengths)))
    return TokenBatch(
        input_ids=np.concatenate(rows).astype(np.int64),
        boundaries=boundaries.astype(np.int64),
        example_ids=np.arange(first_id, first_id + len(rows), dtype=np.uint64),
        starts=np.zeros(len(rows), np.int64),
        word_starts=np.ones(boundaries[-1], np.bool_),
    )


def make_pairs(batch: int, size: int, seed: int) -> Pairs:
    """Noise images and captions of about 35 real tokens."""
    generator, torch_generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    lengths = np.clip(generator.normal(35, 6, 2 * batch).round(), 12, PADDED_LENGTH).astype(int)
    images = torch.randn(2, batch, 3, size, size, generator=torch_generator)
    return Pairs(
        image1=images[0],
        image2=images[1],
        text1=tokens(lengths[:batch], 0, generator),
        text2=tokens(lengths[batch:], 0, generator),
        person_ids=torch.arange(batch),
        crowd_ids=torch.arange(batch),
        replaced=torch.arange(batch) % 2,
    )


def padded_to_58(prepared: PreparedPairs) -> PreparedPairs:
    """The same decisions, laid out as the released code pads."""
    length = prepared.text1.input_ids.shape[1]

    def wide(ids: torch.Tensor, fill: int) -> torch.Tensor:
        return F.pad(ids, (0, PADDED_LENGTH - length), value=fill)

    def text(padded: Any) -> Any:
        real = wide(padded.attention_mask.long(), 0).bool()
        return dataclasses.replace(
            padded, input_ids=wide(padded.input_ids, PAD), attention_mask=real
        )

    positions = prepared.mlm.positions
    moved = positions // length * PADDED_LENGTH + positions % length
    mlm = dataclasses.replace(
        prepared.mlm, input_ids=wide(prepared.mlm.input_ids, PAD), positions=moved
    )
    mrtd = dataclasses.replace(prepared.mrtd, masked_ids=wide(prepared.mrtd.masked_ids, PAD))
    return dataclasses.replace(
        prepared, text1=text(prepared.text1), text2=text(prepared.text2), mlm=mlm, mrtd=mrtd
    )


def check_agreement(task: ImageTextTask, prepared: PreparedPairs, wide: PreparedPairs) -> float:
    """The largest relative difference of the five losses, from the same state and decisions."""
    state = {name: tensor.clone() for name, tensor in task.extra_state().items()}
    task.model.eval()
    with torch.no_grad():
        theirs, decisions = released_losses(task, wide)
        task.load_extra_state(state)
        length = prepared.text1.input_ids.shape[1]
        sampled = decisions["drawn"][:, :length].flatten()[prepared.mrtd.sampled_at]
        replayed = dataclasses.replace(
            prepared,
            mrtd=dataclasses.replace(prepared.mrtd, sampled=sampled),
            negatives=torch.stack((decisions["images"], decisions["texts"])),
        )
        ours = maskery_losses(task, replayed)
    task.model.train()
    for name in LOSSES:
        print(f"{name}: released {float(theirs[name]):.6f}, Maskery {float(ours[name]):.6f}")
    return max(abs(float(ours[n] - theirs[n])) / abs(float(theirs[n])) for n in LOSSES)


def timed_step(
    task: ImageTextTask, optimizer: torch.optim.Optimizer, losses: Any
) -> tuple[float, float]:
    """Seconds, and processor seconds, for one step: forward, backward, optimiser."""
    start, start_cpu = time.perf_counter(), time.process_time()
    values = losses()
    total = sum(task.loss_weights[name] * value for name, value in values.items())
    total.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return time.perf_counter() - start, time.process_time() - start_cpu


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--steps", type=int, default=3, help="timed steps of each")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dropout", type=float, default=0.0, help="of both; RaSa trains with 0.1")
    parser.add_argument("--small", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)

    model = make_model(options.small, options.dropout).train()
    config = PersonSearchConfig(mrtd_sample_at="every", queue_size=1024 if options.small else 65536)
    vocabulary = Vocabulary(size=30522, mask_token_id=MASK, special_ids=(PAD, CLS, SEP, MASK))
    task = ImageTextTask(
        model,
        config,
        pad_token_id=PAD,
        masker=Masker.of(vocabulary, seed=0),
        mrtd_masker=Masker.of(vocabulary, config=MaskingConfig(mask_rate=0.3), seed=1),
    )
    pairs = make_pairs(options.batch, 64 if options.small else 384, seed=0)
    prepared = task.prepare(pairs, epoch=0, progress=0.5)
    wide = padded_to_58(prepared)

    def attention(name: str) -> None:
        for network in (task.model, task.twin.model):
            network.visual_encoder.backbone.set_attn_implementation(name)

    attention("eager")
    difference = check_agreement(task, prepared, wide)
    print(f"largest relative difference of the five losses: {difference:.1e}")
    if difference > 1e-3:
        raise SystemExit("the two steps do not compute the same losses")

    plain = torch.optim.AdamW(model.parameters(), lr=1e-6)
    fused = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)
    released: list[tuple[float, float]] = []
    maskery: list[tuple[float, float]] = []
    for i in range(options.steps + 1):
        attention("eager")
        first = timed_step(task, plain, lambda: released_losses(task, wide)[0])
        attention("sdpa")
        second = timed_step(task, fused, lambda: maskery_losses(task, prepared))
        label = "warm-up" if i == 0 else f"step {i}"
        print(f"{label}: {first[0]:.2f} s, {second[0]:.2f} s", flush=True)
        if i:
            released.append(first)
            maskery.append(second)
    theirs, ours = (
        [statistics.median(column) for column in zip(*steps, strict=True)]
        for steps in (released, maskery)
    )
    ratio, cpu_ratio = theirs[0] / ours[0], theirs[1] / ours[1]
    print(
        f"released arithmetic {theirs[0]:.2f} s, Maskery {ours[0]:.2f} s a step: {ratio:.2f} times "
        f"as fast\nprocessor time, which neighbours disturb less: {theirs[1]:.2f} s and "
        f"{ours[1]:.2f} s, {cpu_ratio:.2f} times less"
    )
    if options.json:
        figures = {
            "released_seconds_and_processor_seconds": released,
            "maskery_seconds_and_processor_seconds": maskery,
            "ratio": ratio,
            "processor_ratio": cpu_ratio,
            "loss_difference": difference,
            "batch": options.batch,
            "dropout": options.dropout,
            "small": options.small,
            "real_tokens": [int(t.input_ids.size) for t in (pairs.text1, pairs.text2)],
            "threads": options.threads,
            "torch": torch.__version__,
            "machine": platform.processor() or platform.machine(),
        }
        options.json.write_text(json.dumps(figures, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
