"""What a checkpoint file does not tell: heads, settings and tokenizer, from the files beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, BertTokenizer, PreTrainedTokenizerBase

from maskery.core.batch import require_mask, vocabulary_size
from maskery.core.errors import ConfigError, ModelError, reason_of
from maskery.models.loading import quiet_transformers

CONFIG, WORDS = "config.json", "vocab.txt"
TOKENIZERS = ("tokenizer.json", "tokenizer_config.json")
# Width to heads, where all published models agree. Of width 384, MiniLM and MoCo v3 have 12 heads
# and DeiT has 6; small BERTs differ as well.
TEXT_HEADS = {768: 12, 1024: 16}
VISION_HEADS = {192: 3, 768: 12, 1024: 16, 1280: 16}
# Rows of padding, as of all vocabularies that are rounded up, are fewer than this share.
PADDING = 0.01


def read_described(folder: Path) -> dict[str, Any]:
    """Read the `config.json` of a folder; empty if there is none."""
    path = folder / CONFIG
    if not path.is_file():
        return {}
    try:
        described = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"'{path}' is not readable JSON ({reason_of(error, most=120)})") from error
    if not isinstance(described, dict):
        raise ModelError(f"'{path}' holds a {type(described).__name__}: it must hold an object")
    return described


def part_of(described: Mapping[str, Any], part: str) -> dict[str, Any]:
    """Return the settings of the text or vision side: of their own, or those of the whole."""
    own = described.get(f"{part}_config")
    if isinstance(own, dict):
        return own
    # A whole that is a BERT describes the text side; its picture side can be named in passing.
    return (
        {"num_attention_heads": described.get("vision_heads")}
        if part == "vision"
        else {**described}
    )


def heads_of(
    side: str,
    width: int,
    given: int | None,
    described: Mapping[str, Any],
    published: Mapping[int, int],
) -> int:
    """Return the attention heads: as given, as described, or as all published models have."""
    heads = given or described.get("num_attention_heads") or published.get(width)
    if heads is None:
        raise ConfigError(
            f"no tensor tells the attention heads of the {side} encoder, and its width {width} "
            f"allows several numbers: give --{side}-heads, or put the model's config.json beside "
            f"the file"
        )
    if not isinstance(heads, int) or heads < 1 or width % heads:
        raise ConfigError(
            f"{heads} attention heads of the {side} encoder: the number must divide its width "
            f"{width}; give --{side}-heads, or mend the config.json beside the file"
        )
    return heads


def read_tokenizer(name: str | None, folder: Path, num_rows: int) -> PreTrainedTokenizerBase:
    """Load the tokenizer `name`, or the one in `folder`, and compare it with the vocabulary rows.

    Raises:
        ModelError: There is none, it cannot be read, or it belongs to another vocabulary.
    """
    if name is None and not any((folder / file).is_file() for file in (*TOKENIZERS, WORDS)):
        raise ModelError(
            f"the checkpoint has no tokenizer beside it, without which its {num_rows} words mean "
            f"nothing: name one with --tokenizer (ALBEF's and RaSa's: bert-base-uncased)"
        )
    source = str(folder) if name is None else name
    tokenizer = _load(source)
    size = vocabulary_size(tokenizer)
    if not num_rows * (1 - PADDING) < size <= num_rows:
        raise ModelError(
            f"the tokenizer '{source}' has {size} words and the checkpoint {num_rows} rows for "
            f"them: they do not belong together; name the checkpoint's own with --tokenizer"
        )
    require_mask(tokenizer)
    return tokenizer


def _load(source: str) -> PreTrainedTokenizerBase:
    """Load a tokenizer from a folder, a list of words, or the hub."""
    path = Path(source).expanduser()
    words = path / WORDS if path.is_dir() else path
    try:
        with quiet_transformers():
            if words.is_file() and not any((words.parent / file).is_file() for file in TOKENIZERS):
                return _of_words(words)
            return AutoTokenizer.from_pretrained(
                path if path.is_dir() else source, trust_remote_code=False
            )
    except Exception as error:  # damaged files of tokenizers fail in any way
        raise ModelError(
            f"'{source}' is not a tokenizer that can be read ({reason_of(error, most=140)})"
        ) from error


def _of_words(path: Path) -> PreTrainedTokenizerBase:
    """Make BERT's tokenizer of a list of words, which is lower-cased only if all words are."""
    words = path.read_text("utf-8").split("\n")
    cased = any(word != word.lower() for word in words if not word.startswith("["))
    return BertTokenizer(str(path), do_lower_case=not cased)
