"""Loss terms of image-text training: one record each, and the door for terms of your own.

The tasks, the freezing of heads that nothing trains, retrieval (which scores a model has) and the
report read this table. A term of your own is a function or a `torch.nn.Module`:

    def __call__(step: maskery.tasks.loss_terms.TermInputs) -> tuple[torch.Tensor, int]

It returns its loss as a sum, and how many things the sum runs over. Its parameters are trained and
checkpointed with the model. Its attributes `name`, `label` and `heads` may say more than the
defaults of `LossTerm` do.
"""

import inspect
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from maskery.core.errors import ConfigError, PluginError
from maskery.core.registry import Registry, anchored_choice, split_weight

TEMPERATURE = "temp"  # learnt with the projections by the contrast, but comparing needs it not
PROJECTIONS = ("vision_proj", "text_proj")
CONTRACT = (
    "a function or torch.nn.Module that turns the step's TermInputs into a loss sum, a tensor "
    "without dimensions, and a count; or a class that is made without arguments, from the model or "
    "from the model and the training pairs"
)


@dataclass(frozen=True, kw_only=True)
class Term:
    """A loss term."""

    name: str  # In flags, configurations and `metrics.jsonl`
    label: str  # For people
    # Modules or parameters of `ImageTextModel` that nothing trains unless such a term is on.
    heads: tuple[str, ...]

    @property
    def flag(self) -> str:
        """The setting that holds the weight of a built-in term."""
        return f"{self.name}_weight"


BUILT_IN = (
    Term(name="itc", label="Contrastive loss (ITC)", heads=(*PROJECTIONS, TEMPERATURE)),
    Term(name="itm", label="Matching loss (ITM)", heads=("itm_head",)),
    Term(name="mlm", label="Masked-word loss (MLM)", heads=("text_encoder.cls",)),
    Term(name="prd", label="Relation loss (PRD)", heads=("prd_head",)),
    Term(name="mrtd", label="Replaced-token loss (MRTD)", heads=("mrtd_head",)),
)
TERMS: Mapping[str, Term] = {term.name: term for term in BUILT_IN}
BATCH_TERMS = ("sdm", "tal", "infonce", "sigmoid", "id")  # a dual encoder's, loaded when named
HEADS = tuple(head for term in TERMS.values() for head in term.heads)
# Keys of a line in metrics.jsonl that a term's name would overwrite.
RESERVED = {"kind", "step", "epoch", "loss", "grad_norm", "learning_rate"}
RESERVED |= {"tokens_per_second", "waiting_time_share"}
# `LossTerm.of` tells more exactly what does not fit.
PLACES = {name: f"maskery.tasks.batch_terms:{name.upper()}" for name in BATCH_TERMS}
CHOICES: Registry[Any] = Registry("--term", CONTRACT, {**TERMS, **PLACES}, fits=lambda _: True)


@dataclass(frozen=True, kw_only=True)
class LossTerm(Term):
    """A term of the user's own."""

    weight: float  # In the total loss
    compute: Callable[[Any], Any]  # The function or module; see the module's docstring
    choice: str  # How the user named it, for messages

    @classmethod
    def of(cls, thing: Any, *, weight: float = 1.0, choice: str = "") -> "LossTerm":
        """Describe a function or module by its attributes.

        Its attribute `name` is the term's name (default: its own, or its class's), `label` the one
        for people, and `heads` says what it trains (default: the projections that features come
        from). `choice` is how the user named it; what is no such thing is a PluginError.
        """
        if isinstance(thing, LossTerm):
            return thing
        own_name = getattr(thing, "__name__", type(thing).__name__)
        name, choice = getattr(thing, "name", own_name), choice or own_name
        heads = getattr(thing, "heads", PROJECTIONS)
        if not callable(thing) or isinstance(thing, type):
            raise CHOICES.misfit(choice, f"found a {type(thing).__name__} that is no such thing")
        if not isinstance(name, str) or not re.fullmatch(r"[^\W\d]\w*", name):
            raise CHOICES.misfit(choice, f"its name is {name!r}, which is no single word")
        if name in TERMS or name in RESERVED:
            raise PluginError(f"--term {choice}: '{name}' is taken; give it another `name`")
        several = isinstance(heads, Collection) and not isinstance(heads, str)
        if not several or not all(head in HEADS for head in heads):
            raise CHOICES.misfit(choice, f"its heads are {heads!r}, not among {', '.join(HEADS)}")
        label, heads = str(getattr(thing, "label", name)), tuple(heads)
        return cls(name=name, label=label, heads=heads, weight=weight, compute=thing, choice=choice)


def belongs(parameter: str, heads: Iterable[str]) -> bool:
    """Return True if a parameter is one of the heads, or lies in one."""
    return any(parameter == head or parameter.startswith(f"{head}.") for head in heads)


def trained_terms(terms: Iterable[Term]) -> tuple[str, ...]:
    """Return the built-in terms whose heads all are trained, if by other terms.

    A model has the scores of these terms: with a contrastive term of the user's own, whose heads
    are the projections, it can compare features as one trained by `itc` can.
    """
    heads = {head for term in terms for head in term.heads} | {TEMPERATURE}
    return tuple(name for name, term in TERMS.items() if set(term.heads) <= heads)


def chosen_weights(choices: Sequence[str], known: Collection[str]) -> dict[str, float]:
    """Return the weights of built-in terms that `--term` names; nothing is loaded.

    Choices are `NAME`, `NAME=WEIGHT`, `FILE.py:NAME` or `FILE.py:NAME=WEIGHT`; of the built-in
    terms the task has those in `known`.
    """
    weights: dict[str, float] = {}
    for choice, weight in map(split_weight, choices):
        CHOICES.check(choice)
        if choice in TERMS:
            weights[choice] = weight
        # Of the terms that know persons, every task of persons has this one.
        if choice not in known and (choice in TERMS or (choice == "id" and "prd" not in known)):
            problem = f"--term {choice}: this kind of run has the terms {', '.join(known)}"
            fix = f"'{choice}' needs to know persons: maskery train person-search"
            raise ConfigError(f"{problem}; {fix}")
    return weights


def load_terms(
    choices: Sequence[str], objects: Sequence[Any], model: Any, pairs: Any = None
) -> list[LossTerm]:
    """Load the terms of plug-ins, and `objects`: functions, modules and `LossTerm`s from Python.

    Terms that the model has heads of its own for are left out, and of a plug-in that is named twice
    the last weight counts. A class that takes arguments is made from the model and, with a second
    one, the training pairs.
    """
    terms = [
        LossTerm.of(_make(found, choice, model, pairs), weight=weight, choice=choice)
        for choice, weight, found in _found(choices)
    ]
    terms += [LossTerm.of(thing) for thing in objects]
    seen: dict[str, str] = {}
    for term in terms:
        if term.name in seen:
            problem = f"--term {term.choice}: '{seen[term.name]}' is named '{term.name}' too"
            raise PluginError(f"{problem}; give one of them another `name`")
        seen[term.name] = term.choice
    return terms


def check_terms(choices: Sequence[str], objects: Sequence[Any]) -> None:
    """Load and check the terms that are not built in, but for classes, which a task makes."""
    for choice, _, found in _found(choices):
        # A class is made once, with the model: its weights are drawn then.
        if not isinstance(found, type):
            LossTerm.of(found, choice=choice)
    for thing in objects:
        LossTerm.of(thing)


def _found(choices: Sequence[str]) -> list[tuple[str, float, Any]]:
    """Load the plug-ins among choices; returns each with its name and its weight above 0."""
    named: dict[str, tuple[str, float]] = {}
    for entry in choices:
        # The same plug-in from a config.yaml and from the command line is one term: the later one,
        # which may load code, with the weight of the earlier one unless it says another.
        place = str(anchored_choice(split_weight(entry)[0]))
        default = named[place][1] if place in named else 1.0
        named[place] = split_weight(entry, default)
    plugins = [pair for pair in named.values() if pair[0] not in TERMS and pair[1] > 0]
    return [(choice, weight, CHOICES.find(choice)) for choice, weight in plugins]


def _make(found: Any, choice: str, *arguments: Any) -> Any:
    """Return the term itself: a class is made from as many arguments as it requires."""
    if not isinstance(found, type):
        return found
    with CHOICES.running(choice, "making it"):
        parameters = inspect.signature(found).parameters.values()
        required = [p for p in parameters if p.default is p.empty and p.kind < p.VAR_POSITIONAL]
        return found(*arguments[: len(required)])
