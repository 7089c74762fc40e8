"""The masking engine: settings, a vocabulary and a seed become masks for flat batches.

Shapes: B sequences, T tokens, M masked tokens.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

import numpy as np

from maskery.core.batch import Bools, Ints, MaskedTokens, TokenBatch, Vocabulary
from maskery.core.errors import ConfigError
from maskery.core.random import Stream, to_integers, to_uniforms
from maskery.masking.config import POLICIES, MaskingConfig, PolicyChoice
from maskery.masking.policies import Draws, Policy, Selection

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True)
class Masker:
    """Masks batches as a pure function of (seed, epoch, example id, position); made by `of`."""

    vocabulary: Vocabulary
    policy: Policy  # Chooses the tokens
    config: MaskingConfig  # Rate, schedule and shares, and the policy's name
    seed: int = 0  # From 0 to 2**64 - 1
    draws: ClassVar[int] = 1  # Times that an evaluation masks each example

    @classmethod
    def of(
        cls,
        tokenizer: "PreTrainedTokenizerBase | Vocabulary",
        config: MaskingConfig | None = None,
        *,
        policy: PolicyChoice | None = None,
        rate: float | None = None,
        seed: int = 0,
        **settings: Any,
    ) -> Self:
        """Make a masker.

        Args:
            tokenizer: Of the model. Its `Vocabulary` will do, unless the policy is a plug-in that
                is made from a tokenizer.
            config: The settings to start from; BERT's if None.
            policy: "token", "word", "span", `FILE.py:NAME`, a `Policy`, or a callable that makes
                one from the tokenizer.
            rate: Share of the maskable tokens that is masked, in expectation.
            seed: From 0 to 2**64 - 1.
            **settings: Further settings of `MaskingConfig` by name.

        Raises:
            ModelError: The tokenizer has no mask token.
            ConfigError: A setting is out of range.
            PluginError: The policy cannot be loaded, or is none.
        """
        chosen = {"policy": policy, "mask_rate": rate}
        settings |= {name: value for name, value in chosen.items() if value is not None}
        config = replace(config or MaskingConfig(), **settings)
        known = isinstance(tokenizer, Vocabulary)
        vocabulary = tokenizer if known else Vocabulary.of(tokenizer)
        made = _make_policy(config, None if known else tokenizer)
        return cls(vocabulary=vocabulary, policy=made, config=config, seed=seed)

    def mask(self, batch: TokenBatch, *, epoch: int, progress: float = 0.0) -> MaskedTokens:
        """Mask a batch of sequences with their special tokens; it is not modified.

        Args:
            epoch: From 0; with `static` masks, every epoch has those of epoch 0.
            progress: The share of the run that is done, for the rate's schedule.
        """
        selection = self.select(batch, epoch=epoch, progress=progress)
        positions = np.flatnonzero(selection.selected)
        anchors = None if selection.anchors is None else selection.anchors[positions]
        draws = self._draws(epoch)
        ids = corrupt(batch, positions, anchors, self.vocabulary, draws, self.config)
        return replace(MaskedTokens.unmasked(batch, positions), input_ids=ids)

    def select(self, batch: TokenBatch, *, epoch: int, progress: float = 0.0) -> Selection:
        """Choose the masked tokens, at least one in each example that has a maskable one."""
        draws = self._draws(epoch)
        maskable = ~self.vocabulary.protected[batch.input_ids]
        rate = self.config.rate_at(progress)
        with POLICIES.running(self.config.policy, "select"):
            selection = self.policy.select(batch, maskable, rate, draws)
        _check_selection(selection, maskable, self.config.policy)
        return at_least_one(selection, batch, maskable, draws)

    def for_generator(self, mask_rate: float) -> Self:
        """Return the masker of the words that a momentum twin fills for replaced-token detection.

        It has a constant rate, all `[MASK]` (RaSa, section 3.2), and draws of its own.
        """
        config = replace(
            self.config,
            mask_rate=mask_rate,
            mask_rate_end=None,
            mask_schedule="constant",
            mask_share=1.0,
            random_share=0.0,
        )
        return replace(self, config=config, seed=(self.seed + 1) % (1 << 64))

    def _draws(self, epoch: int) -> Draws:
        return Draws(seed=self.seed, epoch=0 if self.config.static else epoch)


def _make_policy(config: MaskingConfig, tokenizer: "PreTrainedTokenizerBase | None") -> Policy:
    """Return the policy that a configuration names, made where it is a callable."""
    choice, found = config.policy, cast(Any, POLICIES.find(config.policy))
    if choice in ("token", "word"):
        return cast(Policy, found())
    if choice == "span":
        return cast(Policy, found(p=config.span_p, longest=config.span_max))
    # A class has the method too, unbound: it is called like any other maker.
    if isinstance(found, type) or not hasattr(found, "select"):
        if tokenizer is None:
            told = f"--policy {choice} is made from the tokenizer, and only its vocabulary is given"
            raise ConfigError(f"{told}; pass the tokenizer")
        with POLICIES.running(choice, "called with the tokenizer it"):
            found = found(tokenizer)
    if not callable(getattr(found, "select", None)):
        raise POLICIES.misfit(choice, f"it made a {type(found).__name__}, without select")
    return cast(Policy, found)


def _check_selection(selection: object, maskable: Bools, choice: object) -> None:
    """Refuse a selection that is none, or that masks what must not be masked."""
    if not isinstance(selection, Selection):
        raise POLICIES.misfit(choice, f"select returned a {type(selection).__name__}")
    for name, kind in (("selected", np.bool_), ("anchors", np.int64), ("values", np.float32)):
        array = getattr(selection, name)
        if array is None and name != "selected":
            continue
        found = f"a {type(array).__name__}"
        if isinstance(array, np.ndarray):
            if (array.shape, array.dtype) == (maskable.shape, kind):
                continue
            found = f"{array.dtype} of shape {array.shape}"
        takes = f"it takes an array of {np.dtype(kind)} of shape ({len(maskable)},)"
        told = f"select returned {found} as {name}, for {len(maskable)} tokens ({takes})"
        raise POLICIES.misfit(choice, told)
    wrong = selection.selected & ~maskable
    if wrong.any():
        found = f"select chose {int(wrong.sum())} special tokens; combine it with maskable"
        raise POLICIES.misfit(choice, found)
    anchors, size = selection.anchors, len(maskable)
    if anchors is not None and size and not 0 <= anchors.min() <= anchors.max() < size:
        raise POLICIES.misfit(choice, f"select returned anchors outside the {size} tokens")


def at_least_one(
    selection: Selection, batch: TokenBatch, maskable: Bools, draws: Draws
) -> Selection:
    """Give every sequence with a maskable token and no mask the mask nearest to being drawn."""
    full = np.flatnonzero(batch.lengths > 0)
    if not len(full):
        return selection
    has_none = ~np.logical_or.reduceat(selection.selected, batch.boundaries[:-1][full])
    if not has_none.any():
        return selection
    given = selection.values
    values = draws.uniforms(Stream.SELECT, batch) if given is None else given
    # Only the bare sequences are looked at again: one in a thousand at 50 tokens.
    bare = full[has_none]
    lengths = batch.lengths[bare]
    offsets = np.cumsum(lengths) - lengths
    tokens = np.arange(int(lengths.sum())) + np.repeat(batch.boundaries[bare] - offsets, lengths)
    # Above every draw, so that an unmaskable token is never the least.
    open_values = np.where(maskable[tokens], values[tokens], np.float32(np.inf))
    least = np.repeat(np.minimum.reduceat(open_values, offsets), lengths)
    forced = tokens[(open_values == least) & maskable[tokens]]
    selected = selection.selected.copy()
    selected[forced] = True
    return replace(selection, selected=selected)


def corrupt(
    batch: TokenBatch,
    positions: Ints,  # (M,), ascending
    anchors: Ints | None,  # (M,); tokens with the same one are corrupted alike
    vocabulary: Vocabulary,
    draws: Draws,
    config: MaskingConfig,
) -> Ints:
    """Return (T,) int64: the ids with masked tokens as in BERT, 3.1: `[MASK]`, random or as is."""
    corrupted = batch.input_ids.copy()
    if config.mask_share >= 1.0:
        corrupted[positions] = vocabulary.mask_token_id
        return corrupted
    sequence = batch.sequences_of(positions)
    ids = batch.example_ids[sequence]
    offset = batch.starts[sequence] - batch.boundaries[sequence]
    deciding = positions if anchors is None else anchors
    fate = to_uniforms(draws.at(Stream.CORRUPT, ids, deciding + offset))
    corrupted[positions[fate < np.float32(config.mask_share)]] = vocabulary.mask_token_id
    replaced = fate >= np.float32(config.mask_share)
    replaced &= fate < np.float32(config.mask_share + config.random_share)
    words = draws.at(Stream.REPLACE, ids[replaced], (positions + offset)[replaced])
    choices = to_integers(words, len(vocabulary.replacements))
    corrupted[positions[replaced]] = vocabulary.replacements[choices]
    return corrupted
