"""Matching on the best k of each text: image by image, against one text at a time as released.

    python benchmarks/rerank.py
    python benchmarks/rerank.py --images 200 --texts 200 --sample 4    # to see that it runs

3,000 texts of 10 to 50 tokens and 3,000 images of 577 tokens, on a narrow model with three
fusion layers. The released way (ALBEF's and RaSa's evaluation) takes one text, padded to 50 tokens,
repeats it for its k images, projects all of their keys and values in every layer, and keeps the
class token of the last. It would take long, so it is measured on a sample of texts, spread over the
run of Maskery's way so that a machine that slows down slows both, and multiplied. For the sampled
texts both must rank the k images the same.

Shapes: T texts, L text length, K images of each text, N image tokens, D width.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from image_text_step import fusion_pass
from maskery.core.batch import TokenBatch
from maskery.evaluation.retrieval.config import RetrievalConfig
from maskery.evaluation.retrieval.metrics import rank
from maskery.evaluation.retrieval.rerank import (
    Matcher,
    ReadImages,
    by_image,
    read_images,
    read_texts,
)
from maskery.models.image_text.build import build_from_scratch
from maskery.models.image_text.model import ImageTextModel
from maskery.models.image_text.sizes import ImageTextSizes

VOCABULARY, CLS, SEP, PADDED = 1000, 1, 2, 50
TIES = 1e-4


def new_model(arguments: argparse.Namespace) -> ImageTextModel:
    """RaSa's token counts and layers, narrower."""
    torch.manual_seed(0)
    sizes = ImageTextSizes(
        image_size=(384, 384),
        patch_size=16,
        image_layers=1,
        text_layers=arguments.text_layers,
        fusion_layers=arguments.fusion_layers,
        width=arguments.width,
        num_heads=arguments.heads,
        embed_dim=64,
    )
    model = build_from_scratch(sizes, vocabulary_size=VOCABULARY).eval()
    torch.nn.init.normal_(model.itm_head.weight)
    return model


def new_texts(count: int) -> TokenBatch:
    """Lengths as CUHK-PEDES has them: 28 tokens on average, from 10 to 50."""
    generator = np.random.default_rng(0)
    lengths = np.clip(np.rint(generator.normal(28, 9, count)), 10, PADDED).astype(np.int64)
    boundaries = np.concatenate(([0], np.cumsum(lengths)))
    ids = generator.integers(4, VOCABULARY, int(boundaries[-1]))
    ids[boundaries[:-1]], ids[boundaries[1:] - 1] = CLS, SEP
    return TokenBatch(
        input_ids=ids,
        boundaries=boundaries,
        example_ids=np.arange(count, dtype=np.uint64),
        starts=np.zeros(count, np.int64),
        word_starts=np.ones(len(ids), np.bool_),
    )


def noise(count: int, batch: int = 32) -> Iterator[torch.Tensor]:
    """Images of noise, all from one pool of it so that they take no time to make."""
    size = 3 * 384 * 384
    pool = torch.randn(size + 31_000, generator=torch.Generator().manual_seed(0))
    for first in range(0, count, batch):
        starts = [7 * i % 31_000 for i in range(first, min(first + batch, count))]
        yield torch.stack([pool[start : start + size].view(3, 384, 384) for start in starts])


@torch.no_grad()
def released(
    model: ImageTextModel, texts: TokenBatch, number: int, images: ReadImages, best: torch.Tensor
) -> torch.Tensor:
    """The matching scores (K,) of one text with its images, as released; its text pass is free."""
    first, end = texts.boundaries[number : number + 2]
    ids = torch.zeros(1, PADDED, dtype=torch.int64)
    ids[0, : end - first] = torch.from_numpy(texts.input_ids[first:end])
    mask = torch.arange(PADDED)[None] < int(end - first)
    hidden = model.text_encoder.encode_text(ids, mask)
    count = len(best)
    started = time.perf_counter()
    assert images.tokens is not None
    tokens = torch.from_numpy(images.tokens[best.numpy()])
    fused = fusion_pass(model, hidden.repeat(count, 1, 1), mask.repeat(count, 1), tokens)
    scores: torch.Tensor = model.itm_head(fused[:, 0])[:, 1]
    released.seconds.append(time.perf_counter() - started)  # type: ignore[attr-defined]
    return scores


released.seconds = []  # type: ignore[attr-defined]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--texts", type=int, default=3000)
    parser.add_argument("--images", type=int, default=3000)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--text-layers", type=int, default=3)
    parser.add_argument("--fusion-layers", type=int, default=3)
    parser.add_argument("--k", type=int, nargs="+", default=[128])
    parser.add_argument("--sample", type=int, default=12, help="texts of the released way, each k")
    parser.add_argument("--batch-tokens", type=int, default=4096)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    model, texts = new_model(arguments), new_texts(arguments.texts)
    config = RetrievalConfig(batch_tokens=arguments.batch_tokens, memory_mb=8000)

    started = time.perf_counter()
    images = read_images(
        model, noise(arguments.images), arguments.images, tokens=True, memory_bytes=8_000_000_000
    )
    read = read_texts(model, texts, states=True)
    rank(read.features @ images.features.T)
    encoding = time.perf_counter() - started
    print(f"encoding and contrast, both ways alike: {encoding:.1f} s", flush=True)
    rows = []
    for k in arguments.k:
        # Random weights have hubs, images that most texts are near to. Here every image is wanted
        # by k texts, as in a real gallery on average.
        first = 7 * torch.arange(arguments.texts)[:, None]
        candidates = (first + torch.arange(k) * (arguments.images // k)) % arguments.images
        rows.append(
            measure(model, texts, read, images, candidates, replace(config, rerank=k), arguments)
        )
        print(json.dumps(rows[-1]), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps({"encoding": encoding, "rows": rows}, indent=1))


def measure(model, texts, read, images, candidates, config, arguments):
    """Both ways on the same candidates, interleaved."""
    released.seconds.clear()
    sample = np.linspace(0, arguments.texts - 1, arguments.sample).astype(int)
    step = max(1, arguments.images // arguments.sample)
    scores = torch.empty(candidates.shape)
    theirs: dict[int, torch.Tensor] = {}
    seconds, started = 0.0, time.perf_counter()
    matcher = Matcher(model, read, images, config)
    ours = matcher.logits(by_image(candidates.numpy()), candidates.shape[1])
    for number, (places, logits) in enumerate(ours):
        scores.view(-1)[torch.from_numpy(places)] = logits[:, 1]
        if number % step == 0 and len(theirs) < len(sample):
            seconds += time.perf_counter() - started
            text = int(sample[len(theirs)])
            theirs[text] = released(model, texts, text, images, candidates[text])
            started = time.perf_counter()
    seconds += time.perf_counter() - started
    same, apart = 0, 0.0
    for text, expected in theirs.items():
        apart = max(apart, float((scores[text] - expected).abs().max()))
        mine = expected[rank(scores[text][None])[0]]
        # The same order, up to scores that are equal to the last digits of float32.
        same += bool((mine.diff() <= TIES * expected.std()).all())
    each = statistics.median(released.seconds)
    return {
        "k": config.rerank,
        "maskery_s": round(seconds, 1),
        "released_s_per_text": round(each, 3),
        "released_s_range": [round(min(released.seconds), 3), round(max(released.seconds), 3)],
        "released_s_extrapolated": round(each * arguments.texts, 1),
        "ratio": round(each * arguments.texts / seconds, 2),
        "ratio_range": [
            round(bound * arguments.texts / seconds, 2)
            for bound in (min(released.seconds), max(released.seconds))
        ],
        "same_ranking": f"{same} of {len(theirs)}",
        "largest_difference": apart,
        "score_std": float(scores.std()),
    }


if __name__ == "__main__":
    main()
