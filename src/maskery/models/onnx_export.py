"""Write a masked language model as ONNX, checked against the model by onnxruntime."""

from __future__ import annotations

import io
import logging
import warnings
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from maskery.core.errors import ModelError, reason_of
from maskery.core.registry import require
from maskery.models.layout import PACKABLE, max_positions

NAMES = ("input_ids", "attention_mask")
# Sequences and tokens of what is compared; the export sees the second.
SHAPES = ((1, 8), (3, 16), (2, 50))
TOLERANCE = 1e-4
# Protocol buffers hold two gigabytes; weights beyond lie in a file of their own.
MOST_BYTES = 1_800_000_000


class Logits(nn.Module):
    """The model as ONNX knows it: (B, L) ids and mask in, (B, L, V) logits out."""

    def __init__(self, hf: PreTrainedModel) -> None:
        super().__init__()
        self.hf = hf

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        """Return the logits."""
        return self.hf(input_ids=input_ids, attention_mask=attention_mask).logits


def export_onnx(hf: PreTrainedModel, path: Path) -> float:
    """Write a model as ONNX; returns the largest difference of its logits at three lengths.

    Raises:
        MissingExtraError: A package of the extra `onnx` is not installed.
        ModelError: ONNX cannot take the model, or computes something else.
    """
    for module in ("onnx", "onnxscript", "onnxruntime"):
        runtime: Any = require(module, extra="onnx", purpose="write ONNX")
    limit, quiet = max_positions(hf.config) or 512, io.StringIO()
    batches = [_batch(hf, rows, min(length, limit)) for rows, length in SHAPES]
    logging.disable(logging.CRITICAL)  # each way that is tried and fails is told at length
    try:
        with (
            warnings.catch_warnings(action="ignore"),
            redirect_stdout(quiet),
            redirect_stderr(quiet),
        ):
            with torch.no_grad():
                expected = [Logits(hf)(*batch).numpy() for batch in batches]
            if hf.config.model_type in PACKABLE:  # Maskery's own attention is none of ONNX's
                hf.set_attn_implementation("eager")
            torch.onnx.export(
                Logits(hf).eval(),
                batches[1],
                path,
                input_names=NAMES,
                output_names=["logits"],
                dynamic_shapes=dict.fromkeys(
                    NAMES, dict.fromkeys((0, 1), torch.export.Dim.DYNAMIC)
                ),
                external_data=sum(one.nbytes for one in hf.parameters()) > MOST_BYTES,
                dynamo=True,
                verbose=False,
            )
            session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
            feeds = ({n: t.numpy() for n, t in zip(NAMES, batch, strict=True)} for batch in batches)
            found = [session.run(None, feed)[0] for feed in feeds]
            apart = max(float(abs(a - b).max()) for a, b in zip(found, expected, strict=True))
            if not apart <= TOLERANCE:
                raise ValueError(f"logits differ by {apart:.2g}, and {TOLERANCE:g} is allowed")
    except Exception as error:  # of torch.export, of its translation, or of onnxruntime
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise ModelError(
            f"ONNX cannot take this model of the family {hf.config.model_type} "
            f"({reason_of(cause, most=160)}); use it with Transformers"
        ) from error
    finally:
        logging.disable(logging.NOTSET)
    return apart


def _batch(hf: PreTrainedModel, rows: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return random ids and their mask, the last token of the first sequence being padding."""
    words: Any = hf.get_input_embeddings()
    generator = torch.Generator().manual_seed(length)
    ids = torch.randint(words.num_embeddings, (rows, length), generator=generator)
    mask = torch.ones_like(ids)
    mask[0, -1], ids[0, -1] = 0, hf.config.get_text_config().pad_token_id or 0
    return ids, mask
