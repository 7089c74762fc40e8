"""Which families can be packed, and the check that they really can.

Packing goes wrong silently where a family computes attention outside Transformers' attention
interface, adds relative biases, or mixes neighbouring tokens elsewhere. So there is a list of
families known to work, and at start-up packed is compared with padded on a few rows.
"""

from __future__ import annotations

import logging

import numpy as np
import torch
from transformers import PreTrainedConfig, PreTrainedModel

from maskery.models.layout import EncoderInputs, pack, pad

log = logging.getLogger(__name__)

PACKABLE = frozenset(
    {
        "albert",
        "bert",
        "camembert",
        "data2vec-text",
        "distilbert",
        "electra",
        "ernie",
        "esm",
        "esmc",
        "eurobert",
        "gte",
        "jina_embeddings_v3",
        "layoutlm",
        "modernbert",
        "neomme",
        "nomic_bert",
        "roberta",
        "roberta-prelayernorm",
        "roc_bert",
        "ultrabert",
        "xlm-roberta",
        "xlm-roberta-xl",
        "xmod",
    }
)
# Families whose position ids start after the padding index.
POSITIONS_AFTER_PADDING = frozenset(
    {
        "camembert",
        "data2vec-text",
        "esm",
        "roberta",
        "roberta-prelayernorm",
        "xlm-roberta",
        "xlm-roberta-xl",
        "xmod",
    }
)
TOLERANCE = 1e-3
# In bf16, whose logits differ by rounding alone; a leak between segments differs by more.
HALF_TOLERANCE = 0.05


def first_position(config: PreTrainedConfig) -> int:
    """The position id of a sequence's first token."""
    if config.model_type in POSITIONS_AFTER_PADDING:
        return int(config.pad_token_id) + 1
    return 0


def max_positions(config: PreTrainedConfig) -> int | None:
    """The most tokens a sequence may have, or None where the model sets no limit."""
    limit = getattr(config, "max_position_embeddings", None)
    if not isinstance(limit, int) or limit <= 0:
        return None
    return limit - first_position(config)


@torch.no_grad()
def packing_error(hf: PreTrainedModel, pad_token_id: int, seed: int = 0) -> float:
    """The largest difference between packed and padded logits on a few random sequences.

    Relative to the largest logit. The model is in evaluation mode while it is checked.
    """
    generator = np.random.default_rng(seed)
    limit = max_positions(hf.config) or 64
    lengths = np.minimum(np.array([7, 1, 12, 7, 3]), limit)
    boundaries = np.concatenate(([0], np.cumsum(lengths)))
    low = 5 if hf.config.vocab_size > 10 else 0
    ids = generator.integers(low, hf.config.vocab_size, int(boundaries[-1]), dtype=np.int64)
    ids[ids == pad_token_id] = low + (pad_token_id == low)
    everything = np.arange(len(ids))
    was_training = hf.training
    hf.eval()
    try:
        start = first_position(hf.config)
        packed = _logits(hf, pack(ids, boundaries, everything, first_position=start))
        padded = _logits(hf, pad(ids, boundaries, everything, pad_token_id=pad_token_id))
    finally:
        hf.train(was_training)
    scale = padded.abs().max().clamp(min=1e-6)
    return float(((packed - padded).abs().max() / scale).item())


def half_packing_error(hf: PreTrainedModel, pad_token_id: int, device: torch.device) -> float:
    """The same in bf16 on a device; the model is moved there and back."""
    home = hf.device
    try:
        hf.to(device)
        with torch.autocast(device.type, dtype=torch.bfloat16):
            return packing_error(hf, pad_token_id)
    finally:
        hf.to(home)


def _logits(hf: PreTrainedModel, inputs: EncoderInputs) -> torch.Tensor:
    inputs = inputs.to(hf.device)
    logits: torch.Tensor = hf(input_ids=inputs.input_ids, **inputs.arguments).logits
    return logits.reshape(-1, logits.shape[-1])[inputs.rows].float()


def can_pack(hf: PreTrainedModel, pad_token_id: int) -> tuple[bool, str]:
    """Whether batches of this model may be packed, and why not.

    Returns:
        (True, "") or (False, reason).
    """
    family = hf.config.model_type
    if family not in PACKABLE:
        return False, f"'{family}' is not on the list of families that can be packed"
    if getattr(hf.config, "token_dropout", False):
        return False, f"'{family}' scales a row by its share of masked tokens (token_dropout)"
    tolerance = TOLERANCE
    try:
        error = packing_error(hf, pad_token_id)
        if error <= TOLERANCE and torch.cuda.device_count():
            # What trains there is another kernel.
            tolerance = HALF_TOLERANCE
            error = half_packing_error(hf, pad_token_id, torch.device("cuda"))
    except (RuntimeError, ValueError, TypeError, IndexError) as failure:
        return False, f"the packed self-check of '{family}' failed ({failure})"
    if not error <= tolerance:
        return False, f"packed and padded logits of '{family}' differ by {error:.1e}"
    return True, ""
