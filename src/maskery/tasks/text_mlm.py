"""Masked language modelling of text, and how a text objective is made from the parts of a run.

An objective is a callable that makes a `Task` from `TextParts`. Ours are `text_mlm` here and
`momentum_text_mlm`; one of a user's own often extends `TextMLM` (`docs/extending.md`).

Shapes: T tokens, M rows for masked tokens, V vocabulary.
"""

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedTokenizerBase

from maskery.core.batch import MaskedTokens, StaticShapes, TokenBatch
from maskery.core.errors import CheckpointError, MaskeryError, explained, reason_of
from maskery.core.task import EXTRA_STATE, Task, moved
from maskery.masking.masker import Masker
from maskery.models.layout import EncoderInputs, rounded_shapes
from maskery.models.masked_lm import MaskedLanguageModel
from maskery.objectives.mlm import mlm_loss_sum
from maskery.tasks.text_mlm_config import MRTD, OBJECTIVES, TextMLMConfig

log = logging.getLogger(__name__)

LEFT_OUT = "mlm_left_out"
TWIN = "twin.hf."  # begins the names of the momentum twin's model in a task's extra state
TASK_PARTS = tuple(name for name in ("model", "loss_weights", *vars(Task)) if name[0] != "_")


@dataclass(frozen=True, kw_only=True)
class TextParts:
    """Everything that a text objective is made from."""

    # The encoder with its vocabulary head; an objective adds heads of its own with `add_head`.
    model: MaskedLanguageModel
    tokenizer: PreTrainedTokenizerBase
    masker: Masker  # Masks as the run is configured; `masker.seed` is the seed of the run
    settings: TextMLMConfig = field(default_factory=TextMLMConfig)  # The objective's flags
    shapes: StaticShapes | None = None  # Sizes that batches are filled up to, for compiled steps
    compile_backend: str | None = None  # Of `torch.compile`; None for steps that are not compiled
    few_shapes: bool = False  # True to round the sizes of batches up, where each new one costs time
    pin_memory: bool = False  # Prepare batches in page-locked memory, for a GPU
    frozen_share: float = 0.0  # Share of the run, from its start, in which the encoder is frozen
    sentence_encoder: Path | None = None  # The start's folder, where it says how to pool


def make_text_task(
    parts: TextParts, objective: str | Callable[[TextParts], Task[Any, Any]] | None = None
) -> Task[Any, Any]:
    """Make the task of a run by an objective: a name, `FILE.py:NAME`, or a callable.

    One that fails, or makes no task that trains the model, is a PluginError.
    """
    choice = parts.settings.objective if objective is None else objective
    make = OBJECTIVES.find(choice)
    named = choice if isinstance(choice, str) else getattr(choice, "__qualname__", choice)
    try:
        task = make(parts)
    except MaskeryError:
        raise
    except Exception as error:
        fails = f"making the task fails with {type(error).__name__}: {reason_of(error)}"
        raise OBJECTIVES.misfit(named, fails) from error
    missing = [name for name in TASK_PARTS if not hasattr(task, name)]
    if missing:
        lacks = f"it makes a {type(task).__name__} without {', '.join(missing)}"
        raise OBJECTIVES.misfit(named, lacks)
    trained = {id(parameter) for parameter in task.model.parameters()}
    if not all(id(parameter) in trained for parameter in parts.model.parameters()):
        leaves = "its `model` does not hold `parts.model`, which would not be trained"
        raise OBJECTIVES.misfit(named, leaves)
    return task


def text_mlm(parts: TextParts) -> Task[Any, Any]:
    """Make the task of `--objective mlm`, also with `--keep-embedding` or with `--momentum`."""
    if parts.settings.keep_weight:
        from maskery.tasks.keep_embedding import KeepEmbedding  # other runs need none of it

        return KeepEmbedding.of(parts)
    if not parts.settings.has_twin:
        return TextMLM.of(parts)
    return OBJECTIVES.find(MRTD)(parts)  # the same task, without detection


def diffusion(parts: TextParts) -> Task[Any, Any]:
    """Make the task of `--objective diffusion`, whose loss is the NELBO of a token."""
    from maskery.masking.diffusion import DiffusionMasker

    log.info("diffusion: held-out loss is the NELBO of a token, which the verdict compares, too")
    bell = parts.settings.time_sampling == "bell"
    return TextMLM.of(replace(parts, masker=DiffusionMasker(**vars(parts.masker), bell=bell)))


@dataclass(frozen=True, kw_only=True)
class PreparedText:
    """A masked batch, laid out for the encoder.

    As the batch comes, every row is a masked token. In static shapes, T and M are those of the run,
    or rounded up: padding follows the tokens, and unused rows have the target `IGNORE_INDEX`.
    """

    inputs: EncoderInputs  # The corrupted tokens
    targets: torch.Tensor  # (M,) int64
    counts: Mapping[str, int]  # Masked tokens; in static shapes also how many had no row
    num_tokens: int  # Real tokens
    weights: torch.Tensor | None = None  # (M,) float32, of the losses; None: 1 each

    def to(self, device: torch.device) -> Self:
        """Return a copy with its tensors on `device`."""
        return moved(self, device)

    def pin_memory(self) -> Self:
        """Copy to page-locked memory, from where a GPU copies while it computes."""
        return replace(self, inputs=self.inputs.pin_memory(), targets=self.targets.pin_memory())


class TextMLM:
    """Mask, encode, predict the masked tokens (BERT, section 3.1); `TextParts` has the arguments.

    The loop may wrap `model`: call it, and nothing on it.
    """

    def __init__(
        self,
        model: MaskedLanguageModel,
        masker: Masker,
        *,
        shapes: StaticShapes | None = None,
        compile_backend: str | None = None,
        few_shapes: bool = False,
        pin_memory: bool = False,
    ) -> None:
        self.model: nn.Module = model
        self.masker, self.shapes, self.pin_memory = masker, shapes, pin_memory
        self.few_shapes = few_shapes
        self.loss_weights: Mapping[str, float] = {"mlm": 1.0}
        # Masked tokens that the loss has run over, and those for which a batch had no rows.
        self.num_predicted = self.num_left_out = 0
        self.lay_out, self._lay_out_static = model.lay_out, model.lay_out_static
        self._loss: Callable[..., torch.Tensor] = masked_loss_sum
        if compile_backend is not None:
            from maskery.tasks.compiling import Compiled

            self._loss = Compiled(masked_loss_sum, backend=compile_backend)

    @classmethod
    def of(cls, parts: TextParts) -> Self:
        """Make the task from the parts of a run: an objective, of subclasses too."""
        names = ("shapes", "compile_backend", "few_shapes", "pin_memory")
        return cls(parts.model, parts.masker, **{name: getattr(parts, name) for name in names})

    def prepare(self, batch: TokenBatch, *, epoch: int, progress: float) -> PreparedText:
        """Mask a batch and lay it out."""
        masked = self.masker.mask(batch, epoch=epoch, progress=progress)
        inputs, targets = self._laid_out(masked)
        left_out = max(0, len(masked.targets) - len(targets))
        count = len(masked.targets) if masked.count is None else masked.count
        counts = {"mlm": count - left_out} | ({LEFT_OUT: left_out} if self.shapes else {})
        prepared = PreparedText(
            inputs=inputs, targets=targets, counts=counts, num_tokens=batch.num_tokens
        )
        if masked.weights is not None:
            prepared = replace(prepared, weights=torch.from_numpy(masked.weights))
        return prepared.pin_memory() if self.pin_memory else prepared

    def _laid_out(self, masked: MaskedTokens) -> tuple[EncoderInputs, torch.Tensor]:
        """Lay a masked batch out, as it comes or filled up; returns the (M,) targets, too."""
        shapes = self.shapes
        if self.few_shapes and shapes is None and masked.weights is None:
            shapes = rounded_shapes(masked)
        # A step of shards may have more sequences than was to be expected: it is compiled anew.
        if shapes is None or not shapes.hold(masked.batch):
            return self.lay_out(masked), torch.from_numpy(masked.targets)
        return self._lay_out_static(masked, shapes)

    def loss_sums(self, prepared: PreparedText) -> Mapping[str, torch.Tensor]:
        """Return the cross-entropy of the masked tokens, summed."""
        self.num_predicted += prepared.counts["mlm"]
        left_out = prepared.counts.get(LEFT_OUT, 0)
        if left_out and not self.num_left_out:
            told = "a batch has %d more masked tokens than its step has rows for; they are left"
            log.warning(f"{told} out of the loss, and counted", left_out)
        self.num_left_out += left_out
        return {"mlm": self._loss(self.model, prepared.inputs, prepared.targets, prepared.weights)}

    def before_step(self) -> None:
        """Do nothing: nothing moves between steps."""

    def extra_state(self) -> Mapping[str, torch.Tensor]:
        """Return nothing: all state is in the model."""
        return {}

    def load_extra_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take nothing over: all state is in the model."""


def masked_loss_sum(
    model: nn.Module, inputs: EncoderInputs, targets: torch.Tensor, weights: torch.Tensor | None
) -> torch.Tensor:
    """Encode and predict: what is compiled as one."""
    return mlm_loss_sum(model(inputs), targets, weights)


def report_left_out(task: Task[Any, Any]) -> None:
    """Say how many masked tokens the loss of a run has left out, if any."""
    if isinstance(task, TextMLM) and task.num_left_out:
        assert task.shapes is not None
        left_out, everything = task.num_left_out, task.num_left_out + task.num_predicted
        log.warning(
            f"{left_out:,} of {everything:,} masked tokens ({100.0 * left_out / everything:.2g}%) "
            f"were left out of the loss: a compiled step has {task.shapes.num_masked:,} rows for "
            f"them; raise --masked-capacity to keep them all"
        )


# The parts of an objective that lie beside a saved model, the twin as `twin.*` and heads such as
# `mrtd_head.*`. Transformers does not read the file, so the folder stays a plain language model.
def save_extra(task: Task[Any, Any], model: MaskedLanguageModel, folder: Path) -> None:
    """Write what a model folder holds beyond the masked language model, if there is anything."""
    tensors = {n: t for n, t in task.extra_state().items() if n.startswith(TWIN)}
    tensors |= own_tensors(task, model)
    if tensors:
        whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        save_file(whole, folder / EXTRA_STATE)


@torch.no_grad()
def load_extra(
    task: Task[Any, Any], model: MaskedLanguageModel, folder: Path, *, needed: bool
) -> None:
    """Take over the twin and heads that `save_extra` wrote; what is `needed` must be there."""
    path, state = folder / EXTRA_STATE, task.extra_state()
    own = own_tensors(task, model)
    if not (own or any(n.startswith(TWIN) for n in state)) or not (needed or path.is_file()):
        return
    problem = f"the momentum twin and heads in '{path}' cannot be read"
    unsound = (OSError, KeyError, SafetensorError, RuntimeError)
    fix = "restore the file, or train again"
    with explained(problem, fix, *unsound, kind=CheckpointError, most=120):
        tensors = load_file(path)
        for name, tensor in own.items():
            if needed or name in tensors:
                if tensors[name].shape != tensor.shape:  # copying would repeat rows in silence
                    raise RuntimeError(f"'{name}' has another shape")
                tensor.copy_(tensors[name])
    # The twin's own copy of the heads is never read, so it is not saved.
    twin = {name: tensor for name, tensor in tensors.items() if name.startswith(TWIN)}
    if twin or needed:
        task.load_extra_state({**state, **twin})


def own_tensors(task: Task[Any, Any], model: MaskedLanguageModel) -> dict[str, torch.Tensor]:
    """Return, by name within the trained module, what an objective trains beside the model."""
    shared = {id(tensor) for tensor in (*model.hf.parameters(), *model.hf.buffers())}
    found = (*task.model.named_parameters(), *task.model.named_buffers())
    kept = task.model.state_dict().keys()  # not what a model makes anew, such as position ids
    return {name: tensor for name, tensor in found if name in kept and id(tensor) not in shared}


def new_parameters(
    task: Task[Any, Any], model: MaskedLanguageModel, loaded: Iterable[str]
) -> set[str]:
    """Return the names, within the trained module, of parameters that start from nothing."""
    parameters = dict(model.hf.named_parameters())
    fresh = {id(parameters[name]) for name in loaded if name in parameters}
    names = {name for name, tensor in task.model.named_parameters() if id(tensor) in fresh}
    return names | set(own_tensors(task, model))
