"""The masking settings: policy, rate, schedule and corruption shares; light to import."""

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from maskery.core.errors import ConfigError
from maskery.core.ranges import Count, Needs, Range, Settings, Share
from maskery.core.registry import Registry, plugin_identity

if TYPE_CHECKING:
    from maskery.masking.policies import Policy, PolicyMaker

    PolicyChoice = str | Policy | PolicyMaker
else:
    # Flags and files give names; objects come from Python alone.
    PolicyChoice = str

ScheduleName = Literal["constant", "linear", "cosine"]
# A rate of 0 masks nothing to learn from, and a rate of 1 leaves nothing to learn it from.
Rate: TypeAlias = Annotated[float, Range(0, 1, above=True, below=True, hint="try {flag} 0.15")]
WITH_SPANS = Needs("policy", "span")
CONTRACT = (
    "a policy: an object with select(batch, maskable, rate, draws) that returns a Selection of "
    "maskable tokens, or a callable that makes one from the tokenizer"
)
# Named by their modules, so that a configuration is read without NumPy.
POLICIES: "Registry[Policy | PolicyMaker]" = Registry(
    "--policy",
    CONTRACT,
    {
        "token": "maskery.masking.policies:TokenPolicy",
        "word": "maskery.masking.policies:WordPolicy",
        "span": "maskery.masking.policies:SpanPolicy",
    },
    fits=lambda policy: callable(policy) or hasattr(policy, "select"),
)
register_policy = POLICIES.register


@dataclass(frozen=True, kw_only=True)
class MaskingConfig(Settings):
    """The masking policy, its rate over the run, and what masked tokens become."""

    policy: PolicyChoice = "token"
    """token: single tokens; word: whole words; span: spans of words (SpanBERT); or FILE.py:NAME, a
    policy of your own."""
    mask_rate: Rate = 0.15
    """Share of maskable tokens that is masked (in expectation). BERT: 0.15; Wettig et al.: 0.4."""
    mask_rate_end: Rate | None = None
    """Rate at the end of the run; --mask-schedule linear and cosine need it."""
    mask_schedule: ScheduleName = "constant"
    """Course of the rate from mask_rate to mask_rate_end."""
    mask_share: Share = 0.8
    """Share of masked tokens shown as [MASK]. BERT: 0.8; the seed document: 1.0."""
    random_share: Share = 0.1
    """Share of masked tokens shown as a random token; the rest keep their own."""
    static: bool = False
    """Draw the masks once and keep them, instead of afresh in each epoch."""
    span_p: Annotated[float, Range(0, 1, above=True, below=True, hint="try 0.2"), WITH_SPANS] = 0.2
    """Span lengths are geometric with this parameter, as in SpanBERT."""
    span_max: Annotated[Count, WITH_SPANS] = 10
    """Longest span, in words."""

    def __post_init__(self) -> None:
        if isinstance(self.policy, str):
            POLICIES.check(self.policy)
        super().__post_init__()
        # 0.7 + 0.3 is above 1 by a rounding error in binary fractions.
        if self.mask_share + self.random_share > 1.0 + 1e-9:
            shares = f"--mask-share {self.mask_share} and --random-share {self.random_share}"
            raise ConfigError(f"{shares} sum to more than 1; lower one of them")
        if self.mask_schedule == "constant" and self.mask_rate_end not in (None, self.mask_rate):
            told = f"--mask-rate-end {self.mask_rate_end} needs --mask-schedule linear or cosine"
            raise ConfigError(told)
        if self.mask_schedule != "constant" and self.mask_rate_end is None:
            hint = "the rate at the end of the run; decay from 0.3 to 0.15 is a common choice"
            raise ConfigError(f"--mask-schedule {self.mask_schedule} needs --mask-rate-end, {hint}")
        highest = max(self.mask_rate, self.mask_rate_end or 0.0)
        if self.policy == "span" and highest > self.span_rate_limit:
            spans = f"spans of {self.mean_span:.2f} words on average that never touch"
            limit = f"{spans} mask at most {self.span_rate_limit:.3f}"
            fix = "lower --mask-rate, or raise --span-max"
            raise ConfigError(f"the mask rate is {highest}: {limit}; {fix}")

    @property
    def mean_span(self) -> float:
        """Mean length of a span, in words: a geometric distribution cut at `span_max`."""
        weights = [self.span_p * (1.0 - self.span_p) ** n for n in range(self.span_max)]
        return sum((n + 1) * weight for n, weight in enumerate(weights)) / sum(weights)

    @property
    def span_rate_limit(self) -> float:
        """Highest rate of spans that never touch: one word between any two."""
        return self.mean_span / (self.mean_span + 1.0)

    def rate_at(self, progress: float) -> float:
        """Return the mask rate when a share `progress` of the run is done."""
        start, end = self.mask_rate, self.mask_rate_end
        if end is None or self.mask_schedule == "constant":
            return start
        done = min(max(progress, 0.0), 1.0)
        if self.mask_schedule == "linear":
            return start + (end - start) * done
        # Half a wave: flat at both ends, steepest in the middle.
        return end + (start - end) * 0.5 * (1.0 + math.cos(math.pi * done))

    def described(self) -> dict[str, Any]:
        """Return the settings for a run's identity; a plug-in counts by its file's content."""
        policy = self.policy
        named = plugin_identity(policy) if isinstance(policy, str) else repr(policy)
        return {field.name: getattr(self, field.name) for field in fields(self)} | {"policy": named}
