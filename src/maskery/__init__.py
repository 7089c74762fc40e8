"""Maskery: masked language modelling for text and image-text.

The names below are the public surface; they are imported when first used, so that
`import maskery` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from maskery.core.errors import MaskeryError
    from maskery.core.vocabulary import Vocabulary
    from maskery.evaluation.text.fill import Filler
    from maskery.evaluation.text.opening import open_model
    from maskery.masking.config import MaskingConfig
    from maskery.masking.mask import mask
    from maskery.masking.masker import Masker
    from maskery.runs.text.config import TextRunConfig
    from maskery.runs.text.evaluate import evaluate_model, evaluate_run
    from maskery.runs.text.run import train_text
    from maskery.tasks.text_mlm import TextMLM
    from maskery.training.config import TrainingConfig

__version__ = "0.1.0"

_HOMES = {
    "Filler": "maskery.evaluation.text.fill",
    "Masker": "maskery.masking.masker",
    "MaskeryError": "maskery.core.errors",
    "MaskingConfig": "maskery.masking.config",
    "TextMLM": "maskery.tasks.text_mlm",
    "TextRunConfig": "maskery.runs.text.config",
    "TrainingConfig": "maskery.training.config",
    "Vocabulary": "maskery.core.vocabulary",
    "evaluate_model": "maskery.runs.text.evaluate",
    "evaluate_run": "maskery.runs.text.evaluate",
    "mask": "maskery.masking.mask",
    "open_model": "maskery.evaluation.text.opening",
    "train_text": "maskery.runs.text.run",
}

__all__ = [
    "Filler",
    "Masker",
    "MaskeryError",
    "MaskingConfig",
    "TextMLM",
    "TextRunConfig",
    "TrainingConfig",
    "Vocabulary",
    "__version__",
    "evaluate_model",
    "evaluate_run",
    "mask",
    "open_model",
    "train_text",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'maskery' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
