"""A model object of the user's own: a Hugging Face model, or a plain `nn.Module`.

A plain module needs four things, and nothing else of Transformers:

    class Mine(nn.Module):
        vocab_size = 8000                                # rows of the vocabulary
        max_positions = 512                              # the longest sequence; may be left out

        def hidden(self, input_ids, attention_mask):     # (B, L), (B, L) -> (B, L, D)
            ...

        def logits(self, rows):                          # (M, D) -> (M, V)
            ...

`attention_mask` is 1 at tokens and 0 at padding, which must not change what stands at the tokens.
The module is saved as `model.safetensors`, by its own names, beside a `config.json` that says what
it is; `load_own_weights(module, folder)` reads it back.

Shapes: B sequences, L padded length, M rows, D width, V vocabulary.
"""

import logging
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_outputs import BaseModelOutput, MaskedLMOutput

from maskery.core.batch import require_mask
from maskery.core.errors import ModelError, reason_of
from maskery.core.processes import evaluating
from maskery.models import attention
from maskery.models.layout import PACKABLE, can_pack
from maskery.models.loading import Loaded, require_rows
from maskery.models.masked_lm import MaskedLanguageModel

log = logging.getLogger(__name__)

WEIGHTS = "model.safetensors"
NEEDED = (
    "vocab_size: int, hidden(input_ids, attention_mask) -> (B, L, D), logits(rows) -> (M, V), and "
    "max_positions: int where sequences have a limit"
)
PADDING_TOLERANCE = 1e-3  # Largest change of hidden states, beside their size, by rounding


class OwnConfig(PreTrainedConfig):  # type: ignore[misc]  # Transformers is not typed
    """Describes a plain module in a `config.json`."""

    model_type = "own-module"


class OwnModel(PreTrainedModel):  # type: ignore[misc]
    """A plain module in the shape of a Hugging Face masked language model."""

    config_class = OwnConfig
    base_model_prefix = "encoder"

    def __init__(self, config: OwnConfig, module: nn.Module) -> None:
        super().__init__(config)
        self.encoder = _Encoder(module)

    def forward(self, input_ids: Tensor, **arguments: Any) -> MaskedLMOutput:
        """Encode, and run the module's head on every place."""
        hidden = self.encoder(input_ids=input_ids, **arguments)[0]
        rows = self.encoder.module.logits(hidden.reshape(-1, hidden.shape[-1]))
        return MaskedLMOutput(logits=rows.reshape(*hidden.shape[:-1], -1))

    def save_pretrained(self, save_directory: str | Path, **_others: Any) -> None:
        """Write the module's weights by its own names, and `config.json`."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        module = self.encoder.module
        own = {name for name, _ in (*module.named_parameters(), *module.named_buffers())}
        # Tied weights once, as safetensors wants it; the module ties them again when it is made.
        tensors = {n: t.detach().cpu().contiguous() for n, t in module.state_dict().items()}
        save_file({n: t for n, t in tensors.items() if n in own}, folder / WEIGHTS)
        self.config.save_pretrained(folder)


class _Encoder(nn.Module):
    main_input_name = "input_ids"

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module: Any = module

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> BaseModelOutput:
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        return BaseModelOutput(last_hidden_state=self.module.hidden(input_ids, mask))


def as_masked_lm(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> MaskedLanguageModel:
    """Make a Hugging Face model, or a plain module as above, trainable; packed where it can be."""
    if isinstance(model, MaskedLanguageModel):
        return model
    hf = as_loaded(model, tokenizer).model
    pad = int(tokenizer.pad_token_id or 0)
    # What a plain module does with neighbours in a row is not known.
    packed = not isinstance(hf, OwnModel) and can_pack(hf, pad)[0]
    return MaskedLanguageModel(hf, packed=packed, pad_token_id=pad)


def as_loaded(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> Loaded:
    """Take a model object in the place of one that is loaded by name; see `as_masked_lm`."""
    hf = model if isinstance(model, PreTrainedModel) else _wrapped(model, tokenizer)
    if hf.get_output_embeddings() is None and not isinstance(hf, OwnModel):
        problem = f"{type(hf).__name__} has no masked-language-modelling head"
        raise ModelError(f"{problem}; load it with AutoModelForMaskedLM")
    require_mask(tokenizer)
    require_rows(type(model).__name__, hf, tokenizer)
    if hf.config.model_type in PACKABLE:  # Maskery's attention computes the same
        hf.set_attn_implementation(attention.NAME)
    return Loaded(model=hf.eval(), tokenizer=tokenizer)


def load_own_weights(module: nn.Module, folder: str | Path) -> None:
    """Read the weights of a plain module that a run has saved in a model folder, in place."""
    path = Path(folder) / WEIGHTS
    try:
        weights = load_file(path)
        if missing := {name for name, _ in module.named_parameters()} - weights.keys():
            raise RuntimeError(f"'{min(missing)}' is not in it")
        if unknown := module.load_state_dict(weights, strict=False).unexpected_keys:
            raise RuntimeError(f"the module has no '{unknown[0]}'")
    except (OSError, SafetensorError, RuntimeError) as error:
        problem = f"the weights '{path}' do not fit {type(module).__name__}: {reason_of(error)}"
        raise ModelError(f"{problem}; make the module as it was trained") from error


def _wrapped(module: Any, tokenizer: PreTrainedTokenizerBase) -> OwnModel:
    if isinstance(module, type):
        raise ModelError(f"{module.__name__} is a class; pass an object of it")
    missing = [name for name in ("hidden", "logits") if not callable(getattr(module, name, None))]
    if not isinstance(getattr(module, "vocab_size", None), int):
        missing = ["vocab_size", *missing]
    if missing:
        problem = f"{type(module).__name__} has no {', '.join(missing)}"
        raise ModelError(f"{problem}; a plain module needs {NEEDED} (docs/extending.md)")
    width = _check_shapes(module, pad=int(tokenizer.pad_token_id or 0))
    config = OwnConfig(
        vocab_size=module.vocab_size,
        hidden_size=width,
        max_position_embeddings=getattr(module, "max_positions", None),
        pad_token_id=tokenizer.pad_token_id,
        architectures=[type(module).__qualname__],
    )
    return OwnModel(config, module)


@torch.no_grad()
def _check_shapes(module: Any, *, pad: int) -> int:
    """Try a module on two short sequences; returns D. Other shapes are a ModelError."""
    name = type(module).__name__
    device = next(module.parameters(), torch.empty(0)).device
    real = torch.tensor([[1, 1, 0], [1, 1, 1]], device=device)
    ids = torch.where(real == 1, min(5, module.vocab_size - 1), pad)
    try:
        with evaluating(module):
            hidden = module.hidden(ids, real)
            alone = module.hidden(ids[:1, :2], real[:1, :2])
            if not isinstance(hidden, Tensor) or hidden.dim() != 3 or hidden.shape[:2] != (2, 3):
                raise ValueError(f"hidden returned {_shape(hidden)} for ids of (2, 3)")
            logits = module.logits(hidden[0])
            if _shape(logits) != (wanted := (3, module.vocab_size)):
                raise ValueError(f"logits returned {_shape(logits)} where {wanted} was due")
    except Exception as error:
        raise ModelError(f"{name}: {reason_of(error)}; a plain module needs {NEEDED}") from error
    change = (hidden[0, :2] - alone[0]).abs().max() / alone.abs().max().clamp(min=1e-6)
    if not change <= PADDING_TOLERANCE:
        told = f"padding changes the hidden states of {name} at its tokens"
        effect = "or its figures depend on which sequences share a batch"
        log.warning("%s; let it read attention_mask, %s", told, effect)
    return int(hidden.shape[-1])


def _shape(value: Any) -> Any:
    return tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__


def weights_fingerprint(model: torch.nn.Module) -> str:
    """Return a hash of a model's parameters and buffers, by name."""
    digest = blake2b(digest_size=16)
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
