"""One sentence on whether a run helped, from intervals alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from maskery.evaluation.intervals import Interval

Word = Literal["better", "worse", "undecided"]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The effect of a run on filling words and on the encoder's vectors.

    Attributes:
        filling: Better if the held-out loss fell beyond its interval.
        vectors: Better if texts find their neighbours, or their halves, more often; None where
            vectors were not judged.
        advice: What to do next.
    """

    filling: Word
    vectors: Word | None
    advice: str

    def __str__(self) -> str:
        parts = [f"filling words: {self.filling}"]
        if self.vectors is not None:
            parts.append(f"vectors: {self.vectors}")
        return f"{'; '.join(parts)}. {self.advice}"


def judge(loss: Interval, vectors: Interval | None, *, keeps: bool = False) -> Verdict:
    """Judge a run by its differences, after minus before.

    Args:
        loss: Of the held-out loss of a masked token; below 0 is better.
        vectors: Of a share that is right by the encoder's vectors; above 0 is better.
        keeps: True if the run held its vectors to the start's (`--keep-embedding`).
    """
    filling = _word(loss, lower_is_better=True)
    judged = None if vectors is None else _word(vectors, lower_is_better=False)
    return Verdict(filling=filling, vectors=judged, advice=_advice(filling, judged, keeps=keeps))


def _word(difference: Interval, *, lower_is_better: bool) -> Word:
    if not difference.known or difference.low <= 0.0 <= difference.high:
        return "undecided"
    return "better" if (difference.value < 0.0) == lower_is_better else "worse"


def _advice(filling: Word, vectors: Word | None, *, keeps: bool) -> str:
    if vectors == "worse":
        flag = "raise --keep-embedding" if keeps else "train with --keep-embedding 20"
        return f"Its vectors tell less apart than before: do not embed texts with it; {flag}."
    if filling == "worse":
        return "No gain: stop, or lower --learning-rate."
    if filling == "undecided":
        return "No gain is shown: run longer, or hold out more text (--held-out-share)."
    if vectors == "undecided":
        return "It fills better, and no loss of its vectors is shown; probe it on your own labels."
    if vectors == "better":
        return "Use it."
    return "Probe its vectors before you embed texts with it (maskery probe)."
