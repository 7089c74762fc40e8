"""Pseudo-log-likelihood: Maskery's batches beside one mask at a time with full logits.

    python benchmarks/score.py meditations.txt
    python benchmarks/score.py meditations.txt --model runs/meditations-minilm --sentences 60 --json

Both score the same sentences with the same weights. The plain way is a loop over the tokens of a
sentence, each a forward pass of Hugging Face's model with the logits of every token. Speed does not
depend on the weights, so a model without a trained head is taken as it is.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForMaskedLM, AutoTokenizer

from maskery.evaluation.text.fill import Filler
from maskery.evaluation.text.opening import open_model
from maskery.evaluation.text.pseudo_likelihood import Scorer
from maskery.models.loading import resolve


def read_sentences(path: Path, count: int) -> list[str]:
    """Sentences from the whole of a text, evenly spaced, cut at full stops."""
    text = " ".join(path.read_text("utf-8").split())
    found = [sentence.strip() for sentence in re.findall(r"[^.!?]+[.!?]+", text)]
    found = [sentence for sentence in found if len(sentence.split()) > 3]
    count = min(count, len(found))
    return [found[index * len(found) // count] for index in range(count)]


def score_plainly(model: Any, tokenizer: Any, sentences: Sequence[str]) -> list[float]:
    """Salazar et al.'s definition, one mask at a time."""
    totals = []
    for sentence in sentences:
        ids = tokenizer(sentence, return_tensors="pt")["input_ids"]
        total = 0.0
        for place in range(1, ids.shape[1] - 1):
            hidden = ids.clone()
            hidden[0, place] = tokenizer.mask_token_id
            with torch.no_grad():
                logits = model(input_ids=hidden).logits
            total += float(logits[0, place].log_softmax(dim=-1)[ids[0, place]])
        totals.append(total)
    return totals


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds of each, interleaved in rounds of different sentences."""
    sentences = read_sentences(arguments.corpus, arguments.sentences)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    opened = open_model(arguments.model, trained_head=False)
    filler = Filler(opened.model, opened.tokenizer)
    scorer = Scorer(filler, method="original", batch_tokens=arguments.batch_tokens)
    plain = AutoModelForMaskedLM.from_pretrained(resolve(arguments.model)).eval()
    # A head that is not in the checkpoint is drawn anew each time.
    plain.load_state_dict(opened.model.hf.state_dict())
    tokenizer = AutoTokenizer.from_pretrained(resolve(arguments.model))
    list(scorer.score(sentences[:2]))
    score_plainly(plain, tokenizer, sentences[:2])
    ours, theirs, worst, tokens = 0.0, 0.0, 0.0, 0
    ratios = []
    for first in range(0, len(sentences), arguments.round):
        part = sentences[first : first + arguments.round]
        start = time.perf_counter()
        scores = list(scorer.score(part))
        middle = time.perf_counter()
        expected = score_plainly(plain, tokenizer, part)
        end = time.perf_counter()
        ours, theirs = ours + middle - start, theirs + end - middle
        ratios.append((end - middle) / (middle - start))
        tokens += sum(score.tokens for score in scores)
        worst = max(
            worst,
            *(abs(s.log_probability - e) / s.tokens for s, e in zip(scores, expected, strict=True)),
        )
    return {
        "sentences": len(sentences),
        "tokens": tokens,
        "maskery_seconds": ours,
        "plain_seconds": theirs,
        "ratio": theirs / ours,
        "ratio_median": statistics.median(ratios),
        "ratio_low": min(ratios),
        "ratio_high": max(ratios),
        "largest_difference_per_token": worst,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--sentences", type=int, default=200)
    parser.add_argument("--round", type=int, default=20, help="sentences of a round")
    parser.add_argument("--batch-tokens", type=int, default=4096)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    result = measure(arguments)
    if arguments.json:
        print(json.dumps(result, indent=1))
        return
    print(
        f"{result['sentences']} sentences, {result['tokens']:,} tokens, {result['threads']} "
        f"threads: Maskery {result['maskery_seconds']:.1f} s, one mask at a time "
        f"{result['plain_seconds']:.1f} s; {result['ratio']:.2f}x "
        f"({result['ratio_low']:.2f} to {result['ratio_high']:.2f} by round); largest difference "
        f"{result['largest_difference_per_token']:.1e} nats a token"
    )


if __name__ == "__main__":
    main()
