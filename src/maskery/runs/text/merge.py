"""Merge the weights of models that have the same start, and measure what lies between two.

A linear merge is a weighted sum (Wortsman et al., "Model soups", 2022). TIES (Yadav et al.,
"TIES-Merging: resolving interference when merging models", 2023) adds to the start what the models
have learnt: of each one's changes the largest, and of those the ones with the sign of their sum.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial, reduce
from pathlib import Path
from typing import Any

import torch

from maskery.core.errors import ConfigError, ModelError
from maskery.core.system import require_empty
from maskery.data.tokenise import tokenizer_fingerprint
from maskery.evaluation.text.comparison import SEED, Row, ScoredRun, compare_runs
from maskery.evaluation.text.masked import score_examples
from maskery.evaluation.text.opening import as_open, held_out_source, require_head
from maskery.masking.masker import Masker
from maskery.models.loading import Loaded, load_masked_lm, quiet_transformers, resolve
from maskery.models.lora import ADAPTER, folded
from maskery.models.pooling import copy_modules

CURVE = (0.0, 0.25, 0.5, 0.75, 1.0)  # weights of the second model: both ends, three between
Tensors = Mapping[str, torch.Tensor]


def merge(
    names: Sequence[str],
    shares: Sequence[float] = (),
    base: str | None = None,
    density: float = 0.2,
    output: Path | None = None,
    eval_data: Sequence[str] = (),
) -> list[Row]:
    """Merge models by name and write the result; returns the curve between two on `eval_data`.

    With `base`, the start that they share, it is by TIES. The folder of an adapter stands for its
    start with the adapter folded in; alone, that is what is written.
    """
    shares = shares or [1.0 if base else 1 / len(names)] * len(names)
    if len(shares) != len(names) or not (sum(shares) if base else abs(sum(shares) - 1) < 1e-6):
        given = " ".join(f"{share:g}" for share in shares)
        rule = f"({len(names)}), {'with one above 0' if base else 'and their sum 1'}"
        raise ConfigError(f"--weights {given}: there must be one for each of the models {rule}")
    if eval_data and len(names) != 2:
        raise ConfigError(f"--eval-data draws a curve between 2 models, not {len(names)}")
    if len(names) == 1 and not (Path(names[0]) / ADAPTER).is_file():
        found = resolve(names[0])  # says so where there is none
        raise ConfigError(f"'{found}' is a whole model already; name another to merge it with")
    if output is not None:
        require_empty(output)
    first, mix = mixer(names, base, density)
    rows = curve(names, first, mix, eval_data) if eval_data else []
    if output is not None:
        mix(shares)
        with quiet_transformers():
            first.model.save_pretrained(output)
        first.tokenizer.save_pretrained(output)
        copy_modules(Path(first.model.name_or_path), output)
    return rows


def mixer(
    names: Sequence[str], base: str | None, density: float
) -> tuple[Loaded, Callable[[Sequence[float]], Any]]:
    """Load models; returns the first, and a function of shares that merges all into that one."""
    loaded = [opened(name) for name in names]
    for name, one in zip(names, loaded, strict=True):
        require_head(name, one)
        require_alike(name, one, names[0], loaded[0])
    first, weights = loaded[0], [weights_of(one) for one in loaded]
    # It takes what is made, so its own weights are copied.
    weights[0] = {name: tensor.clone() for name, tensor in weights[0].items()}
    if base is None:
        return first, lambda shares: first.model.load_state_dict(linear(weights, shares), False)
    start = opened(base)
    require_alike(base, start, names[0], first)
    # A head that the start did not have is no start.
    old = {n: t for n, t in weights_of(start).items() if n not in start.new_parameters}
    tied = partial(ties, weights, base=old, density=density)
    return first, lambda shares: first.model.load_state_dict(tied(shares), False)


def curve(names: Sequence[str], first: Loaded, mix: Any, data: Sequence[str]) -> list[Row]:
    """Measure two models and what lies between them."""
    model, rows = as_open(names[0], first), []
    source, masker = held_out_source(model, data, progress=False), Masker.of(model.tokenizer)
    for share in CURVE:
        mix((1 - share, share))
        settings = {"weight": share, SEED: 0}
        sums = score_examples(model.model, source.in_order(), masker)
        name = f"{1 - share:g} {names[0]} + {share:g} {names[1]}"
        rows.append(ScoredRun(name=name, settings=settings, tokenizer=None, sums=sums))
    return compare_runs(rows)


def opened(name: str) -> Loaded:
    """Load a model, or the folder of an adapter folded into its start."""
    if (Path(name) / ADAPTER).is_file():
        return folded(Path(name))
    return load_masked_lm(name, attention_dropout=True)


def weights_of(one: Loaded) -> dict[str, torch.Tensor]:
    """Return what was trained, tied weights once."""
    return {name: parameter.detach() for name, parameter in one.model.named_parameters()}


def require_alike(name: str, other: Loaded, first_name: str, first: Loaded) -> None:
    """Refuse to merge models whose weights do not stand for the same things."""
    wanted, own = ({n: list(p.shape) for n, p in weights_of(x).items()} for x in (first, other))
    odd = [n for n in sorted(wanted.keys() | own.keys()) if wanted.get(n) != own.get(n)]
    if odd or tokenizer_fingerprint(first.tokenizer) != tokenizer_fingerprint(other.tokenizer):
        shapes = [f"{x.get(odd[0], 'nothing')} as '{odd[0]}'" for x in (own, wanted) if odd]
        problem = f"'{name}' has {' where there is '.join(shapes) or 'another tokenizer'}"
        why = f"so it cannot be merged with '{first_name}'"
        raise ModelError(f"{problem}, {why}; name models that were trained from one start")


def linear(models: Sequence[Tensors], shares: Sequence[float]) -> dict[str, torch.Tensor]:
    """Return the weighted sum of models; one with the share 1 alone stays as it is to the bit."""
    used = [(model, share) for model, share in zip(models, shares, strict=True) if share]
    return {n: reduce(torch.add, (share * model[n] for model, share in used)) for n in models[0]}


def ties(
    models: Sequence[Tensors], shares: Sequence[float], base: Tensors, *, density: float
) -> dict[str, torch.Tensor]:
    """Return the base plus the disjoint mean of the models' trimmed changes, as in the paper.

    Of each model's changes the largest are kept, a share of `density` over all its weights;
    `shares` weigh the models in the sum that elects a sign, and in the mean. Weights that the base
    does not have are merged linearly.
    """
    changes = [trimmed({n: model[n] - base[n] for n in base}, density) for model in models]
    weight = torch.tensor(shares, dtype=torch.float32)
    new = [{n: tensor for n, tensor in model.items() if n not in base} for model in models]
    made = linear(new, (weight / weight.sum()).tolist())
    for name in base:
        change = torch.stack([one[name] for one in changes], dim=-1)
        elected = (change * weight).sum(-1, keepdim=True).sign()
        # What was trimmed has no sign, so it counts in no mean.
        counted = weight * ((change.sign() == elected) & (change != 0))
        made[name] = base[name] + (change * counted).sum(-1) / counted.sum(-1).clamp(min=1e-12)
    return made


def trimmed(changes: Tensors, density: float) -> dict[str, torch.Tensor]:
    """Return the largest share of changes; all others are 0."""
    sizes = torch.cat([change.abs().flatten() for change in changes.values()])
    least = sizes.kthvalue(len(sizes) - max(1, round(density * len(sizes))) + 1).values
    return {n: change.where(change.abs() >= least, 0.0) for n, change in changes.items()}
