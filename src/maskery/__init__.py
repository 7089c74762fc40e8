"""Maskery: masked language modelling for text and image-text.

The names below are the public surface; `docs/python.md` shows them at work. They are imported when
first used, so that `import maskery` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from maskery.core.batch import Vocabulary
    from maskery.core.errors import (
        CheckpointError,
        ConfigError,
        DataError,
        MaskeryError,
        MissingExtraError,
        ModelError,
        OtherProcessError,
        PluginError,
        StoppedError,
        TrainingError,
    )
    from maskery.core.task import Task
    from maskery.data.corpus.config import CorpusConfig
    from maskery.data.corpus.formats import register as register_reader
    from maskery.data.corpus.reader import Corpus
    from maskery.data.pairs.config import PairsConfig
    from maskery.data.pairs.config import register_format as register_pairs_reader
    from maskery.evaluation.intervals import Interval
    from maskery.evaluation.retrieval.metrics import retrieval_figures
    from maskery.evaluation.text.fill import Filler
    from maskery.evaluation.text.opening import evaluate, open_model, texts_source
    from maskery.evaluation.text.pseudo_likelihood import score
    from maskery.hf.collator import MaskCollator
    from maskery.masking.config import MaskingConfig, register_policy
    from maskery.masking.mask import mask
    from maskery.masking.masker import Masker
    from maskery.masking.policies import Policy, Selection
    from maskery.models.checkpoint_import.convert import import_checkpoint as convert
    from maskery.models.image_text.model import ImageTextModel
    from maskery.models.masked_lm import MaskedLanguageModel
    from maskery.runs.frame.config_file import open_run
    from maskery.runs.pairs.config import PairsRunConfig
    from maskery.runs.pairs.run import train_pairs
    from maskery.runs.person_search.config import PersonSearchRunConfig
    from maskery.runs.person_search.run import train_person_search
    from maskery.runs.shortcuts import explain, open_filler, search
    from maskery.runs.shortcuts import open_image_text_model as open_image_text
    from maskery.runs.text.config import TextRunConfig
    from maskery.runs.text.evaluate import evaluate_model, evaluate_run
    from maskery.runs.text.run import train_text
    from maskery.runs.train import train
    from maskery.tasks.text_mlm import TextMLM, TextParts
    from maskery.tasks.text_mlm_config import register_objective
    from maskery.training.config import TrainingConfig
    from maskery.training.journal import Callback
    from maskery.training.loop import TrainingLoop
    from maskery.training.stepper import Stepper

__version__ = "0.1.0"

# The module of each public name; after a colon, its name there.
_HOMES = {
    "Callback": "maskery.training.journal",
    "CheckpointError": "maskery.core.errors",
    "ConfigError": "maskery.core.errors",
    "Corpus": "maskery.data.corpus.reader",
    "CorpusConfig": "maskery.data.corpus.config",
    "DataError": "maskery.core.errors",
    "Filler": "maskery.evaluation.text.fill",
    "ImageTextModel": "maskery.models.image_text.model",
    "Interval": "maskery.evaluation.intervals",
    "MaskCollator": "maskery.hf.collator",
    "MaskedLanguageModel": "maskery.models.masked_lm",
    "Masker": "maskery.masking.masker",
    "MaskeryError": "maskery.core.errors",
    "MaskingConfig": "maskery.masking.config",
    "MissingExtraError": "maskery.core.errors",
    "ModelError": "maskery.core.errors",
    "OtherProcessError": "maskery.core.errors",
    "PairsConfig": "maskery.data.pairs.config",
    "PairsRunConfig": "maskery.runs.pairs.config",
    "PersonSearchRunConfig": "maskery.runs.person_search.config",
    "PluginError": "maskery.core.errors",
    "Policy": "maskery.masking.policies",
    "Selection": "maskery.masking.policies",
    "Stepper": "maskery.training.stepper",
    "StoppedError": "maskery.core.errors",
    "Task": "maskery.core.task",
    "TextMLM": "maskery.tasks.text_mlm",
    "TextParts": "maskery.tasks.text_mlm",
    "TextRunConfig": "maskery.runs.text.config",
    "TrainingConfig": "maskery.training.config",
    "TrainingError": "maskery.core.errors",
    "TrainingLoop": "maskery.training.loop",
    "Vocabulary": "maskery.core.batch",
    "convert": "maskery.models.checkpoint_import.convert:import_checkpoint",
    "evaluate": "maskery.evaluation.text.opening",
    "evaluate_model": "maskery.runs.text.evaluate",
    "evaluate_run": "maskery.runs.text.evaluate",
    "explain": "maskery.runs.shortcuts",
    "mask": "maskery.masking.mask",
    "open_filler": "maskery.runs.shortcuts",
    "open_image_text": "maskery.runs.shortcuts:open_image_text_model",
    "open_model": "maskery.evaluation.text.opening",
    "open_run": "maskery.runs.frame.config_file",
    "register_objective": "maskery.tasks.text_mlm_config",
    "register_pairs_reader": "maskery.data.pairs.config:register_format",
    "register_policy": "maskery.masking.config",
    "register_reader": "maskery.data.corpus.formats:register",
    "retrieval_figures": "maskery.evaluation.retrieval.metrics",
    "score": "maskery.evaluation.text.pseudo_likelihood",
    "search": "maskery.runs.shortcuts",
    "texts_source": "maskery.evaluation.text.opening",
    "train": "maskery.runs.train",
    "train_pairs": "maskery.runs.pairs.run",
    "train_person_search": "maskery.runs.person_search.run",
    "train_text": "maskery.runs.text.run",
}

__all__ = [
    "Callback",
    "CheckpointError",
    "ConfigError",
    "Corpus",
    "CorpusConfig",
    "DataError",
    "Filler",
    "ImageTextModel",
    "Interval",
    "MaskCollator",
    "MaskedLanguageModel",
    "Masker",
    "MaskeryError",
    "MaskingConfig",
    "MissingExtraError",
    "ModelError",
    "OtherProcessError",
    "PairsConfig",
    "PairsRunConfig",
    "PersonSearchRunConfig",
    "PluginError",
    "Policy",
    "Selection",
    "Stepper",
    "StoppedError",
    "Task",
    "TextMLM",
    "TextParts",
    "TextRunConfig",
    "TrainingConfig",
    "TrainingError",
    "TrainingLoop",
    "Vocabulary",
    "__version__",
    "convert",
    "evaluate",
    "evaluate_model",
    "evaluate_run",
    "explain",
    "mask",
    "open_filler",
    "open_image_text",
    "open_model",
    "open_run",
    "register_objective",
    "register_pairs_reader",
    "register_policy",
    "register_reader",
    "retrieval_figures",
    "score",
    "search",
    "texts_source",
    "train",
    "train_pairs",
    "train_person_search",
    "train_text",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'maskery' has no attribute '{name}'")
    module, _, attribute = _HOMES[name].partition(":")
    return getattr(importlib.import_module(module), attribute or name)


def __dir__() -> list[str]:
    return sorted(__all__)
