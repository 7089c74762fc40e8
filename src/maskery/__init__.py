"""Maskery: masked language modelling for text and image-text.

The names below are the public surface; `docs/python.md` shows them at work. They are imported when
first used, so that `import maskery` costs nothing.
"""

import importlib
import sys
from functools import cache
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
    from maskery.runs.image_text.config import PairsRunConfig, PersonSearchRunConfig
    from maskery.runs.pairs.run import train_pairs
    from maskery.runs.person_search.run import train_person_search
    from maskery.runs.shortcuts import explain, open_filler, search, train
    from maskery.runs.shortcuts import open_image_text_model as open_image_text
    from maskery.runs.text.config import TextRunConfig
    from maskery.runs.text.evaluate import evaluate_model, evaluate_run
    from maskery.runs.text.run import train_text
    from maskery.tasks.text_mlm import TextMLM, TextParts
    from maskery.tasks.text_mlm_config import register_objective
    from maskery.training.config import TrainingConfig
    from maskery.training.journal import Callback
    from maskery.training.loop import TrainingLoop
    from maskery.training.stepper import Stepper

__version__ = "0.1.0"

__all__ = [
    "Callback", "CheckpointError", "ConfigError", "Corpus", "CorpusConfig", "DataError", "Filler",
    "ImageTextModel", "Interval", "MaskCollator", "MaskedLanguageModel", "Masker", "MaskeryError",
    "MaskingConfig", "MissingExtraError", "ModelError", "OtherProcessError", "PairsConfig",
    "PairsRunConfig", "PersonSearchRunConfig", "PluginError", "Policy", "Selection", "Stepper",
    "StoppedError", "Task", "TextMLM", "TextParts", "TextRunConfig", "TrainingConfig",
    "TrainingError", "TrainingLoop", "Vocabulary", "__version__", "convert", "evaluate",
    "evaluate_model", "evaluate_run", "explain", "mask", "open_filler", "open_image_text",
    "open_model", "open_run", "register_objective", "register_pairs_reader", "register_policy",
    "register_reader", "retrieval_figures", "score", "search", "texts_source", "train",
    "train_pairs", "train_person_search", "train_text",
]  # fmt: skip


@cache
def _homes() -> dict[str, tuple[str, str]]:
    """Return the module of each public name, and its name there, from the imports above.

    Nobody runs those imports, but they are written once and type checkers read them too.
    """
    # Not at the top: `import maskery` costs nothing.
    import ast
    import inspect

    tree = ast.parse(inspect.getsource(sys.modules[__name__]))
    return {
        alias.asname or alias.name: (node.module or "", alias.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("maskery.")
        for alias in node.names
    }


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'maskery' has no attribute '{name}'")
    module, attribute = _homes()[name]
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted(__all__)
