"""Tiny random CLIPs and SigLIPs with tokenizers, saved as folders as Hugging Face has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTokenizer,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipModel,
)

WORDS = ["a", "person", "in", "shirt", "and", "trousers", "the", "go", "with", "no"]
WORDS += ["red", "green", "blue", "white", "black", "yellow"]
SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
}


def clip_tokenizer() -> CLIPTokenizer:
    """CLIP's: bytes, each also at the end of a word, and whole words by merging from the left."""
    letters = [chr(n) for n in range(33, 127)]
    pieces, merges = [*letters, *(f"{letter}</w>" for letter in letters)], []
    for word in WORDS[1:]:
        parts = [*word[:-1], f"{word[-1]}</w>"]
        while len(parts) > 1:
            merged = parts[0] + parts[1]
            if merged not in pieces:
                pieces.append(merged)
                merges.append((parts[0], parts[1]))
            parts[:2] = [merged]
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {piece: number for number, piece in enumerate(pieces)}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=24)


def siglip_tokenizer(*, mask: bool = False) -> PreTrainedTokenizerFast:
    """One token a word and `</s>` at the end, which is also the padding; SigLIP 2's has a mask."""
    roles = {"pad_token": "<pad>" if mask else "</s>", "eos_token": "</s>", "unk_token": "<unk>"}
    roles |= {"mask_token": "<mask>"} if mask else {}
    pieces = [*dict.fromkeys(roles.values()), *WORDS, *"0123456789"]
    vocab = {piece: number for number, piece in enumerate(pieces)}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", vocab["</s>"])]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=24, **roles)


def save_towers(folder: Path, family: str, *, size: int = 16) -> Any:
    """Save a random `clip`, `siglip` or `siglip2` of 24 places with its tokenizer; returns it."""
    torch.manual_seed(1)
    clip = family == "clip"
    tokenizer: PreTrainedTokenizerBase = (
        clip_tokenizer() if clip else siglip_tokenizer(mask=family == "siglip2")
    )
    text = {**SIZES, "vocab_size": len(tokenizer), "max_position_embeddings": 24}
    eyes = {**SIZES, "image_size": size, "patch_size": 4}
    if clip:
        # 2 is what old configurations say, OpenAI's own among them: the feature is then of the
        # token with the largest id.
        text |= {"eos_token_id": 2}
        model: Any = CLIPModel(CLIPConfig(text_config=text, vision_config=eyes, projection_dim=12))
    else:
        eyes, text = {**eyes, "hidden_size": 20}, {**text, "projection_size": 20}
        model = SiglipModel(SiglipConfig(text_config=text, vision_config=eyes))
    with torch.no_grad():
        for parameter in model.parameters():  # so that no bias is 0 and no norm is 1
            parameter += 0.2 * torch.randn_like(parameter)
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model
