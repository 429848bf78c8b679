"""lm-eval's aggregations as functions of sums, so that a draw of documents costs no Python.

Decides what each document adds to the sums and how the metric follows from them. `gain_values`
checks every one of them against lm-eval's own value before it is used; an aggregation that is
missing here is computed anew for each draw, or not at all.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import numpy as np

from raypeft.core.records import Json
from raypeft.core.resampling import Floats

Terms: TypeAlias = Callable[[Sequence[Json]], Floats]
Finish: TypeAlias = Callable[[Floats], Floats]


class NoTermsError(Exception):
    """The values are not what an aggregation takes; the message says what it takes."""


def is_number(value: Json) -> bool:
    """Whether a value counts as a number; booleans do."""
    return isinstance(value, bool | int | float)


def numbers(values: Sequence[Json]) -> Floats:
    """Return numbers as an array.

    Raises:
        NoTermsError: If one is no number.
    """
    if not all(is_number(value) for value in values):
        raise NoTermsError("numbers")
    return np.asarray(values, dtype=np.float64)


def _numbers_and_ones(values: Sequence[Json]) -> Floats:
    return np.stack([numbers(values), np.ones(len(values))], axis=1)


def _pairs(values: Sequence[Json]) -> Floats:
    if not all(
        isinstance(value, list | tuple) and len(value) == 2 and all(map(is_number, value))
        for value in values
    ):
        raise NoTermsError("pairs of numbers")
    return np.asarray(values, dtype=np.float64).reshape(len(values), 2)


def _confusion(values: Sequence[Json]) -> Floats:
    """Return true and false positives, false and true negatives of (gold, predicted) pairs."""
    pairs = _pairs(values)
    if not np.isin(pairs, (0.0, 1.0)).all():
        raise NoTermsError("pairs of labels 0 and 1")
    gold, predicted = pairs[:, 0], pairs[:, 1]
    cells = (
        gold * predicted,
        (1 - gold) * predicted,
        gold * (1 - predicted),
        (1 - gold) * (1 - predicted),
    )
    return np.stack(cells, axis=1)


def _brier(values: Sequence[Json]) -> Floats:
    losses = []
    for value in values:
        if not (isinstance(value, list | tuple) and len(value) == 2 and is_number(value[0])):
            raise NoTermsError("pairs of label and probabilities")
        probabilities = numbers(value[1]).copy()
        probabilities[int(value[0])] -= 1.0
        losses.append((probabilities**2).sum())
    return _numbers_and_ones([float(loss) for loss in losses])


def _ratio(sums: Floats) -> Floats:
    ratio: Floats = sums[..., 0] / sums[..., 1]
    return ratio


def _exp_of_negative(sums: Floats) -> Floats:
    value: Floats = np.exp(-_ratio(sums))
    return value


def _bits(sums: Floats) -> Floats:
    return -_ratio(sums) / math.log(2)


def _f1(sums: Floats) -> Floats:
    true, false, missed = sums[..., 0], sums[..., 1], sums[..., 2]
    total = 2 * true + false + missed
    # As scikit-learn has it: 0 where there is neither a positive nor a prediction of one.
    value: Floats = np.where(total == 0, 0.0, 2 * true / np.where(total == 0, 1.0, total))
    return value


def _matthews(sums: Floats) -> Floats:
    tp, fp, fn, tn = (sums[..., i] for i in range(4))
    scale = np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    # As scikit-learn has it: 0 where one side has a single label.
    covariance = tp * tn - fp * fn
    value: Floats = np.where(scale == 0, 0.0, covariance / np.where(scale == 0, 1.0, scale))
    return value


SUMS: Mapping[str, tuple[Terms, Finish]] = {
    "perplexity": (_numbers_and_ones, _exp_of_negative),
    "weighted_perplexity": (_pairs, _exp_of_negative),
    "bits_per_byte": (_pairs, _bits),
    "brier_score": (_brier, _ratio),
    "f1": (_confusion, _f1),
    "matthews_corrcoef": (_confusion, _matthews),
}
"""By lm-eval's name (lm_eval/api/metrics.py): what a document adds, and the metric of the sums."""
