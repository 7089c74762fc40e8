"""Write a masked language model as ONNX, checked against the model by onnxruntime."""

import io
import logging
import warnings
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from maskery.core.errors import ModelError, reason_of
from maskery.core.registry import require
from maskery.models.layout import PACKABLE, max_positions

SHAPES = ((1, 8), (3, 16), (2, 50))  # Sequences and tokens compared; the export sees the second
TOLERANCE = 1e-4  # Largest difference of logits: other kernels add in another order
MOST_BYTES = 1_800_000_000  # Protocol buffers hold 2 GB; weights beyond lie in another file


@torch.no_grad()
def export_onnx(hf: PreTrainedModel, path: Path) -> float:
    """Write a model as ONNX; returns the largest difference of its logits at three lengths.

    A ModelError says that ONNX cannot take the model, or computes something else.
    """
    for module in ("onnx", "onnxscript", "onnxruntime"):
        runtime: Any = require(module, extra="onnx", purpose="write ONNX")
    hf.cpu()  # where onnxruntime computes, too
    sink, words = io.StringIO(), hf.get_input_embeddings()
    limit, pad = max_positions(hf.config) or 512, hf.config.get_text_config().pad_token_id or 0
    hf.config.use_cache = False  # of those that also decode
    any_size = dict.fromkeys((0, 1), torch.export.Dim.DYNAMIC)
    logging.disable(logging.CRITICAL)  # each way that is tried and fails is told at length
    try:
        with warnings.catch_warnings(action="ignore"), redirect_stdout(sink), redirect_stderr(sink):
            feeds = []
            for rows, length in SHAPES:
                ids = torch.randint(len(words.weight), (rows, min(length, limit)))
                mask = torch.ones_like(ids)
                mask[0, -1], ids[0, -1] = 0, pad
                feeds.append({"input_ids": ids, "attention_mask": mask})
            expected = [hf(**feed).logits for feed in feeds]
            if hf.config.model_type in PACKABLE:  # Maskery's own attention is none of ONNX's
                hf.set_attn_implementation("eager")
            torch.onnx.export(
                hf,
                (),
                path,
                kwargs=feeds[1],
                output_names=["logits"],
                dynamic_shapes=dict.fromkeys(feeds[1], any_size),
                external_data=sum(one.nbytes for one in hf.parameters()) > MOST_BYTES,
                dynamo=True,
                verbose=False,
            )
            session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
            worst = torch.zeros(())  # NaN stays
            for feed, logits in zip(feeds, expected, strict=True):
                numbers = {name: one.numpy() for name, one in feed.items()}
                found = torch.from_numpy(session.run(["logits"], numbers)[0])
                worst = torch.maximum(worst, (found - logits).abs().max())
            apart = float(worst)
            if not apart <= TOLERANCE:
                raise ValueError(f"logits differ by {apart:.2g}, and {TOLERANCE:g} is allowed")
    except Exception as error:  # of torch.export, of its translation, or of onnxruntime
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        problem = f"ONNX cannot take this model of the family {hf.config.model_type}"
        reason = reason_of(cause, most=160)
        raise ModelError(f"{problem} ({reason}); use it with Transformers") from error
    finally:
        logging.disable(logging.NOTSET)
    return apart
