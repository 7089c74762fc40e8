"""From flat batches to the inputs of a Hugging Face encoder: packed, padded, or of constant shapes.

Packed, sequences lie end to end and no padding is computed. That goes wrong silently where a family
computes attention outside Transformers' attention interface, adds relative biases, or mixes
neighbouring tokens elsewhere. So there is a list of families known to work, and at start-up packed
is compared with padded on a few rows.

Shapes: B sequences, L longest, T tokens, S segments, M masked tokens, or rows for them.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Self

import numpy as np
import torch
from transformers import PreTrainedConfig, PreTrainedModel

from maskery.core.batch import IGNORE_INDEX, Ints, MaskedTokens, StaticShapes
from maskery.core.errors import MALFORMED, ModelError, explained
from maskery.core.processes import evaluating

PACKABLE = frozenset({
    "albert", "bert", "camembert", "data2vec-text", "distilbert", "electra", "ernie", "esm",
    "esmc", "eurobert", "gte", "jina_embeddings_v3", "layoutlm", "modernbert", "neomme",
    "nomic_bert", "roberta", "roberta-prelayernorm", "roc_bert", "ultrabert", "xlm-roberta",
    "xlm-roberta-xl", "xmod",
})  # fmt: skip
# Families whose position ids start after the padding index.
POSITIONS_AFTER_PADDING = frozenset({
    "camembert", "data2vec-text", "esm", "ibert", "longformer", "luke", "mpnet", "roberta",
    "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod",
})  # fmt: skip
# That tokens are rounded up to, for the tiles of matrix products, and rows for masked tokens, each
# of which is multiplied with the whole vocabulary.
TOKEN_MULTIPLE, ROW_MULTIPLE = 64, 32
# Largest difference of logits, relative to the largest logit, that rounding explains in float32.
TOLERANCE = 1e-3
HALF_TOLERANCE = 0.05  # In bf16, whose rounding differs; a leak between segments differs by more


@dataclass(frozen=True, kw_only=True)
class EncoderInputs:
    """One encoder call."""

    input_ids: torch.Tensor  # (1, T) packed or (B, L) padded, int64
    rows: torch.Tensor  # (M,) int64: where the masked tokens lie in `input_ids`, flattened
    arguments: dict[str, Any]  # The other forward arguments

    def to(self, device: torch.device) -> Self:
        """Copy to `device`."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Self:
        """Copy to page-locked memory, from where a GPU copies while it computes."""
        return self.map(torch.Tensor.pin_memory)

    def map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> Self:
        """Apply `function` to every tensor."""
        # Forward arguments may share a tensor; what is made of it is shared, too.
        once = cache(function)
        others = {n: once(t) for n, t in self.arguments.items() if isinstance(t, torch.Tensor)}
        ids, rows = once(self.input_ids), once(self.rows)
        return replace(self, input_ids=ids, rows=rows, arguments=self.arguments | others)


def pack(
    input_ids: Ints,
    boundaries: Ints,
    positions: Ints,  # (M,) indices into the T
    *,
    first_position: int = 0,  # the position id of a sequence's first token
    longest: int | None = None,  # given where it must not change from batch to batch
) -> EncoderInputs:
    """Lay sequences, (T,) ids with (B + 1,) boundaries, end to end in one row."""
    lengths = np.diff(boundaries)
    position_ids = np.arange(len(input_ids)) - np.repeat(boundaries[:-1], lengths) + first_position
    cumulative = torch.from_numpy(boundaries.astype(np.int32))
    longest = int(lengths.max(initial=0)) if longest is None else longest
    return EncoderInputs(
        input_ids=torch.from_numpy(input_ids).unsqueeze(0),
        rows=torch.from_numpy(positions),
        arguments={
            "position_ids": torch.from_numpy(position_ids).unsqueeze(0),
            "cu_seq_lens_q": cumulative,
            "cu_seq_lens_k": cumulative,
            "max_length_q": longest,
            "max_length_k": longest,
        },
    )


def pad(
    input_ids: Ints, boundaries: Ints, positions: Ints, *, pad_token_id: int, least: int = 0
) -> EncoderInputs:
    """Give every sequence a row, padded on the right to the longest, or to `least` if longer."""
    lengths = np.diff(boundaries)
    longest = max(least, int(lengths.max(initial=0)))
    inside = np.arange(longest)[None, :] < lengths[:, None]
    padded = np.full(inside.shape, pad_token_id, np.int64)
    padded[inside] = input_ids
    return EncoderInputs(
        input_ids=torch.from_numpy(padded),
        rows=torch.from_numpy(np.flatnonzero(inside)[positions]),
        arguments={"attention_mask": torch.from_numpy(inside.astype(np.int64))},
    )


def pack_static(
    masked: MaskedTokens, shapes: StaticShapes, *, pad_token_id: int, first_position: int = 0
) -> tuple[EncoderInputs, torch.Tensor]:
    """Pack a batch that fits in `shapes`, then padding in sequences of its own, then empty ones.

    Returns T tokens in S segments with M rows; and (M,) int64 targets, `IGNORE_INDEX` in rows that
    are not used. Masked tokens beyond M have none.
    """
    ids = np.full(shapes.num_tokens, pad_token_id, np.int64)
    ids[: masked.batch.num_tokens] = masked.input_ids
    positions, targets = masked_rows(masked, shapes)
    boundaries = filled_boundaries(masked.batch.boundaries, shapes)
    inputs = pack(ids, boundaries, positions, first_position=first_position, longest=shapes.longest)
    return inputs, torch.from_numpy(targets)


def rounded_shapes(masked: MaskedTokens) -> StaticShapes:
    """Return the sizes of a batch rounded up, of which a run's batches have few different ones."""
    # A CPU compiles its products in bfloat16 once for each size (6 ms; a step has twenty).
    batch, longest = masked.batch, int(masked.batch.lengths.max(initial=1))
    num_tokens = round_up(batch.num_tokens, TOKEN_MULTIPLE)
    return StaticShapes(
        num_tokens=num_tokens,
        num_segments=len(batch.lengths) + -(-(num_tokens - batch.num_tokens) // longest),
        longest=longest,
        num_masked=round_up(len(masked.positions), ROW_MULTIPLE),
    )


def round_up(size: int, multiple: int) -> int:
    """Round up to the next multiple."""
    return -(-size // multiple) * multiple


def filled_boundaries(boundaries: Ints, shapes: StaticShapes) -> Ints:
    """Return (S + 1,) int64: the sequences, then padding cut into pieces, then empty ones."""
    # A kernel computes no further than the constant maximum length, so padding is cut by it.
    real = int(boundaries[-1])
    pieces = np.arange(real + shapes.longest, shapes.num_tokens, shapes.longest)
    used = np.concatenate((boundaries, pieces))
    assert real <= shapes.num_tokens
    assert int(np.diff(boundaries).max(initial=0)) <= shapes.longest
    filled = np.full(shapes.num_segments + 1, shapes.num_tokens, np.int64)
    filled[: len(used)] = used
    assert filled[-1] == shapes.num_tokens
    return filled


def masked_rows(masked: MaskedTokens, shapes: StaticShapes) -> tuple[Ints, Ints]:
    """Return (M,) positions and (M,) targets; unused rows point anywhere and have no target."""
    count, room = len(masked.positions), shapes.num_masked
    if count > room:
        # Those left out of the loss are spread evenly over the batch; they stay corrupted there.
        kept = np.arange(room) * count // room
        return masked.positions[kept], masked.targets[kept]
    # Different rows, so that adding their zero gradients does not pile up on one; and in order,
    # as they are in a batch as it comes.
    spare = np.arange(shapes.num_tokens - (room - count), shapes.num_tokens)
    nothing = np.full(room - count, IGNORE_INDEX, np.int64)
    positions = np.concatenate((masked.positions, spare))
    order = np.argsort(positions, kind="stable")
    return positions[order], np.concatenate((masked.targets, nothing))[order]


def first_position(config: PreTrainedConfig) -> int:
    """Return the position id of a sequence's first token."""
    return int(config.pad_token_id) + 1 if config.model_type in POSITIONS_AFTER_PADDING else 0


def max_positions(config: PreTrainedConfig) -> int | None:
    """Return the most tokens a sequence may have, or None where the model sets no limit."""
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    return limit - first_position(config) if isinstance(limit, int) and limit > 0 else None


def least_length(config: PreTrainedConfig) -> int:
    """Return how long rows of padded batches must be."""
    if config.model_type == "reformer":  # trains with all of its positions, and no fewer
        return int(config.max_position_embeddings)
    return 5 if config.model_type == "funnel" else 0  # it pools neighbours, and fails below


def _sample(hf: PreTrainedModel, pad_token_id: int) -> tuple[Ints, Ints, Ints]:
    """Return ids (T,) of sequences at random, their boundaries (B + 1,), and all positions (T,)."""
    limit = max_positions(hf.config) or 64
    # A single token, two of one length, longest and shortest apart: what packing may mix up.
    lengths = np.minimum(np.array([7, 1, 12, 7, 3]), limit)
    boundaries = np.concatenate(([0], np.cumsum(lengths)))
    size = hf.config.get_text_config().vocab_size
    low = 5 if size > 10 else 0  # the first ids are special tokens, in most vocabularies
    ids = np.random.default_rng(0).integers(low, size, int(boundaries[-1]), dtype=np.int64)
    ids[ids == pad_token_id] = low + (pad_token_id == low)
    return ids, boundaries, np.arange(len(ids))


@torch.no_grad()
def require_readable(hf: PreTrainedModel, pad_token_id: int) -> None:
    """Raise a ModelError if a family needs more than token ids and a mask of what is padding."""
    least = least_length(hf.config)
    of = f"models of the family '{hf.config.model_type}' with these settings"
    problem, fix = f"{of} cannot read texts of any length", "use another encoder"
    with explained(problem, fix, RuntimeError, *MALFORMED, kind=ModelError):
        _logits(hf.eval(), pad(*_sample(hf, pad_token_id), pad_token_id=pad_token_id, least=least))


@torch.no_grad()
def packing_error(hf: PreTrainedModel, pad_token_id: int) -> float:
    """Return the largest difference of packed from padded logits, as a share of the largest one."""
    sample = _sample(hf, pad_token_id)
    with evaluating(hf):
        packed = _logits(hf, pack(*sample, first_position=first_position(hf.config)))
        padded = _logits(hf, pad(*sample, pad_token_id=pad_token_id))
    scale = padded.abs().max().clamp(min=1e-6)
    return float(((packed - padded).abs().max() / scale).item())


def half_packing_error(hf: PreTrainedModel, pad_token_id: int, device: torch.device) -> float:
    """Return `packing_error` in bf16 on a device; the model is moved there and back."""
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
    """Return (True, "") if batches of this model may be packed, or (False, the reason)."""
    family = hf.config.model_type
    if family not in PACKABLE:
        return False, f"'{family}' is not on the list of families that can be packed"
    if getattr(hf.config, "token_dropout", False):
        return False, f"'{family}' scales a row by its share of masked tokens (token_dropout)"
    tolerance = TOLERANCE
    try:
        error = packing_error(hf, pad_token_id)
        if error <= TOLERANCE and torch.cuda.device_count():  # a GPU trains with another kernel
            tolerance = HALF_TOLERANCE
            error = half_packing_error(hf, pad_token_id, torch.device("cuda"))
    except (RuntimeError, ValueError, TypeError, IndexError) as failure:
        return False, f"the packed self-check of '{family}' failed ({failure})"
    if not error <= tolerance:
        return False, f"packed and padded logits of '{family}' differ by {error:.1e}"
    return True, ""
