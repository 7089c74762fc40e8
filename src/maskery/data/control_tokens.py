"""Control tokens such as `[SEP]` or `</s>` that somebody has typed in a text are text."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Tokens added for other ends, such as `[URL]`, are there to be written in texts.
ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
# No text has it: a file with NUL bytes is refused as binary.
HIDDEN = "\0"


def without_control_tokens(tokenizer: PreTrainedTokenizerBase, keep: str = "") -> str:
    """Describe a fast tokenizer as JSON in which no control token but `keep` can be typed.

    They are renamed and not removed, so every id stays; a Unigram model would find them among its
    pieces even where the `tokenizers` library is told to split them.
    """
    described: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    control = {getattr(tokenizer, f"{role}_token") for role in ROLES} - {None, keep}

    def renamed(token: str) -> str:
        return HIDDEN + token if token in control else token

    model = described["model"]
    vocabulary = model["vocab"]
    if isinstance(vocabulary, dict):
        model["vocab"] = {renamed(token): index for token, index in vocabulary.items()}
    else:
        model["vocab"] = [[renamed(token), score] for token, score in vocabulary]
    if model.get("unk_token"):
        model["unk_token"] = renamed(model["unk_token"])
    for token in described["added_tokens"]:
        token["content"] = renamed(token["content"])
    described["post_processor"] = None  # it names them, and puts them around texts only
    return json.dumps(described)
