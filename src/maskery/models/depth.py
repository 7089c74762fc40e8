"""How deep each weight of an encoder lies: embeddings at 0, then layer by layer.

Layers are what stands in the encoder's outermost stacks (`nn.ModuleList`), in order. Stacks of one
parent that are equally long (XLM's attentions, norms and feed-forwards) are parts of the same
layers; others follow each other, as an encoder and its decoder. ALBERT's shared layers are one.
"""

from torch import nn
from transformers import PreTrainedModel

from maskery.core.errors import ConfigError, ModelError, counted


def depths_of(hf: PreTrainedModel) -> tuple[dict[str, int], int]:
    """Return the depth of every parameter by name, and the number of layers L.

    Embeddings, and what makes the first layer's input of them, have 0 and layers 1 to L. What
    follows a layer, such as a last norm, has its depth, and the head has L + 1.
    """
    depths: dict[nn.Parameter, int] = {}
    count = _number(hf.base_model, depths, 0)
    if not count:
        problem = f"{type(hf).__name__} has no layers in an nn.ModuleList"
        fix = "leave out --freeze, --layer-decay and --lora"
        raise ModelError(f"{problem}, so there are none to tell apart; {fix}")
    return {name: depths.get(p, count + 1) for name, p in hf.named_parameters()}, count


def _number(module: nn.Module, depths: dict[nn.Parameter, int], first: int) -> int:
    """Give depths to all below a module, whose first layer is `first` + 1; returns the last one."""
    last, starts = first, dict[int, int]()
    depths |= dict.fromkeys(module.parameters(recurse=False), 0)
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            layers = list[nn.Module]()
            for one in child:  # Funnel has stacks of stacks
                layers += one if isinstance(one, nn.ModuleList) else [one]
            start = starts.setdefault(len(layers), last)
            for number, layer in enumerate(layers, start + 1):
                depths |= {p: number for p in layer.parameters() if p not in depths}
            last = max(last, start + len(layers))
        elif any(isinstance(one, nn.ModuleList) for one in child.modules()):
            last = _number(child, depths, last)
        else:
            for one in child.modules():
                # Tables of relative positions stand behind the layers in some families.
                depth = 0 if last == first or isinstance(one, nn.Embedding) else last
                depths |= {p: depth for p in one.parameters(recurse=False) if p not in depths}
    return last


def freeze(hf: PreTrainedModel, most: int) -> None:
    """Stop training the embeddings and the first `most` layers."""
    depths, count = depths_of(hf)
    if most > count:
        problem = f"--freeze {most}: the model has {counted(count, 'layer')}"
        raise ConfigError(f"{problem}; lower it to {count} or less")
    for name, parameter in hf.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and depths[name] > most)


def decayed_rates(hf: PreTrainedModel, decay: float) -> dict[nn.Parameter, float]:
    """Return each weight's share of its rate, `decay` for each layer above (Clark et al. 2020)."""
    depths, count = depths_of(hf)
    return {p: decay ** max(count - depths[name], 0) for name, p in hf.named_parameters()}


def checkpoint(hf: PreTrainedModel) -> None:
    """Let layers compute their activations again in the backward pass."""
    # Transformers' name for it, and the one that its older versions have.
    enable = getattr(hf, "activation_checkpointing_enable", hf.gradient_checkpointing_enable)
    try:
        enable({"use_reentrant": False})
    except ValueError as error:
        fix = "leave out --checkpoint-activations, and lower --micro-batch-tokens"
        raise ModelError(f"{type(hf).__name__} cannot recompute its layers; {fix}") from error
    # Which rows the last layer is computed for is forgotten by then (`models/masked_lm.py`).
    switches = [one for one in hf.modules() if getattr(one, "gradient_checkpointing", False)]
    switches[-1].gradient_checkpointing = False
