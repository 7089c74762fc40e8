from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from maskery.core.errors import DataError
from maskery.evaluation.text.masked import auc


@pytest.mark.parametrize("decimals", [0, 1, 8])
def test_equals_scikit_learn_with_and_without_ties(decimals: int) -> None:
    generator = np.random.default_rng(decimals)
    labels = generator.integers(0, 2, 500)
    scores = np.round(generator.normal(size=500) + labels, decimals)
    assert auc(scores, labels) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)


def test_one_kind_alone_is_one_line() -> None:
    with pytest.raises(DataError, match="0 replaced and 3 original"):
        auc(np.zeros(3), np.zeros(3, np.int64))
