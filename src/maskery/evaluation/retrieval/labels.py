"""The names of retrieval figures for people, in the order they are shown in."""

from __future__ import annotations

LABELS = {"r1": "R@1", "r5": "R@5", "r10": "R@10", "map": "mAP", "minp": "mINP"}
"""By the fields of `maskery.evaluation.retrieval.metrics.RankingFigures`."""
