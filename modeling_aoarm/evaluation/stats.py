# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Ratios of sums over independent examples, and their standard errors."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike


class Estimate(NamedTuple):
    """An estimated value and its standard error.

    Args:
        value: the estimate; NaN if nothing was counted.
        standard_error: in the unit of the value; None if it cannot be estimated (one example, an infinite value).
    """

    value: float
    standard_error: float | None


def estimate_ratio(totals: ArrayLike, counts: ArrayLike) -> Estimate:
    """Divides the sum of `totals` by the sum of `counts`, so that every counted item has the same weight.

    The standard error takes the examples, not the counted items, as independent draws. It is the usual linearised error
    of a ratio of sums (Cochran, Sampling Techniques, chapter 6).

    Args:
        totals: `[examples]`, the sum within each example, such as nats or right tokens.
        counts: `[examples]`, >= 0, the number of items that each sum adds up. Examples with count 0 are skipped.

    Raises:
        ValueError: the shapes differ or do not have one axis, or a count is negative.
    """
    totals, counts = np.asarray(totals, dtype=np.float64), np.asarray(counts, dtype=np.float64)
    if totals.ndim != 1 or totals.shape != counts.shape:
        raise ValueError(f"totals and counts must have one shape, [examples]; got {totals.shape} and {counts.shape}.")
    if (counts < 0).any():
        raise ValueError(f"counts must be at least 0, got {counts.min():g}.")
    totals, counts = totals[counts > 0], counts[counts > 0]
    if len(counts) == 0:
        return Estimate(math.nan, None)
    value = totals.sum() / counts.sum()
    if len(counts) == 1 or not math.isfinite(value):
        return Estimate(float(value), None)
    squares = ((totals - value * counts) ** 2).sum() * len(counts) / (len(counts) - 1)
    return Estimate(float(value), math.sqrt(squares) / float(counts.sum()))
