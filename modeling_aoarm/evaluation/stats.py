# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Ratios of sums over independent examples, and their standard errors."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike


class Estimate(NamedTuple):
    """A figure and how far chance may have moved it.

    Args:
        value: the figure; NaN where there was nothing to count.
        standard_error: in the figure's unit; None where it cannot be told (one example, an infinite figure).
    """

    value: float
    standard_error: float | None


def ratio(totals: ArrayLike, counts: ArrayLike) -> Estimate:
    """Sum of `totals` over sum of `counts`: every counted thing has the same weight, whichever example it belongs to.

    The standard error takes the examples, not the things that are counted in them, as independent draws, and is the
    usual linearised one of a ratio of sums (Cochran, Sampling Techniques, chapter 6).

    Args:
        totals: `[examples]`, what is summed within each example: nats, right tokens.
        counts: `[examples]`, >= 0, how many things that sum is of. Examples of none count for nothing.

    Raises:
        ValueError: for shapes that differ or have another number of axes, and a negative count.
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


__all__ = ["Estimate", "ratio"]
